"""The history of a training: every metric that was logged, per epoch and per step.

`LogHistory` is an ordinary Lightning callback. It reads what ``self.log`` was given, whether or not a logger writes
it, and keeps it as plain numbers.

Invariants:
    * A logged value is recorded once, with the epoch it was logged in and the optimizer steps taken by then.
    * Training, validation and test never share a series: a validation or test metric whose name does not tell its
      stage gets the stage in front (``"accuracy"`` becomes ``"val:accuracy"``).
    * The sanity check leaves no record, and only rank zero keeps any.
    * The state is numbers, strings, lists and dicts, so that ``torch.load(weights_only=True)`` opens it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from torch import Tensor

from replayml.core.errors import ConfigurationError
from replayml.training.records import Level, LoggedMetrics, Series, Stage, checked, draw, empty, series_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LogHistory"]

_LOADER = "/dataloader_idx_"
# Values wait on their device, so that recording a step does not wait for it; this many at the most.
_MOST_WAITING = 1000


class _Moment(NamedTuple):
    """Where a value belongs: its stage and level, and when it was logged."""

    stage: Stage
    level: Level
    epoch: int
    step: int
    kept: bool


# The last tensor under each name, by stage: training and validation take turns, and may log the same names.
_Seen = dict[Literal["callback", "logged"], dict[str, dict[Stage, Tensor]]]


class LogHistory(Callback):
    """Records every metric that is logged during training, validation and test.

    ``history["val_loss"]`` lists one value per epoch. ``history.epoch`` holds what was logged with ``on_epoch=True``,
    ``history.step`` what was logged with ``on_step=True``, each under the name given to ``self.log``, without the
    endings ``_epoch`` and ``_step`` that Lightning appends where a metric is logged at both. A validation or test
    metric whose name does not tell its stage is kept as ``val:name`` or ``test:name``. Epochs count from 0, as in
    Lightning; ``step`` is the number of optimizer steps taken when the value was logged.

    The records are saved in checkpoints and come back when ``fit`` resumes from one. Under a strategy that trains in
    spawned processes (``"ddp_spawn"``, ``"ddp_notebook"``) they stay in those processes and in the checkpoints.

    Args:
        every_n_steps: Keep the step values of every n-th batch only, so that the history of a very long training
            stays small. Epoch values are always kept.

    Example:
        >>> history = LogHistory()
        >>> history.load_state_dict(
        ...     {"epoch": {"val_loss": {"value": [0.7, 0.5], "epoch": [0, 1], "step": [8, 16]}}, "step": {}}
        ... )
        >>> history.epoch["val_loss"]
        {'value': [0.7, 0.5], 'epoch': [0, 1], 'step': [8, 16]}
        >>> history
        LogHistory(
          val_loss: 2 epochs, 0 steps, last 0.5
        )
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise ConfigurationError(f"LogHistory takes every_n_steps >= 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._records: dict[Level, dict[str, Series]] = {"epoch": {}, "step": {}}
        self._waiting: list[tuple[str, Tensor, _Moment]] = []
        self._seen: _Seen = {"callback": {}, "logged": {}}
        self._moment: _Moment | None = None
        self._only_evaluates = False

    # -------------------------------------------------------------------------------------------------- what was logged

    @property
    def epoch(self) -> LoggedMetrics:
        """What was logged per epoch: ``history.epoch["val_loss"]["value"]`` holds one value per epoch."""
        self._store_waiting()
        return LoggedMetrics(self._records["epoch"])

    @property
    def step(self) -> LoggedMetrics:
        """What was logged per step: ``history.step["train_loss"]["value"]`` holds one value per batch."""
        self._store_waiting()
        return LoggedMetrics(self._records["step"])

    @property
    def history(self) -> LoggedMetrics:
        """The same as `epoch`, under Deeplay's name."""
        return self.epoch

    @property
    def step_history(self) -> LoggedMetrics:
        """The same as `step`, under Deeplay's name."""
        return self.step

    def __getitem__(self, name: str) -> list[Any]:
        """Return one value per epoch: ``history["val_loss"]``; see `epoch` for when each was logged."""
        return self.epoch[name]["value"]

    def __contains__(self, name: object) -> bool:
        return name in self.epoch

    def __iter__(self) -> Iterator[str]:
        return iter(self.epoch)

    def to_dict(self) -> dict[Level, dict[str, Series]]:
        """Return a copy of all records: ``{"epoch": {name: series}, "step": {name: series}}``."""
        return {"epoch": dict(self.epoch), "step": dict(self.step)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogHistory):
            return NotImplemented
        # Compared as text, so that a NaN equals a NaN.
        return all(
            repr(sorted(mine.items())) == repr(sorted(theirs.items()))
            for mine, theirs in ((self.epoch, other.epoch), (self.step, other.step))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        epoch, step = self.epoch, self.step
        lines = []
        for name in dict.fromkeys((*epoch, *step)):
            counts = [len(level[name]["value"]) if name in level else 0 for level in (epoch, step)]
            last = (epoch if name in epoch else step)[name]["value"][-1]
            shown = f"{last:.4g}" if isinstance(last, float) else str(last)
            lines.append(f"  {name}: {counts[0]} epochs, {counts[1]} steps, last {shown}")
        return "\n".join(["LogHistory(", *lines, ")"]) if lines else "LogHistory()"

    def plot(
        self,
        keys: str | Sequence[str] | None = None,
        *,
        x: Level = "step",
        axes: Axes | None = None,
    ) -> Figure:
        """Draw the history: one panel per metric, with its training, validation and test values.

        Args:
            keys: What to draw: full names (``"val_loss"``), or names without the stage (``"loss"`` for all stages).
                None draws everything.
            x: ``"step"`` draws step values as a thin line and epoch values as points over the optimizer steps;
                ``"epoch"`` draws the epoch values alone, over the epochs.
            axes: Draw everything into these axes instead of into a new figure.

        Returns:
            The matplotlib figure.

        Raises:
            ConfigurationError: When a key was not logged, or nothing was.
            ImportError: When matplotlib is not installed; it is part of the extra ``demo``.
        """
        return draw(self.epoch, self.step, keys, x, axes)

    # ------------------------------------------------------------------------------------------------- its life on disk

    def state_dict(self) -> dict[str, Any]:
        """Return the records as plain data."""
        return {"epoch": dict(self.epoch), "step": dict(self.step)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replace the records by those of a checkpoint.

        A checkpoint whose weights alone are wanted, by ``trainer.test(ckpt_path="best")`` for example, changes nothing.

        Raises:
            CheckpointError: When the state is not one that `state_dict` returned.
        """
        if self._only_evaluates:
            return
        self._records = {
            "epoch": checked(state_dict.get("epoch"), "epoch"),
            "step": checked(state_dict.get("step"), "step"),
        }
        self._waiting = []

    def __getstate__(self) -> dict[str, Any]:
        # What Lightning attaches during a run, the log function of the module, is not part of a copy.
        return {"every_n_steps": self.every_n_steps, "records": self.to_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LogHistory.__init__(self, state["every_n_steps"])
        self._records = state["records"]

    # ------------------------------------------------------------------------------------------------ Lightning's calls

    def setup(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a run, for which Lightning starts with no metrics."""
        self._begin_run(only_evaluates=stage != "fit")

    def teardown(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        """End a run."""
        self._begin_run(only_evaluates=False)

    def on_exception(self, trainer: LightningTrainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End a run that failed or was interrupted; what was recorded stays."""
        self._begin_run(only_evaluates=False)

    def on_train_batch_start(
        self, trainer: LightningTrainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Catch up on what the module's own ``on_train_batch_end`` logged."""
        self._close_moment(trainer)

    def on_train_batch_end(
        self, trainer: LightningTrainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step values of a training batch."""
        self._moment = self._record(trainer, "train", "step", batch_idx)

    def on_train_epoch_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Catch up on what the module's own ``on_train_epoch_end`` logged."""
        self._close_moment(trainer)

    def on_train_epoch_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Record the epoch values of a training epoch."""
        self._moment = self._record(trainer, "train", "epoch")

    def on_train_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Catch up on what the module's own ``on_train_epoch_end`` logged in the last epoch."""
        self._close_moment(trainer)

    def on_validation_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Catch up on the training batch before a validation; look at what was logged before it, or before a test."""
        self._close_moment(trainer)
        self._new(trainer, "logged", _evaluation(trainer))

    def on_validation_batch_start(
        self, trainer: LightningTrainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the epoch values of the previous loader when the next one begins, in a validation or a test."""
        if batch_idx == 0 and dataloader_idx > 0:
            self._record(trainer, _evaluation(trainer), "epoch")
            self._new(trainer, "logged", _evaluation(trainer))

    def on_validation_batch_end(
        self,
        trainer: LightningTrainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Record the step values of a batch of a validation or a test."""
        self._record(trainer, _evaluation(trainer), "step", batch_idx)

    def on_validation_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Record the epoch values of a validation or a test."""
        self._record(trainer, _evaluation(trainer), "epoch")

    on_test_start, on_test_end = on_validation_start, on_validation_end
    on_test_batch_start, on_test_batch_end = on_validation_batch_start, on_validation_batch_end

    def on_save_checkpoint(
        self, trainer: LightningTrainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Catch up before the state is written: Lightning asks for it before the last values of an epoch are here."""
        if self._moment is not None and "callbacks" in checkpoint:
            self._record_new(trainer, self._moment)
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    # --------------------------------------------------------------------------------------------------- how it records
    #
    # Lightning merges all metrics into a dict and leaves old ones in it, so what is new is found by comparing
    # storages with the last look: logging makes a new tensor, and holding the old one keeps its address taken.
    # Lightning calls the module's hooks after the callbacks'; a moment stays open until that has happened.
    # Every rank looks, for looking may reduce a metric over the ranks; rank zero alone records.

    def _begin_run(self, *, only_evaluates: bool) -> None:
        self._store_waiting()
        self._seen = {"callback": {}, "logged": {}}
        self._moment = None
        self._only_evaluates = only_evaluates

    def _record(self, trainer: LightningTrainer, stage: Stage, level: Level, batch_idx: int = 0) -> _Moment:
        """Record what was logged since the last look, as logged now."""
        kept = not trainer.sanity_checking and (level == "epoch" or batch_idx % self.every_n_steps == 0)
        moment = _Moment(stage, level, trainer.current_epoch, trainer.global_step, kept)
        self._record_new(trainer, moment)
        return moment

    def _close_moment(self, trainer: LightningTrainer) -> None:
        """Record what came late for the open moment, and close it."""
        if self._moment is not None:
            self._record_new(trainer, self._moment)
            self._moment = None

    def _new(self, trainer: LightningTrainer, source: Literal["callback", "logged"], stage: Stage) -> dict[str, Tensor]:
        """Return what was logged since the last look at the source."""
        new = {}
        for name, value in (trainer.callback_metrics if source == "callback" else trainer.logged_metrics).items():
            seen = self._seen[source].setdefault(name, {})
            if not any(_same(value, other) for other in seen.values()):
                new[name] = seen[stage] = value.detach()
        return new

    def _record_new(self, trainer: LightningTrainer, moment: _Moment) -> None:
        """Record what was logged since the last look at the moment."""
        # Lightning keeps the step values of an evaluation out of callback_metrics.
        logged_apart = moment.stage != "train" and moment.level == "step"
        new = self._new(trainer, "logged" if logged_apart else "callback", moment.stage)
        if not trainer.is_global_zero:
            return
        twins = {_forked(name, moment.level): name for name in new}
        for name, value in new.items():
            if name in twins and _same(value, new[twins[name]]):
                continue
            series = series_name(moment.stage, name)
            at_both_levels = _forked(name, moment.level) in new
            if at_both_levels and moment.level == "epoch":
                self._merge_steps(series_name(moment.stage, _forked(name, "step")), series)
            when = moment if at_both_levels else self._moment_of(series, moment)
            if when.kept:
                self._waiting.append((series, value, when))
        if moment.level == "epoch" or len(self._waiting) > _MOST_WAITING:
            self._store_waiting()

    def _moment_of(self, series: str, moment: _Moment) -> _Moment:
        """Return when a new value was logged: at the end of an epoch it may be a late step value of the last batch."""
        last = self._moment
        if moment.level == "epoch" and last is not None and last.level == "step":
            self._store_waiting()
            if series in self._records["step"] and series not in self._records["epoch"]:
                return last
        return moment

    def _merge_steps(self, forked: str, series: str) -> None:
        """Give the step values of an evaluation, which come under Lightning's forked name, the name of the metric."""
        self._store_waiting()
        found = self._records["step"].pop(forked, None)
        if found is not None:
            kept = self._records["step"].setdefault(series, empty())
            kept["value"] += found["value"]
            kept["epoch"] += found["epoch"]
            kept["step"] += found["step"]

    def _store_waiting(self) -> None:
        """Turn the waiting tensors into numbers."""
        waiting, self._waiting = self._waiting, []
        for name, value, moment in waiting:
            series = self._records[moment.level].setdefault(name, empty())
            series["value"].append(value.item() if value.numel() == 1 else value.tolist())
            series["epoch"].append(moment.epoch)
            series["step"].append(moment.step)


def _evaluation(trainer: LightningTrainer) -> Stage:
    return "test" if trainer.testing else "val"


def _same(value: Tensor, other: Tensor) -> bool:
    return value.data_ptr() == other.data_ptr()


def _forked(name: str, level: Level) -> str:
    """Return the name that Lightning makes of a metric that is logged at both levels."""
    metric, mark, loader = name.partition(_LOADER)
    return f"{metric}_{level}{mark}{loader}"
