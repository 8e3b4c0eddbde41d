"""Applications on a command line: models and optimizers from YAML files, in a process of its own."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import replayml
from replayml.training.command_line import CommandLine

pytest.importorskip("jsonargparse", reason="part of the extra cli")

# Lightning calls jsonargparse by names that have changed there since.
pytestmark = pytest.mark.filterwarnings(r"ignore:[\s\S]*deprecat:DeprecationWarning")

REPOSITORY = Path(__file__).parents[2]

MODULE = """
import torch
from lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import replayml


class Rows(LightningDataModule):
    def __init__(self, rows: int = 40) -> None:
        super().__init__()
        x = torch.rand(rows, 4, generator=torch.Generator().manual_seed(0))
        self.data = TensorDataset(x, (x.sum(1) * 1.5).long() % 3)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=10)

    val_dataloader = test_dataloader = train_dataloader


class Own(replayml.Application):
    def __init__(self, width: int, deep: bool = False, lr: float = 0.01) -> None:
        sizes = [width] * (2 if deep else 1)
        self.model = replayml.MultiLayerPerceptron(None, sizes, 3)
        super().__init__(loss=nn.CrossEntropyLoss, optimizer=replayml.SGD(lr=lr))
"""

MAIN = """
import sys

import replayml
from lightning.pytorch.cli import LightningCLI
from replayml.training.command_line import CommandLine
from user_rows import Own, Rows

kind, options = {
    "stock": (LightningCLI, {"model_class": replayml.Application, "subclass_mode_model": True}),
    "classifier": (CommandLine, {"model_class": replayml.Classifier}),
    "own": (CommandLine, {"model_class": Own}),
}[sys.argv.pop(1)]
if __name__ == "__main__":
    kind(datamodule_class=Rows, **options)
"""

TRAINER = {
    "max_epochs": 2,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
}
MODEL = {
    "num_classes": 3,
    "model": {
        "class_path": "replayml.MultiLayerPerceptron",
        "init_args": {"in_features": None, "hidden_features": [8], "out_features": 3},
    },
    "loss": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}},
    "optimizer": {"class_path": "replayml.AdamW", "init_args": {"lr": 0.05}},
    "metrics": {"class_path": "torchmetrics.classification.MulticlassF1Score", "init_args": {"num_classes": 3}},
}

BLOCK = ["--model.model.in_features=4", "--model.model.out_features=1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the user's module, which this process can import as well, and the script."""
    (tmp_path / "user_rows.py").write_text(MODULE)
    (tmp_path / "main.py").write_text(MAIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def configured(folder: Path, **config: Any) -> None:
    """Write the file of settings."""
    (folder / "run.yaml").write_text(yaml.safe_dump({"seed_everything": 0, "trainer": TRAINER, **config}))


def command(folder: Path, kind: str, subcommand: str, *words: str) -> str:
    """Run the script with the file of settings, and return what it wrote."""
    done = subprocess.run(
        [sys.executable, "main.py", kind, subcommand, "--config", "run.yaml", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def only(folder: Path, pattern: str) -> Path:
    """Return the one file that a pattern finds."""
    (found,) = folder.glob(pattern)
    return found


def test_a_file_gives_the_whole_application_and_its_checkpoint_goes_on(folder: Path) -> None:
    """Model, loss, optimizer and metrics come from YAML; the checkpoint loads here, is tested there, and resumes."""
    configured(folder, model=MODEL)
    command(folder, "classifier", "fit")
    path = only(folder, "logs/lightning_logs/version_0/checkpoints/*.ckpt")
    app = replayml.Application.load_from_checkpoint(path)
    assert type(app) is replayml.Classifier
    assert app.model.blocks[0].layer.in_features == 4
    assert app.loss.label_smoothing == 0.1
    assert app.optimizer.classtype is torch.optim.AdamW
    assert list(app.val_metrics) == ["multiclassf1score"]
    assert app.predict(torch.zeros(2, 4)).shape == (2, 3)
    shown = yaml.safe_load(only(folder, "logs/lightning_logs/version_0/hparams.yaml").read_text())
    assert shown["model.classtype"] == "MultiLayerPerceptron"
    assert shown["model.hidden_features"] == [8]
    assert (shown["optimizer.classtype"], shown["optimizer.lr"]) == ("AdamW", 0.05)
    assert shown["metrics.classtype"] == "MulticlassF1Score"
    assert not any("ckpt" in name or "recipe" in str(value) for name, value in shown.items())
    assert "test_multiclassf1score" in command(folder, "classifier", "test", "--ckpt_path", str(path))
    command(folder, "classifier", "fit", "--ckpt_path", str(path), "--trainer.max_epochs=3")
    resumed = torch.load(only(folder, "logs/lightning_logs/version_2/checkpoints/*.ckpt"), weights_only=True)
    assert (resumed["epoch"], resumed["global_step"]) == (2, 12)


def test_lightnings_own_command_line_trains_any_application(folder: Path) -> None:
    """Under LightningCLI itself, with subclass_mode_model, the file names the class of one's own application."""
    configured(folder, model={"class_path": "user_rows.Own", "init_args": {"width": 2}})
    command(folder, "stock", "fit", "--model.lr=0.2", "--model.deep=true")
    own = importlib.import_module("user_rows").Own
    app = own.load_from_checkpoint(only(folder, "logs/lightning_logs/version_0/checkpoints/*.ckpt"))
    assert len(app.model.blocks) == 3
    assert app.lr == 0.2
    shown = yaml.safe_load(only(folder, "logs/lightning_logs/version_0/hparams.yaml").read_text())
    assert (shown["classtype"], shown["width"], shown["deep"]) == ("Own", 2, True)


# Without a process of its own -----------------------------------------------------------------------------------


@pytest.fixture
def parse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that makes the application of a command line, without training it."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["main.py"])

    def application(cls: type, *words: str, **options: Any) -> Any:
        return CommandLine(cls, args=list(words), run=False, seed_everything_default=False, **options).model

    return application


def test_ones_own_application_has_its_arguments_on_the_command_line(parse: Callable[..., Any]) -> None:
    """The arguments of one's own class are options, with their defaults."""
    own = importlib.import_module("user_rows").Own
    app = parse(own, "--model.width", "5", "--model.deep=true", "--trainer.logger=false")
    assert repr(app) == repr(own(5, deep=True))
    assert len(app.recipe().to_json()) > 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.loss=torch.nn.L1Loss"], nn.L1Loss),
        (["--model.loss=torch.nn.functional.l1_loss"], nn.functional.l1_loss),
        (["--model.loss={class_path: torch.nn.HuberLoss, init_args: {delta: 2.0}}"], nn.HuberLoss),
    ],
)
def test_a_loss_has_a_name(parse: Callable[..., Any], words: list[str], expected: Any) -> None:
    """A loss is a class by its name, with or without arguments, or a function by its name."""
    loss = parse(replayml.Regressor, "--model.model=replayml.LinearBlock", *BLOCK, *words).loss
    assert loss is expected or type(loss) is expected or loss.classtype is expected


def test_mistakes_are_told_with_their_names(parse: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown arguments, of the application or of a module in it, are told before anything is made."""
    mistakes = {
        "num_clases": ["--model.num_clases=3"],
        "hiden": ["--model.model={class_path: replayml.MultiLayerPerceptron, init_args: {hiden: 3}}"],
        "--optimizer": ["--optimizer=SGD"],
    }
    for name, words in mistakes.items():
        with pytest.raises(SystemExit):
            parse(replayml.Classifier, *words)
        assert name in capsys.readouterr().err


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jsonargparse the message names what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"Install the extra: pip install 'replayml\[cli\]'"):
        CommandLine(replayml.Classifier)
