"""The progress bar: epoch, batches, time and metrics on one line that redraws itself.

Invariants:
    * Where the output is no terminal (a file, a pipe, a notebook without widgets), nothing redraws itself: training
      writes one line per epoch.
    * The process stays as it was: rich's shared console is not touched, and what a live display redirects is given
      back when the run ends, however it ends.
    * Only rank zero writes.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from replayml.core.errors import ConfigurationError

__all__ = ["ProgressBar"]

# How Lightning calls an evaluation in the names of its attributes; any other is a validation.
_EVALUATIONS: Mapping[TrainerFn | None, tuple[str, str]] = MappingProxyType(
    {TrainerFn.TESTING: ("test", "test"), TrainerFn.PREDICTING: ("predict", "predict")}
)


class ProgressBar(LightningProgressBar):
    """Shows how far training is, with the metrics that were logged with ``prog_bar=True``.

    On a terminal, and in a notebook with widgets, one line redraws itself. Elsewhere training writes one line per
    epoch, and validation, test and prediction write nothing, for Lightning prints their results.

    Args:
        refresh_rate: How often the line is redrawn, in 1/s; 0 shows nothing at all.
        console: Where to write. None writes to what ``sys.stdout`` is when the run starts.

    Example:
        >>> from replayml.training.trainer import Trainer
        >>> trainer = Trainer(callbacks=[ProgressBar(refresh_rate=2)], logger=False, enable_checkpointing=False)
        >>> trainer.progress_bar_callback.refresh_rate
        2
    """

    def __init__(self, refresh_rate: float = 10, *, console: Console | None = None) -> None:
        super().__init__()
        if refresh_rate < 0:
            raise ConfigurationError(f"ProgressBar takes refresh_rate >= 0 (in 1/s), got {refresh_rate}")
        self.refresh_rate = refresh_rate
        self._given_console = console
        self._is_enabled = True
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._drawn_at = 0.0
        self._epoch_began = 0.0

    def enable(self) -> None:
        """Show progress from the next run on."""
        self._is_enabled = True

    def disable(self) -> None:
        """Show nothing until `enable` is called."""
        self._stop()
        self._is_enabled = False

    @property
    def is_enabled(self) -> bool:
        """Whether progress is shown."""
        return self._is_enabled and self.refresh_rate > 0

    def get_metrics(
        self, trainer: LightningTrainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the metrics to show; override it to show others."""
        return dict(trainer.progress_bar_metrics)

    def __getstate__(self) -> dict[str, Any]:
        # A display holds locks and a thread; a copy in another process writes to its own standard output.
        return {**self.__dict__, "_progress": None, "_tasks": {}, "_given_console": None}

    # ------------------------------------------------------------------------------------------------ Lightning's calls

    def on_train_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Open the display."""
        self._epoch_began = time.monotonic()
        self._start()

    def on_train_epoch_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Begin the line of an epoch."""
        self._epoch_began = time.monotonic()
        if self._progress is not None and "train" in self._tasks:
            self._progress.reset(self._tasks["train"])

    def on_train_batch_end(
        self, trainer: LightningTrainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the line on by a batch."""
        if self._is_due(batch_idx + 1, self.total_train_batches):
            metrics = _shown(self.get_metrics(trainer, pl_module), prefer="step")
            self._draw("train", self._epoch_text(trainer), batch_idx + 1, self.total_train_batches, metrics)

    def on_train_epoch_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Show the metrics of the epoch; without a display, write its line."""
        if not self.is_enabled:
            return
        metrics = _shown(self.get_metrics(trainer, pl_module), prefer="epoch")
        if self._progress is None:
            seconds = time.monotonic() - self._epoch_began
            line = "  ".join(part for part in (self._epoch_text(trainer), f"{seconds:.1f} s", metrics) if part)
            console = self._given_console or Console(force_jupyter=False)
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif "train" in self._tasks:
            self._progress.update(self._tasks["train"], metrics=metrics)

    def on_validation_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Open the display, where validation runs alone."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._start()

    def on_validation_batch_end(
        self,
        trainer: LightningTrainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the line of a validation, test or prediction on by a batch."""
        if trainer.sanity_checking:
            return
        self.has_dataloader_changed(dataloader_idx)
        short, name = _EVALUATIONS.get(trainer.state.fn, ("val", "validation"))
        total = getattr(self, f"total_{short}_batches_current_dataloader")
        if self._is_due(batch_idx + 1, total):
            self._draw(name, getattr(self, f"{name}_description"), batch_idx + 1, total)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Take the line of the validation away again, where it ran during training."""
        self.reset_dataloader_idx_tracker()
        if self._progress is not None and "train" in self._tasks and "validation" in self._tasks:
            self._progress.remove_task(self._tasks.pop("validation"))

    def on_test_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Open the display."""
        self._start()

    def on_test_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Forget which loader was the last."""
        self.reset_dataloader_idx_tracker()

    on_predict_start, on_predict_end = on_test_start, on_test_end

    def on_exception(self, trainer: LightningTrainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the display, so that the traceback is not drawn over."""
        self._stop()

    def teardown(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Close the display."""
        self._stop()

    # ------------------------------------------------------------------------------------------------------ the display

    def _start(self) -> None:
        console = self._given_console or Console()
        if not self.is_enabled or self._progress is not None or not self._is_live(console):
            return
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24, complete_style="cyan", finished_style="green", pulse_style="cyan"),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=console,
            refresh_per_second=self.refresh_rate,
        )
        self._progress.start()

    def _stop(self) -> None:
        progress, self._progress, self._tasks = self._progress, None, {}
        if progress is not None:
            progress.stop()

    def _is_live(self, console: Console) -> bool:
        """Whether a line on the console can redraw itself."""
        if console.is_jupyter:
            return importlib.util.find_spec("ipywidgets") is not None
        if self._given_console is None and not (sys.stdout is not None and sys.stdout.isatty()):
            return False  # a variable such as FORCE_COLOR may make rich take a log file for a terminal
        return console.is_interactive

    def _is_due(self, completed: int, total: float) -> bool:
        """Whether the line is to be redrawn; the last batch always is."""
        if self._progress is None:
            return False
        now = time.monotonic()
        if completed < total and now - self._drawn_at < 1 / self.refresh_rate:
            return False
        self._drawn_at = now
        return True

    def _draw(self, name: str, description: str, completed: int, total: float, metrics: str = "") -> None:
        if self._progress is None:
            return
        known = None if total == float("inf") else total
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(description, total=known, metrics=metrics)
        self._progress.update(
            self._tasks[name], description=description, total=known, completed=completed, metrics=metrics
        )

    def _epoch_text(self, trainer: LightningTrainer) -> str:
        last = trainer.max_epochs
        return f"Epoch {trainer.current_epoch}" + (f"/{last - 1}" if last is not None and last > 0 else "")


def _shown(metrics: Mapping[str, Any], *, prefer: str) -> str:
    """Return metrics as text; of one that is logged per step and per epoch, the preferred value, under its own name."""
    parts = []
    for name, value in metrics.items():
        metric, _, level = name.rpartition("_")
        if level in ("step", "epoch") and {f"{metric}_step", f"{metric}_epoch"} <= metrics.keys():
            if level != prefer:
                continue
            name = metric
        parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "  ".join(parts)
