"""`ProgressBar`: what it writes on a terminal and elsewhere, and that it leaves the process as it was."""

import io
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from lightning.pytorch import Trainer
from rich.console import Console
from torch.utils.data import DataLoader, IterableDataset

from replayml.core.errors import ConfigurationError
from replayml.training.progress import ProgressBar
from tests.training.lightning_models import QUIET, Regression, loader


def trainer(folder: Path, bar: ProgressBar, **options: Any) -> Trainer:
    """Return Lightning's own trainer with the progress bar and nothing else."""
    return Trainer(**{**QUIET, "default_root_dir": folder, "max_epochs": 2, "callbacks": [bar], **options})


def terminal() -> Console:
    """Return a terminal that is kept in memory."""
    return Console(file=io.StringIO(), force_terminal=True, force_jupyter=False, width=120, color_system=None)


def written(console: Console) -> str:
    """Return what a terminal in memory was sent, without the control codes."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def test_without_a_terminal_there_is_a_line_per_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the output is no terminal, each epoch writes one plain line with its number and its metrics."""
    trainer(tmp_path, ProgressBar()).fit(Regression(), loader(), loader(8))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for epoch, line in enumerate(lines):
        assert re.fullmatch(rf"Epoch {epoch}/1  \d+\.\d s(  (train|val)_loss [\d.e+-]+){{2}}", line)


def test_color_variables_do_not_make_a_file_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With FORCE_COLOR set, as on many build servers, a log file still gets plain lines."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    trainer(tmp_path, ProgressBar()).fit(Regression(), loader(), loader(8))
    output = capsys.readouterr().out
    assert len(output.splitlines()) == 2
    assert "\x1b" not in output


def test_a_terminal_shows_the_epoch_and_the_metrics(tmp_path: Path) -> None:
    """On a terminal the line ends with the last epoch, its batches and its metrics under their own names."""
    console = terminal()
    trainer(tmp_path, ProgressBar(console=console)).fit(Regression(), loader(), loader(8))
    shown = written(console)
    last = shown.rstrip().splitlines()[-1]
    assert "Epoch 0/1" in shown
    assert re.search(r"Epoch 1/1.*3/3.* (train_loss|val_loss) .* (train_loss|val_loss) ", last)


@pytest.mark.parametrize(("run", "title"), [("validate", "Validation"), ("test", "Testing"), ("predict", "Predicting")])
def test_every_stage_has_its_title(tmp_path: Path, run: str, title: str) -> None:
    """Validation, test and prediction count their batches under a title of their own."""
    console = terminal()
    getattr(trainer(tmp_path, ProgressBar(console=console)), run)(Regression(), loader())
    assert re.search(rf"{title} .* 3/3", written(console))


def test_data_without_a_length_is_counted(tmp_path: Path) -> None:
    """Where the number of batches is not known, the line counts up without an end."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return ((torch.ones(4), torch.ones(1)) for _ in range(8))

    console = terminal()
    trainer(tmp_path, ProgressBar(refresh_rate=1e9, console=console), max_epochs=1).fit(
        Regression(), DataLoader(Stream(), batch_size=2), loader(8)
    )
    assert "4/?" in written(console)


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_stays_as_it_was(tmp_path: Path, fails: bool) -> None:
    """After a run, a failed one included, the streams, rich's console and the threads are those from before."""

    class Fails(Regression):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if fails and batch_idx == 1:
                raise RuntimeError("the second batch")

    shared = dict(vars(rich.get_console()))
    streams, threads = (sys.stdout, sys.stderr), set(threading.enumerate())
    run = trainer(tmp_path, ProgressBar(console=terminal()))
    if fails:
        with pytest.raises(RuntimeError, match="the second batch"):
            run.fit(Fails(), loader(), loader(8))
    else:
        run.fit(Fails(), loader(), loader(8))
    assert (sys.stdout, sys.stderr) == streams
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert dict(vars(rich.get_console())) == shared


@pytest.mark.parametrize("bar", [ProgressBar(refresh_rate=0), ProgressBar()], ids=["no refreshing", "disabled"])
def test_it_can_be_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str], bar: ProgressBar) -> None:
    """A refresh rate of 0, and disable(), write nothing."""
    if bar.refresh_rate:
        bar.disable()
    assert not bar.is_enabled
    trainer(tmp_path, bar).fit(Regression(), loader(), loader(8))
    assert capsys.readouterr().out == ""


def test_only_rank_zero_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On any other rank nothing is written."""

    class SecondRank(Trainer):
        is_global_zero = False

    SecondRank(**QUIET, default_root_dir=tmp_path, max_epochs=1, callbacks=[ProgressBar()]).fit(
        Regression(), loader(), loader(8)
    )
    assert capsys.readouterr().out == ""


def test_it_can_be_pickled() -> None:
    """A bar with a console of its own can be sent to another process, where it writes to standard output."""
    again = pickle.loads(pickle.dumps(ProgressBar(refresh_rate=3, console=terminal())))
    assert again.refresh_rate == 3
    assert again.is_enabled


def test_a_negative_refresh_rate_is_refused() -> None:
    """A refresh rate below 0 raises, and tells the unit."""
    with pytest.raises(ConfigurationError, match=r"refresh_rate >= 0 \(in 1/s\), got -1"):
        ProgressBar(refresh_rate=-1)
