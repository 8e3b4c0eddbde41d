"""The README is true: its Python blocks run in order, and so does each line of its table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn

import replayml

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (?P<wish>[^|]+) \| (?P<codes>.*`.*) \|$", re.MULTILINE)


def readme() -> str:
    """Return the text of the README."""
    return README.read_text(encoding="utf-8")


def digits(rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs ``(rows, 784)`` and classes ``(rows,)`` of the sizes that the README's model takes."""
    return torch.rand(rows, 784), torch.arange(rows) % 10


@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
def test_python_blocks_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each block works with what the blocks above it made, and with data of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    text = readme()
    names: dict[str, Any] = {"__name__": "readme"}
    for part in ("", "_val", "_test"):
        names["x" + part], names["y" + part] = digits()
    blocks = list(FENCE.finditer(text))
    assert len(blocks) >= 4
    for block in blocks:
        lines_above = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_above + block[1], str(README), "exec"), names)
    assert (tmp_path / "digits.ckpt").is_file()
    printed = capsys.readouterr().out
    assert "model.configure(width=32)" in printed
    assert "out_features of Linear at 'hidden' is 32" in printed
    assert "replayml.MultiLayerPerceptron(784, [128, 64], 10)" in printed


def table() -> list[tuple[str, list[str]]]:
    """Return what one wants and the pieces of code, for each line of the README's table."""
    return [(row["wish"], re.findall(r"`([^`]+)`", row["codes"])) for row in ROW.finditer(readme())]


@pytest.mark.parametrize(("wish", "codes"), table(), ids=[wish for wish, _ in table()])
def test_table_lines_work(wish: str, codes: list[str]) -> None:
    """Each piece of code in the table works as it stands, on an unbuilt model or, where it needs one, a built one."""
    x = torch.zeros(8, 784)
    names: dict[str, Any] = {"nn": nn, "replayml": replayml, "torchmetrics": torchmetrics, "x": x}
    names["model"] = replayml.MultiLayerPerceptron(784, [16], 10)
    names["layer"] = replayml.Layer(nn.Linear, 784, 2)
    for code in codes:
        if re.search(r"\.(logs|predict)\b", code):  # of a built model; the logs of one that has run
            names["model"].build()(x)
        exec(code.removeprefix("@"), names)


def test_table_is_found() -> None:
    """The table has its lines, so that none of them goes untested."""
    assert len(table()) >= 9
