"""`Trainer`: Lightning's, with a history and a progress bar of its own."""

import inspect
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner.tuning import Tuner
from torch.utils.data import DataLoader

from replayml.core.errors import ConfigurationError
from replayml.training.history import LogHistory
from replayml.training.progress import ProgressBar
from replayml.training.trainer import Trainer
from tests.training.lightning_models import QUIET, Regression, loader

REPOSITORY = Path(__file__).parents[2]


def test_it_has_a_history_and_a_progress_bar() -> None:
    """By default a trainer records a history and shows replayml's progress bar, and no other."""
    trainer = Trainer(**QUIET)
    assert trainer.history == LogHistory()
    assert type(trainer.progress_bar_callback) is ProgressBar


def test_what_the_user_gives_wins() -> None:
    """A history and a progress bar among the callbacks are used as they are, Lightning's own bar included."""
    history, bar = LogHistory(every_n_steps=5), RichProgressBar()
    given = [history, bar]
    trainer = Trainer(**QUIET, callbacks=given)
    assert trainer.history is history
    assert trainer.progress_bar_callback is bar
    assert given == [history, bar]


def test_a_list_of_callbacks_serves_two_trainers() -> None:
    """Making a trainer leaves the list of callbacks alone, so that the next one gets defaults of its own."""
    given: list[Callback] = [EarlyStopping("val_loss")]
    first, second = Trainer(**QUIET, callbacks=given), Trainer(**QUIET, callbacks=given)
    assert len(given) == 1
    assert first.history is not second.history
    assert first.progress_bar_callback is not second.progress_bar_callback


def test_the_progress_bar_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """enable_progress_bar=False leaves it out, as an argument and as Lightning's environment variable."""
    assert Trainer(**QUIET, enable_progress_bar=False).progress_bar_callback is None
    monkeypatch.setenv("PL_TRAINER_ENABLE_PROGRESS_BAR", "False")
    assert Trainer(**QUIET).progress_bar_callback is None


def test_barebones_keeps_no_history() -> None:
    """With barebones=True nothing is recorded, and asking for the history says why."""
    trainer = Trainer(barebones=True, accelerator="cpu")
    assert not any(isinstance(callback, LogHistory) for callback in trainer.callbacks)
    with pytest.raises(ConfigurationError, match="keeps no history, for barebones=True turns logging off"):
        _ = trainer.history


def test_editors_see_the_signatures_of_lightning() -> None:
    """inspect.signature gives Lightning's parameters, their defaults and annotations."""
    assert inspect.signature(Trainer) == inspect.signature(lightning.Trainer)
    assert inspect.signature(Trainer.fit) == inspect.signature(lightning.Trainer.fit)


def test_an_unknown_argument_is_refused() -> None:
    """An argument that Lightning does not take raises as it does there."""
    with pytest.raises(TypeError, match="max_epoch"):
        Trainer(**QUIET, max_epoch=3)  # type: ignore[call-arg]


def test_the_history_is_that_of_the_training(tmp_path: Path) -> None:
    """trainer.history holds what fit, validate and test logged."""
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, max_epochs=2, enable_progress_bar=False)
    model = Regression()
    trainer.fit(model, loader(), loader(8))
    trainer.validate(model, loader(8), verbose=False)
    trainer.test(model, loader(8), verbose=False)
    assert {name: series["step"] for name, series in trainer.history.epoch.items()} == {
        "train_loss": [3, 6],
        "val_loss": [3, 6, 6],
        "test_loss": [6],
    }


def test_the_history_comes_back_with_the_training(tmp_path: Path) -> None:
    """A training that is resumed from a checkpoint goes on with the history of the checkpoint."""
    options: dict[str, Any] = {**QUIET, "default_root_dir": tmp_path, "enable_progress_bar": False}
    first, second = Trainer(**options, max_epochs=1), Trainer(**options, max_epochs=2)
    first.fit(Regression(), loader(), loader(8))
    first.save_checkpoint(tmp_path / "one.ckpt")
    second.fit(Regression(), loader(), loader(8), ckpt_path=tmp_path / "one.ckpt")
    assert second.history.epoch["val_loss"]["epoch"] == [0, 1]
    assert second.history.epoch["val_loss"]["value"][0] == first.history.epoch["val_loss"]["value"][0]


def test_early_stopping_and_checkpoints_work_without_validation(tmp_path: Path) -> None:
    """Callbacks that watch a training metric work when there is no validation data."""
    best = ModelCheckpoint(tmp_path, monitor="train_loss")
    options = {**QUIET, "enable_checkpointing": True, "enable_progress_bar": False}
    stop = EarlyStopping("train_loss", patience=9, check_on_train_epoch_end=True)
    trainer = Trainer(**options, default_root_dir=tmp_path, max_epochs=3, callbacks=[best, stop])
    trainer.fit(Regression(), loader())
    assert trainer.current_epoch == 3
    assert Path(best.best_model_path).exists()
    assert trainer.limit_val_batches == 1.0


def test_validation_data_of_the_model_or_a_data_module_is_used(tmp_path: Path) -> None:
    """Leaving out val_dataloaders does not skip the validation data that the model or the data module has."""

    class HasData(Regression):
        def val_dataloader(self) -> DataLoader[Any]:
            return loader(8)

    class Data(LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return loader()

        def val_dataloader(self) -> DataLoader[Any]:
            return loader(8)

    options: dict[str, Any] = {**QUIET, "default_root_dir": tmp_path, "enable_progress_bar": False, "max_epochs": 1}
    for model, data in ((HasData(), (loader(),)), (Regression(), (Data(),))):
        trainer = Trainer(**options)
        trainer.fit(model, *data)
        assert "val_loss" in trainer.history.epoch


@pytest.mark.parametrize(
    ("options", "samples", "interval"),
    [
        ({}, 12, 3),
        ({}, 800, 50),
        ({"limit_train_batches": 2}, 12, 2),
        ({"limit_train_batches": 0.5}, 16, 2),
        ({"log_every_n_steps": 2}, 12, 2),
    ],
)
def test_short_epochs_are_logged(tmp_path: Path, options: dict[str, Any], samples: int, interval: int) -> None:
    """The logging interval is the user's, else Lightning's 50 or the batches of an epoch where those are fewer."""
    trainer = Trainer(
        **{**QUIET, "logger": CSVLogger(tmp_path), "max_epochs": 1, "enable_progress_bar": False, **options}
    )
    trainer.fit(Regression(), loader(samples))
    assert trainer.log_every_n_steps == interval


def test_a_tuner_works_with_it(tmp_path: Path) -> None:
    """Lightning's Tuner finds a learning rate, and leaves no trace in the history."""
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, max_epochs=1, enable_progress_bar=False)
    model = Regression(lr=1e-6)
    found = Tuner(trainer).lr_find(model, loader(80), loader(8), num_training=20)
    assert found is not None
    assert model.lr != 1e-6
    assert trainer.history == LogHistory()
    trainer.fit(model, loader(), loader(8))
    assert trainer.history.epoch["val_loss"]["epoch"] == [0]


def test_callbacks_are_taken_out_and_exchanged_later() -> None:
    """Deeplay's methods take out the history or the progress bar, or put one of Lightning's in its place."""
    trainer = Trainer(**QUIET, max_epochs=1)
    trainer.tqdm_progress_bar(refresh_rate=5)
    assert type(trainer.progress_bar_callback) is TQDMProgressBar
    assert trainer.progress_bar_callback.refresh_rate == 5
    trainer.rich_progress_bar(leave=True)
    assert type(trainer.progress_bar_callback) is RichProgressBar
    trainer.disable_progress_bar()
    assert trainer.progress_bar_callback is None
    trainer.disable_history()
    with pytest.raises(ConfigurationError, match="keeps no history, for it was taken out"):
        _ = trainer.history
    trainer.fit(Regression(), loader())


def test_saving_logs_nothing_about_what_was_not_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint is written as Lightning writes it, optimizers included or not, without a line about a default."""
    trainer = Trainer(**QUIET, max_epochs=1)
    trainer.fit(Regression(), loader())
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer.save_checkpoint(tmp_path / "all.ckpt")
        trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert "weights_only" not in caplog.text
    assert "optimizer_states" in torch.load(tmp_path / "all.ckpt", weights_only=True)
    assert "optimizer_states" not in torch.load(tmp_path / "weights.ckpt", weights_only=True)
    assert list(inspect.signature(Trainer.save_checkpoint).parameters) == list(
        inspect.signature(lightning.Trainer.save_checkpoint).parameters
    )


def test_neither_warnings_nor_logging_are_changed(tmp_path: Path) -> None:
    """A training leaves the warning filters and the log levels of the process as they were."""
    loggers = [logging.getLogger(name) for name in ("", "lightning", "lightning.pytorch", "replayml")]
    filters, levels = list(warnings.filters), [logger.level for logger in loggers]
    Trainer(**QUIET, default_root_dir=tmp_path, max_epochs=1).fit(Regression(), loader())
    assert list(warnings.filters) == filters
    assert [logger.level for logger in loggers] == levels


def test_without_tensorboard_metrics_go_to_csv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where TensorBoard is not installed, the default logger writes CSV files into the usual folder."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu")
    assert isinstance(trainer.logger, CSVLogger)
    assert Path(trainer.logger.log_dir) == tmp_path / "lightning_logs" / "version_0"
    assert Trainer(logger=False, accelerator="cpu").logger is None


SCRIPT = """
import warnings
from replayml.training.trainer import Trainer
from tests.training.lightning_models import Regression, loader

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    Trainer(max_epochs=1, accelerator="cpu").fit(Regression(), loader())
for warning in caught:
    print("WARNED", warning.message)
"""


def test_the_default_use_gives_no_advice(tmp_path: Path) -> None:
    """Training with nothing but defaults raises no warning, but for torch's and the one about worker processes."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    warned = [line for line in done.stdout.splitlines() if line.startswith("WARNED")]
    assert [line for line in warned if "LeafSpec" not in line and "many workers" not in line] == []
