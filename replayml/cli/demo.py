"""`replayml demo`: the main job, on real data, in under two minutes.

    1 797 real handwritten digits ─► a CNN, varied by selector ─► fit ─► test ─► checkpoint
    ─► reloaded in a fresh process, without its class ─► identical predictions
    ─► new() with another activation, trained and compared

Invariants:
    * Every figure that it prints was measured in this run.
    * It exits with 1 when the reloaded model predicts anything else, or the accuracy is below 97 %.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table
from torch import nn

from replayml.blocks.components import ConvolutionalNeuralNetwork, MultiLayerPerceptron
from replayml.layers.containers import Sequential
from replayml.layers.layer import Layer
from replayml.layers.optimizer import Adam
from replayml.training import Classifier, Trainer

__all__ = ["run"]

TARGET = 0.97

RELOAD = """
import sys, torch, replayml
app = replayml.Application.load_from_checkpoint(sys.argv[1])
torch.save(app.predict(torch.load(sys.argv[2])), sys.argv[3])
print(type(app).__name__)
"""


class Digits(NamedTuple):
    """The data: images ``(rows, 1, 8, 8)`` in [0, 1] and digits ``(rows,)``, in three parts."""

    train: tuple[torch.Tensor, torch.Tensor]
    val: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


def load_digits() -> Digits:
    """Return scikit-learn's handwritten digits: of every ten, two for testing and one for validation."""
    from sklearn.datasets import load_digits as load  # an extra, needed here only

    images, digits = load(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(digits, dtype=torch.long)
    tenth = torch.arange(len(y)) % 10
    parts = (tenth > 2, tenth == 2, tenth < 2)
    return Digits(*((x[part], y[part]) for part in parts))


def make_model() -> Classifier:
    """Return an unbuilt digit classifier, varied from outside by selectors."""
    net = Sequential(
        ConvolutionalNeuralNetwork(1, [32, 64], 64, pool=nn.MaxPool2d(2)),
        Layer(nn.AdaptiveAvgPool2d, 2),
        MultiLayerPerceptron(None, [64], 10),
    )
    app = Classifier(net, num_classes=10, optimizer=Adam(lr=2e-3))
    app[..., "activation"].isinstance(nn.ReLU).configure(nn.GELU)
    app["model", 0].normalized()
    return app


def train(app: Classifier, digits: Digits, epochs: int, seed: int, folder: Path) -> tuple[Any, float]:
    """Train an application and return its trainer and its test accuracy."""
    seed_everything(seed, verbose=False)
    app.build(digits.train[0][:2], seed=seed)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, filename="digits", enable_version_counter=False)],
        enable_model_summary=False,
    )
    app.fit(digits.train, digits.val, trainer=trainer, batch_size=64, val_batch_size=512)
    return trainer, app.test(digits.test, batch_size=512, accelerator="cpu", enable_progress_bar=False)["test_accuracy"]


def reload_elsewhere(checkpoint: Path, x: torch.Tensor, folder: Path) -> tuple[str, torch.Tensor]:
    """Predict with a checkpoint in a fresh process, which knows neither the class nor its arguments."""
    torch.save(x, folder / "inputs.pt")
    words = [str(checkpoint), str(folder / "inputs.pt"), str(folder / "outputs.pt")]
    done = subprocess.run([sys.executable, "-c", RELOAD, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the reloading process failed:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1], torch.load(folder / "outputs.pt", weights_only=True)


def _be_quiet() -> None:
    """Leave Lightning's advice out of this process; it is the demo's own."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists", category=UserWarning)


def run(folder: Path, epochs: int = 12, seed: int = 0) -> int:
    """Run the demo.

    Args:
        folder: Where to write the checkpoints and the plot.
        epochs: How often each model sees the data.
        seed: Of the weights and of the shuffling.

    Returns:
        The exit code.
    """
    console = Console()
    _be_quiet()
    try:
        digits = load_digits()
    except ImportError as error:
        console.print(f"[red]{error.name} is not installed.[/red] Install the extra: pip install 'replayml[demo]'")
        return 3
    folder.mkdir(parents=True, exist_ok=True)
    first = make_model()
    console.print(f"[bold]1.[/bold] A recorded model, {len(first.tape)} calls on its tape; 1 797 real digits")
    second = first.new()
    second[..., "activation"].isinstance(nn.GELU).configure(nn.Tanh)

    console.print("[bold]2.[/bold] Training with GELU")
    first_trainer, first_accuracy = train(first, digits, epochs, seed, folder / "gelu")
    checkpoint = Path(first_trainer.checkpoint_callback.best_model_path)

    here = first.predict(digits.test[0])
    name, there = reload_elsewhere(checkpoint, digits.test[0], folder)
    same = torch.equal(here, there)
    console.print(
        f"[bold]3.[/bold] Reloaded in a fresh process as {name}: predictions {'identical' if same else 'DIFFER'}"
    )

    console.print("[bold]4.[/bold] new() with Tanh instead, trained the same way")
    _, second_accuracy = train(second, digits, epochs, seed, folder / "tanh")

    table = Table("model", "activation", "test accuracy", title="Handwritten digits")
    table.add_row("first", "GELU", f"{first_accuracy:.2%}")
    table.add_row("first.new()", "Tanh", f"{second_accuracy:.2%}")
    console.print(table)
    plot = folder / "history.png"
    figure = first_trainer.history.plot()
    figure.savefig(plot)
    console.print(f"Checkpoint: {checkpoint}\nPlot: {plot}")
    if not same or max(first_accuracy, second_accuracy) < TARGET:
        console.print(f"[red]Expected identical predictions and an accuracy of at least {TARGET:.0%}.[/red]")
        return 1
    return 0
