"""Resuming, `ckpt_path`, callbacks and the Tuner: what Lightning does with an application, and that it stays exact."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn

import replayml
from tests.training.applications import (
    QUIET,
    Digits,
    Hooked,
    Scaled,
    best_path,
    classifier,
    digits,
    loader,
    network,
    plain_trainer,
    saving,
)
from tests.training.lightning_models import Regression
from tests.training.lightning_models import loader as regression_loader

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create:UserWarning",
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
    "ignore:The dirpath has changed from:UserWarning",
)


def dropping(**options: Any) -> replayml.Classifier:
    """Return a classifier that draws random numbers while it trains."""
    model = replayml.Sequential(network(width=32), replayml.Layer(nn.Dropout, 0.3))
    return replayml.Classifier(model, num_classes=10, optimizer=replayml.AdamW(lr=0.01), **options)


def same_weights(one: Any, other: Any) -> bool:
    """Tell whether two models have bit-identical weights."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# Resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validating", [True, False])
@pytest.mark.parametrize("built", [True, False])
def test_resumed_training_is_bit_identical(built: bool, validating: bool, tmp_path: Path) -> None:
    """Two epochs and two more after a resume give the very weights of four, shuffling and dropout included."""
    val = digits() if validating else None
    whole = dropping().build(digits()[0][:1])
    first = copy.deepcopy(whole)
    torch.manual_seed(7)
    straight = whole.fit(digits(), val, max_epochs=4, **QUIET)
    torch.manual_seed(7)
    trainer = first.fit(digits(), val, max_epochs=2, **saving(tmp_path))
    torch.manual_seed(99)
    second = first.new()
    if built:
        second.build(digits()[0][:1])
    resumed = second.fit(digits(), val, max_epochs=4, ckpt_path=best_path(trainer), **saving(tmp_path))
    assert same_weights(whole, second)
    assert resumed.current_epoch == 4
    assert resumed.history.epoch["train_loss"] == straight.history.epoch["train_loss"]


def test_a_loaded_application_resumes(tmp_path: Path) -> None:
    """An application that was loaded without its class resumes from the very file that its weights are read from."""
    whole = dropping().build(digits()[0][:1])
    first = copy.deepcopy(whole)
    torch.manual_seed(7)
    whole.fit(digits(), max_epochs=3, **QUIET)
    torch.manual_seed(7)
    path = best_path(first.fit(digits(), max_epochs=1, **saving(tmp_path)))
    again = replayml.Application.load_from_checkpoint(path)
    again.fit(digits(), max_epochs=3, ckpt_path=path, **saving(tmp_path))
    assert same_weights(whole, again)


def test_resuming_with_a_plain_trainer(tmp_path: Path) -> None:
    """lightning.Trainer resumes an unbuilt application with its optimizer, its scheduler and its epoch."""
    data = loader(digits())
    first = Scaled(12)
    trainer = plain_trainer(**{**saving(tmp_path), "max_epochs": 2})
    trainer.fit(first, data, data)
    second = first.new()
    resumed = plain_trainer(**{**saving(tmp_path), "max_epochs": 3})
    resumed.fit(second, data, data, ckpt_path=best_path(trainer))
    assert (resumed.current_epoch, resumed.global_step) == (3, 18)
    assert resumed.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**3)
    assert len(resumed.optimizers[0].state) == 4


def test_ckpt_path_names(tmp_path: Path) -> None:
    """The names "best" and "last" are found by validate, test and predict, and differ where training went astray."""
    saver = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1, save_last=True)
    spoiler = Spoiler()
    app = classifier()
    options = saving(tmp_path, callbacks=[saver, spoiler])
    trainer = app.fit(loader(digits(), shuffle=True), loader(digits()), max_epochs=3, **options)
    assert saver.best_model_score is not None
    found = {name: app.validate(digits(), trainer=trainer, ckpt_path=name, batch_size=100) for name in ("best", "last")}
    assert found["best"]["val_loss"] == pytest.approx(float(saver.best_model_score))
    assert found["last"]["val_loss"] > 2 * found["best"]["val_loss"]
    tested = app.test(digits(), trainer=trainer, ckpt_path="best", batch_size=100)
    assert tested["test_loss"] == pytest.approx(found["best"]["val_loss"])
    predicted: Any = trainer.predict(app, loader(digits()), ckpt_path="last")
    last = replayml.Application.load_from_checkpoint(saver.last_model_path)
    assert torch.equal(torch.cat(predicted), last.predict(digits()[0], batch_size=100))


class Spoiler(Callback):
    """Ruins the model in the last epoch."""

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 2:
            with torch.no_grad():
                pl_module.model[2].weight.mul_(-3)


# Callbacks ------------------------------------------------------------------------------------------------------


def test_early_stopping_and_the_best_checkpoint(tmp_path: Path) -> None:
    """EarlyStopping and ModelCheckpoint watch the metrics that an application logs, and every kept file loads."""
    saver = ModelCheckpoint(
        tmp_path, monitor="val_accuracy", mode="max", save_top_k=2, filename="{epoch}-{val_accuracy:.2f}"
    )
    stopper = EarlyStopping("val_loss", patience=1, min_delta=10)
    app = classifier()
    trainer = app.fit(digits(), digits(), max_epochs=9, **saving(tmp_path, callbacks=[saver, stopper]))
    assert trainer.current_epoch == 2
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 2
    for path in files:
        found = replayml.Application.load_from_checkpoint(path).validate(digits(), **QUIET)
        assert f"{found['val_accuracy']:.2f}" in path.name


def test_gradients_are_clipped_and_accumulated() -> None:
    """Lightning's gradient clipping and accumulation work on an application."""
    app = classifier(optimizer=replayml.SGD(lr=1.0))
    seen = Norms()
    options = {**QUIET, "gradient_clip_val": 0.01, "accumulate_grad_batches": 3, "callbacks": [seen]}
    trainer = app.fit(digits(), max_epochs=1, batch_size=100, **options)
    assert trainer.global_step == 2
    assert seen.norms
    assert max(seen.norms) < 0.011


class Norms(Callback):
    """Notes the norm of the gradients at each step, after they were clipped."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        if gradients:
            self.norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))


def test_checkpoints_within_an_epoch_and_without_optimizer(tmp_path: Path) -> None:
    """Files written every few steps, and those with the weights alone, load like any other."""
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, save_weights_only=True)
    app = classifier()
    app.fit(loader(digits()), max_epochs=1, **saving(tmp_path, callbacks=[saver]))
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 3
    losses = [replayml.Application.load_from_checkpoint(path).test(digits(), **QUIET)["test_loss"] for path in files]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("built", [True, False])
def test_callbacks_that_look_at_the_weights_early(built: bool) -> None:
    """Weight averaging and pruning, which look at the model before it is configured, find an unbuilt one built."""
    data = loader(digits())
    for callback in (StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1), ModelPruning("l1_unstructured")):
        app = classifier()
        if built:
            app.build(digits()[0][:1])
        trainer = plain_trainer(max_epochs=3, callbacks=[callback])
        trainer.fit(app, data, data)
        assert trainer.callback_metrics["val_accuracy"] > 0.5


class OwnData(replayml.Classifier):
    def setup(self, stage: str) -> None:
        self.data = loader(digits())

    def train_dataloader(self) -> Any:
        return self.data

    val_dataloader = train_dataloader


def test_data_that_the_application_prepares_is_waited_for() -> None:
    """An application whose setup() prepares its data is built after that."""
    app = OwnData(network(), num_classes=10)
    plain_trainer().fit(app)
    assert app.model[0].in_features == 64


def test_a_trainer_takes_turns() -> None:
    """One trainer trains several applications and other modules; each application's hooks run for itself."""
    trainer = plain_trainer()
    apps = [Hooked(), Hooked()]
    for number, app in enumerate(apps):
        app.thaw(0)
        trainer.fit(app, loader(digits()), loader(digits()))
        trainer.fit_loop.max_epochs = number + 2
    trainer.fit(Regression(), regression_loader(), regression_loader())
    assert [len(app.seen) for app in apps] == [1, 1]
    assert len(trainer.callbacks) == len({type(callback) for callback in trainer.callbacks})  # type: ignore[attr-defined]


# The Tuner ------------------------------------------------------------------------------------------------------


def test_the_tuner_finds_a_learning_rate(tmp_path: Path) -> None:
    """lr_find suggests a rate and sets it: on the optimizer that trains, in new() and in the checkpoint."""
    app = classifier(optimizer=replayml.SGD(lr=1e-7))
    assert app.lr == 1e-7
    trainer = plain_trainer(**{**saving(tmp_path), "max_epochs": 1})
    tuner = Tuner(trainer)
    found: Any = tuner.lr_find(app, loader(digits(), batch_size=20), loader(digits()), num_training=30)
    assert app.lr == found.suggestion()
    assert app.lr > 1e-6
    assert app.new().lr == app.lr
    trainer.fit(app, loader(digits()), loader(digits()))
    assert trainer.optimizers[0].param_groups[0]["lr"] == app.lr
    assert replayml.Application.load_from_checkpoint(best_path(trainer)).lr == app.lr


def test_the_learning_rate_finder_as_a_callback() -> None:
    """LearningRateFinder changes the rate of the training in which it stands."""
    app = classifier(optimizer=replayml.Adam(lr=1e-7))
    finder = LearningRateFinder(num_training_steps=20)
    trainer = app.fit(loader(digits(), batch_size=20), loader(digits()), max_epochs=1, **QUIET, callbacks=[finder])
    assert finder.optimal_lr is not None
    assert trainer.optimizers[0].param_groups[0]["lr"] == app.lr == finder.optimal_lr.suggestion()


def test_the_tuner_scales_the_batch_size(tmp_path: Path) -> None:
    """scale_batch_size tries sizes with an application and a data module, and leaves the application as it was."""
    app, data = classifier().build(digits()[0][:1]), Digits(batch_size=4)
    before = copy.deepcopy(app.state_dict())
    tuner = Tuner(plain_trainer(default_root_dir=tmp_path))
    found = tuner.scale_batch_size(app, datamodule=data, max_trials=2, steps_per_trial=1, init_val=4)
    assert data.batch_size == found == 8
    assert all(torch.equal(value, before[name]) for name, value in app.state_dict().items())


def test_the_learning_rate_is_the_optimizers() -> None:
    """app.lr reads and sets the optimizer's rate, before and after the build; on the tape it is a configuration."""
    app = classifier(optimizer=replayml.SGD(lr=0.5))
    app.lr = 0.25
    assert (app.optimizer.lr, len(app.tape)) == (0.25, 1)
    app.build(digits()[0][:1])
    app.lr = 0.125
    copied = copy.deepcopy(app)
    app.lr = 0.0625
    assert (app.lr, app.new().lr, app.configure_optimizers().defaults["lr"]) == (0.0625, 0.0625, 0.0625)
    assert (copied.lr, copied.new().lr) == (0.125, 0.125)
    assert str(app.tape[-1]) == "model.optimizer.configure(lr=0.0625)"


class OwnRate(replayml.Classifier):
    def __init__(self, lr: float = 0.3) -> None:
        super().__init__(network(), num_classes=10)
        self.lr = lr

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def test_a_learning_rate_of_ones_own_stays_an_attribute() -> None:
    """A subclass that keeps self.lr for its own optimizer is left alone, and the Tuner sets that."""
    app = OwnRate().configure(lr=0.7)
    assert (app.lr, app.optimizer.lr) == (0.7, 1e-3)
    app.build(digits()[0][:1])
    app.lr = 0.9
    assert (app.lr, app.optimizer.lr) == (0.9, 1e-3)
    assert app.configure_optimizers().defaults["lr"] == 0.9


def test_without_an_optimizer_of_that_kind_there_is_no_learning_rate() -> None:
    """An optimizer that is a function has no rate to read; asking raises as for any missing attribute."""
    app = classifier(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    assert not hasattr(app, "lr")
    with pytest.raises(AttributeError, match="lr"):
        _ = app.lr
    app.lr = 3
    assert app.lr == 3
