"""`LogHistory`: what it records, what it keeps apart, and what survives a checkpoint."""

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torchmetrics import MeanMetric

from replayml.core.errors import CheckpointError, ConfigurationError
from replayml.training.history import LogHistory
from replayml.training.records import Stage, metric_of, series_name
from tests.training.lightning_models import QUIET, Regression, loader


class Model(Regression):
    """Logs in every hook that may, and keeps what it logged, for comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = MeanMetric()
        self.logged: dict[str, list[float]] = {}

    def note(self, key: str, value: Tensor | float) -> None:
        self.logged.setdefault(key, []).append(torch.as_tensor(value).detach().item())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.note("train_loss", loss)
        self.log("loss", loss * 2, logger=False)
        if batch_idx % 2:
            self.log("odd", loss)
            self.note("odd", loss)
        self.spread(loss)
        self.log("spread", self.spread, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        late = self.layer.weight.detach().sum()
        self.log("late_step", late)
        self.note("late_step", late)

    def on_train_epoch_end(self) -> None:
        self.log("late_epoch", float(self.current_epoch) + 0.5)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        if not self.trainer.sanity_checking:
            self.note("val_loss", loss)
        self.log("val_loss", loss, on_step=True, on_epoch=True)
        self.log("loss", loss * 3)

    def on_validation_epoch_end(self) -> None:
        self.log("val_late", 7.0)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("accuracy", float(dataloader_idx), on_step=True, on_epoch=True)


class NotValidated(Model):
    """The same without validation."""

    validation_step = LightningModule.validation_step  # type: ignore[assignment]


def trainer(folder: Path, history: LogHistory, *callbacks: Callback, **options: Any) -> Trainer:
    """Return Lightning's own trainer with the history and nothing else."""
    options = {**QUIET, "enable_progress_bar": False, "max_epochs": 2, **options}
    return Trainer(default_root_dir=folder, callbacks=[history, *callbacks], **options)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Model, LogHistory]:
    """Return a model and the history of its training: 2 epochs of 3 batches, validated once per epoch."""
    model, history = Model(), LogHistory()
    trainer(tmp_path, history).fit(model, loader(), loader(8))
    return model, history


def test_step_values_are_those_that_were_logged(trained: tuple[Model, LogHistory]) -> None:
    """Each batch leaves the value that it logged, with its epoch and the optimizer steps taken."""
    model, history = trained
    assert history.step["train_loss"]["value"] == pytest.approx(model.logged["train_loss"])
    assert history.step["train_loss"]["epoch"] == [0, 0, 0, 1, 1, 1]
    assert history.step["train_loss"]["step"] == [1, 2, 3, 4, 5, 6]


def test_epoch_values_are_the_means_over_the_epoch(trained: tuple[Model, LogHistory]) -> None:
    """An epoch value is what Lightning reduced over the batches of the epoch, torchmetrics included."""
    model, history = trained
    losses = torch.tensor(model.logged["train_loss"]).reshape(2, 3).mean(1).tolist()
    assert history.epoch["train_loss"]["value"] == pytest.approx(losses)
    assert history.epoch["spread"]["value"] == pytest.approx(losses)
    assert history.epoch["train_loss"]["epoch"] == [0, 1]
    assert history.epoch["train_loss"]["step"] == [3, 6]


def test_names_are_those_given_to_log(trained: tuple[Model, LogHistory]) -> None:
    """A metric that is logged per step and per epoch stands at both levels under its own name."""
    _, history = trained
    assert set(history.step) == {"train_loss", "loss", "odd", "late_step", "val_loss"}
    assert set(history.epoch) == {"train_loss", "spread", "late_epoch", "val_loss", "val:loss", "val_late"}


def test_a_value_logged_now_and_then_is_recorded_only_then(trained: tuple[Model, LogHistory]) -> None:
    """A batch that logs nothing under a name adds nothing to its series."""
    model, history = trained
    assert history.step["odd"]["value"] == pytest.approx(model.logged["odd"])
    assert history.step["odd"]["step"] == [2, 5]


def test_what_the_modules_own_hooks_log_is_recorded(trained: tuple[Model, LogHistory]) -> None:
    """Values logged in hooks that run after the callbacks' count for their own batch and epoch."""
    model, history = trained
    assert history.step["late_step"]["value"] == pytest.approx(model.logged["late_step"])
    assert history.step["late_step"]["step"] == [1, 2, 3, 4, 5, 6]
    assert history.epoch["late_epoch"] == {"value": [0.5, 1.5], "epoch": [0, 1], "step": [3, 6]}
    assert history.epoch["val_late"] == {"value": [7.0, 7.0], "epoch": [0, 1], "step": [3, 6]}


def test_stages_never_share_a_series(trained: tuple[Model, LogHistory]) -> None:
    """A name that training and validation both log leaves two series, without the sanity check."""
    model, history = trained
    validated = torch.tensor(model.logged["val_loss"]).reshape(2, 2)
    assert history.step["loss"]["value"] == pytest.approx([2 * value for value in model.logged["train_loss"]])
    assert history.epoch["val:loss"]["value"] == pytest.approx((3 * validated.mean(1)).tolist())
    assert history.step["val_loss"]["value"] == pytest.approx(validated.flatten().tolist())
    assert history.step["val_loss"]["step"] == [3, 3, 6, 6]


def test_every_loader_of_a_test_has_its_series(tmp_path: Path) -> None:
    """With two test loaders each metric is recorded per loader, under Lightning's name for it."""
    history = LogHistory()
    trainer(tmp_path, history).test(Model(), [loader(8), loader(4)], verbose=False)
    first, second = "test:accuracy/dataloader_idx_0", "test:accuracy/dataloader_idx_1"
    assert {name: series["value"] for name, series in history.epoch.items()} == {first: [0.0], second: [1.0]}
    assert {name: series["value"] for name, series in history.step.items()} == {first: [0.0, 0.0], second: [1.0]}


def test_validation_within_an_epoch_is_recorded_each_time(tmp_path: Path) -> None:
    """Two validations per epoch leave two values with one epoch and different steps."""
    history = LogHistory()
    trainer(tmp_path, history, max_epochs=1, val_check_interval=2).fit(Model(), loader(16), loader(8))
    assert history.epoch["val_loss"]["epoch"] == [0, 0]
    assert history.epoch["val_loss"]["step"] == [2, 4]
    assert history.step["late_step"]["step"] == [1, 2, 3, 4]


def test_a_name_that_two_stages_share_is_not_recorded_twice(tmp_path: Path) -> None:
    """A value of training that a validation in between hid is not taken for a new one afterwards."""

    class Shares(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 0:
                self.log("shared", 1.0)
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("shared", 2.0)

    history = LogHistory()
    trainer(tmp_path, history, max_epochs=1, val_check_interval=1).fit(Shares(), loader(16), loader(8))
    assert history.step["shared"]["value"] == [1.0]
    assert history.epoch["val:shared"]["value"] == [2.0] * 4


def test_accumulated_batches_share_a_step(tmp_path: Path) -> None:
    """Every batch is recorded; those between two optimizer steps carry the same step number."""
    history = LogHistory()
    trainer(tmp_path, history, max_epochs=1, accumulate_grad_batches=2).fit(NotValidated(), loader(16))
    assert history.step["train_loss"]["step"] == [0, 1, 1, 2]


@pytest.mark.parametrize("every", [2, 3])
def test_every_n_steps_thins_the_steps_alone(tmp_path: Path, every: int) -> None:
    """Step values are kept for every n-th batch with the values they had, epoch values always."""
    full, thin = LogHistory(), LogHistory(every_n_steps=every)
    for history in (full, thin):
        torch.manual_seed(0)
        trainer(tmp_path, history).fit(NotValidated(), loader(24))
    kept = [index for index in range(12) if index % 6 % every == 0]
    for name in ("train_loss", "late_step"):
        assert thin.step[name]["value"] == [full.step[name]["value"][index] for index in kept]
    assert dict(thin.epoch) == dict(full.epoch)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_a_resumed_training_goes_on_with_its_history(tmp_path: Path) -> None:
    """A history that is resumed from a checkpoint equals the one of the training that was not interrupted."""
    whole, first, second = LogHistory(), LogHistory(), LogHistory()
    torch.manual_seed(0)
    trainer(tmp_path / "whole", whole, max_epochs=3).fit(NotValidated(), loader())
    torch.manual_seed(0)
    saved = ModelCheckpoint(tmp_path / "saved", save_on_train_epoch_end=True)
    trainer(tmp_path, first, saved, max_epochs=2, enable_checkpointing=True).fit(NotValidated(), loader())
    again = ModelCheckpoint(tmp_path / "saved", save_on_train_epoch_end=True)
    trainer(tmp_path, second, again, max_epochs=3, enable_checkpointing=True).fit(
        NotValidated(), loader(), ckpt_path=saved.best_model_path
    )
    assert second == whole != first
    assert second.step["train_loss"]["step"] == list(range(1, 10))


def test_the_state_is_plain_data(trained: tuple[Model, LogHistory], tmp_path: Path) -> None:
    """A checkpoint with a history opens with weights_only=True."""
    _, history = trained
    torch.save(history.state_dict(), tmp_path / "state.pt")
    again = LogHistory()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again == history


def test_weights_of_a_checkpoint_leave_the_history_alone(tmp_path: Path) -> None:
    """Testing the best checkpoint adds the test metrics and keeps the epochs that came after that checkpoint."""
    history = LogHistory()
    saved = ModelCheckpoint(tmp_path / "saved", monitor="train_loss", mode="max")
    fitted = trainer(tmp_path, history, saved, enable_checkpointing=True)
    fitted.fit(NotValidated(), loader())
    fitted.test(dataloaders=loader(4), ckpt_path="best", verbose=False)
    assert history.epoch["train_loss"]["epoch"] == [0, 1]
    assert history.epoch["test:accuracy"]["value"] == [0.0]


def test_a_failed_training_keeps_what_it_recorded(tmp_path: Path) -> None:
    """After an exception the history holds the batches before it, and the next run begins cleanly."""

    class Fails(NotValidated):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise RuntimeError("the third batch")

    history = LogHistory()
    with pytest.raises(RuntimeError, match="the third batch"):
        trainer(tmp_path, history).fit(Fails(), loader())
    assert history.step["train_loss"]["step"] == [1, 2]
    trainer(tmp_path, history, max_epochs=1).fit(NotValidated(), loader(4))
    assert history.step["train_loss"]["step"] == [1, 2, 1]


def test_only_rank_zero_records(tmp_path: Path) -> None:
    """On any other rank the history stays empty."""

    class SecondRank(Trainer):
        is_global_zero = False

    history = LogHistory()
    SecondRank(default_root_dir=tmp_path, max_epochs=1, callbacks=history, enable_progress_bar=False, **QUIET).fit(
        NotValidated(), loader()
    )
    assert history == LogHistory()


def test_copies_are_independent_and_equal(trained: tuple[Model, LogHistory]) -> None:
    """A deep copy and a pickled copy equal the history, and nothing that was handed out changes it."""
    _, history = trained
    before = history.to_dict()
    for again in (copy.deepcopy(history), pickle.loads(pickle.dumps(history))):
        assert again == history
    history.epoch["train_loss"]["value"].clear()
    history.to_dict()["epoch"].clear()
    history.state_dict()["step"].clear()
    assert history.to_dict() == before


numbers = st.floats(allow_nan=True, allow_infinity=True)
series = st.lists(st.tuples(numbers, st.integers(0, 9), st.integers(0, 99)), min_size=1, max_size=5).map(
    lambda rows: dict(zip(("value", "epoch", "step"), map(list, zip(*rows, strict=True)), strict=True))
)
level = st.dictionaries(st.text(min_size=1, max_size=8), series, max_size=4)


@given(epoch=level, step=level)
def test_a_state_read_back_is_the_history(epoch: dict[str, Any], step: dict[str, Any]) -> None:
    """load_state_dict(state_dict()) gives an equal history, NaN and infinity included."""
    history, again = LogHistory(), LogHistory()
    history.load_state_dict({"epoch": epoch, "step": step})
    again.load_state_dict(copy.deepcopy(history.state_dict()))
    assert again == history
    assert (history == LogHistory()) == (not epoch and not step)


stages = st.sampled_from(["train", "val", "test"])
names = st.lists(st.sampled_from(["train", "val", "test", "valid", "ing", "loss", "_", "/", ":"]), max_size=5).map(
    "".join
)


@given(stage=stages, other=stages, name=names, second=names)
def test_series_names_are_one_to_one(stage: Stage, other: Stage, name: str, second: str) -> None:
    """Two metrics share a name only if they are the same metric of the same stage."""
    for plain in (name, f"{other}:{second}", f"{second}_loss"):
        assert (series_name(stage, plain) == series_name(other, second)) == ((stage, plain) == (other, second))
    assert metric_of(series_name("val", "loss")) == metric_of(series_name("train", "train_loss")) == "loss"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"step": {}}, "no 'epoch' part"),
        ({"epoch": {"loss": {"value": [1.0], "epoch": [0]}}, "step": {}}, "'loss' at level 'epoch' is not three lists"),
        ({"epoch": {}, "step": {"x": {"value": [1.0], "epoch": [], "step": [1]}}}, "'x' at level 'step' is not three"),
    ],
)
def test_a_state_of_another_form_is_refused(state: dict[str, Any], message: str) -> None:
    """A damaged state raises, names what is wrong with it, and changes nothing."""
    history = LogHistory()
    with pytest.raises(CheckpointError, match=message):
        history.load_state_dict(state)
    assert history == LogHistory()


def test_an_unknown_name_shows_the_nearest(trained: tuple[Model, LogHistory]) -> None:
    """Asking for a metric that was not logged names the nearest one and lists all."""
    _, history = trained
    with pytest.raises(KeyError, match=r"no metric 'train_los' was logged. Did you mean 'train_loss'.*'val_late'"):
        history.epoch["train_los"]
    with pytest.raises(ConfigurationError, match=r"no metric 'acuracy' was logged\..*There is: .*'train_loss'"):
        history.plot("acuracy")


def test_it_reads_as_a_mapping_of_epoch_values(trained: tuple[Model, LogHistory]) -> None:
    """Indexed by a name, the history lists one value per epoch; it iterates over the names, and is never falsy."""
    _, history = trained
    assert history["val_late"] == history.epoch["val_late"]["value"] == [7, 7]
    assert "val_late" in history
    assert "val_lat" not in history
    assert list(history) == list(history.epoch)
    with pytest.raises(KeyError, match=r"no metric 'val_lat' was logged\. Did you mean 'val_late'"):
        history["val_lat"]
    assert LogHistory()
    assert list(LogHistory()) == []


def test_every_n_steps_is_positive() -> None:
    """A step of zero or less is refused."""
    with pytest.raises(ConfigurationError, match="every_n_steps >= 1, got 0"):
        LogHistory(every_n_steps=0)


def test_it_shows_what_it_holds(trained: tuple[Model, LogHistory]) -> None:
    """The repr has a line per metric with its counts and its last value."""
    _, history = trained
    assert "  train_loss: 2 epochs, 6 steps, last " in repr(history)
    assert "  val_late: 2 epochs, 0 steps, last 7\n" in repr(history)
    assert repr(history.epoch).startswith("LoggedMetrics(")
    assert "val_late: 2" in repr(history.epoch)
    assert repr(LogHistory()) == "LogHistory()"


def test_the_plot_has_a_panel_per_metric(trained: tuple[Model, LogHistory]) -> None:
    """Training and validation values of one metric stand in one panel, at the steps where they were logged."""
    from matplotlib import pyplot

    _, history = trained
    figure = history.plot()
    labels = [sorted(axes.get_legend_handles_labels()[1]) for axes in figure.axes]
    assert ["loss", "train_loss", "val:loss", "val_loss"] in labels
    assert len(figure.axes) == 6
    pyplot.close(figure)

    figure = history.plot("loss", x="epoch")
    axes = figure.axes[0]
    drawn = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert set(drawn) == {"train_loss", "val_loss", "val:loss"}
    assert drawn["val_loss"] == [[epoch, history.epoch["val_loss"]["value"][epoch]] for epoch in (0, 1)]
    assert axes.get_xlabel() == "epoch"
    axes.clear()
    assert history.plot(["late_epoch", "val_late"], axes=axes) is figure
    assert len(axes.lines) == 2
    pyplot.close(figure)


def test_an_empty_history_has_no_plot() -> None:
    """Plotting before training says what to do first."""
    with pytest.raises(ConfigurationError, match="nothing to plot over the steps; train with this history first"):
        LogHistory().plot()


def test_without_matplotlib_the_extra_is_named(
    trained: tuple[Model, LogHistory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where matplotlib is missing, the error names the extra to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "replayml\[demo\]"'):
        trained[1].plot()
