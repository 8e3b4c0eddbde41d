"""What a checkpoint keeps of a model beside its weights: it comes back, or no checkpoint is written."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelPruning, OnExceptionCheckpoint
from torch import Tensor, nn

import replayml
from tests.training.applications import QUIET, Tied, classifier, digits, loader, network, plain_trainer, saving

STATE, TENSORS = "replayml_state", "replayml_tensors"


class Noisy(nn.Module):
    """Draws tensors that no state_dict has."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))
        self.drawn = nn.Buffer(torch.randn(size), persistent=False)
        self.plain = torch.randn(size)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of the input."""
        result: Tensor = x * self.weight + self.drawn + self.plain
        return result


class Scale(nn.Module):
    """Multiplies by a number, and counts its calls."""

    def __init__(self, by: float = 1.0) -> None:
        super().__init__()
        self.by = by
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of the input."""
        self.calls += 1
        return x * self.by


def app_with(*layers: Any, **options: Any) -> Any:
    """Return a built application that ends in some layers."""
    model = replayml.Sequential(network(inputs=64), *layers)
    return replayml.Classifier(model, num_classes=10, **options).build()


def load(path: Path) -> Any:
    """Load an application without naming its class."""
    return replayml.load(path, trust=[Noisy, Scale, Sparse])


def modes(model: nn.Module) -> dict[str, bool]:
    """Return the modes of all modules, by path."""
    return {name: module.training for name, module in model.named_modules()}


def trained(model: nn.Module) -> list[str]:
    """Return the names of the parameters that are trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# What comes back ------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.lists(st.booleans(), min_size=8, max_size=8))
@settings(max_examples=15, deadline=None)
def test_frozen_parameters_and_modes_come_back(
    tmp_path_factory: pytest.TempPathFactory, frozen: list[bool], training: list[bool]
) -> None:
    """Whatever is frozen, and in whatever mode each module is, a checkpoint without a trainer brings it back."""
    app = classifier().build(digits()[0][:1])
    for parameter, is_frozen in zip(app.parameters(), frozen, strict=True):
        parameter.requires_grad_(not is_frozen)
    for module, is_training in zip(app.modules(), training, strict=False):
        module.training = is_training
    path = tmp_path_factory.mktemp("folder") / "app.ckpt"
    app.save(path)
    torch.load(path, weights_only=True)
    again = load(path)
    assert trained(again) == trained(app)
    assert modes(again) == modes(app)


def test_a_tie_comes_back_and_stays_one(tmp_path: Path) -> None:
    """A weight under two names, frozen, is one frozen weight again."""
    app = replayml.Regressor(Tied()).build()
    groups = [name for name, _ in app.named_parameters(remove_duplicate=False)]
    next(iter(app.parameters())).requires_grad_(False)
    app.save(tmp_path / "app.ckpt")
    again = load(tmp_path / "app.ckpt")
    assert [name for name, _ in again.named_parameters(remove_duplicate=False)] == groups
    assert len(list(again.parameters())) == len(list(app.parameters())) < len(groups)
    assert trained(again) == trained(app)


def test_tensors_that_no_state_dict_has_come_back(tmp_path: Path) -> None:
    """Non-persistent buffers and plain tensors that a constructor draws are in a checkpoint."""
    app = app_with(replayml.Layer(Noisy, 10))
    app.save(tmp_path / "app.ckpt")
    again = load(tmp_path / "app.ckpt")
    x = digits()[0]
    assert torch.equal(again.predict(x), app.predict(x))
    again.save(tmp_path / "app.ckpt")
    assert torch.equal(load(tmp_path / "app.ckpt").predict(x), app.predict(x))


class Watching(lightning.Callback):
    """Saves in the middle of a validation, where Lightning has put everything into eval mode."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Save."""
        assert not pl_module.training
        trainer.save_checkpoint(self.path)


def test_a_checkpoint_from_a_validation_has_the_modes_of_the_training(tmp_path: Path) -> None:
    """What is in eval mode for the time of a validation comes back in training mode; what was put there stays so."""
    app = app_with(replayml.Layer(nn.Dropout, 0.5), replayml.Layer(nn.Dropout, 0.1))
    app.model[1].eval()
    with pytest.warns(UserWarning, match="module.* in eval mode at the start of training"):
        app.fit(digits(), val_data=digits(), max_epochs=1, callbacks=[Watching(tmp_path / "app.ckpt")], **QUIET)
    again = load(tmp_path / "app.ckpt")
    assert {name for name, mode in modes(again).items() if not mode} == {"model.1"}


def _old(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    del content[STATE], content[TENSORS]
    torch.save(content, path)


def test_a_checkpoint_of_an_older_version_is_loaded(tmp_path: Path) -> None:
    """Without what is said beside the weights, all of it is as in a newly built model."""
    app = classifier().build(digits()[0][:1]).eval()
    app.requires_grad_(False)
    app.save(tmp_path / "app.ckpt")
    _old(tmp_path / "app.ckpt")
    again = load(tmp_path / "app.ckpt")
    assert all(modes(again).values())
    assert len(trained(again)) == 4
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        (STATE, 7, replayml.RecipeError),
        (STATE, "{}", replayml.RecipeError),
        (STATE, '{"version":2}', replayml.RecipeError),
        (TENSORS, [1], replayml.RecipeError),
        (TENSORS, {"a": 1}, replayml.CheckpointError),
        (TENSORS, {"a": torch.eye(3).to_sparse()}, replayml.CheckpointError),
        (TENSORS, {"model.1.plain": torch.zeros(3)}, replayml.CheckpointError),
    ],
)
def test_what_is_said_beside_the_weights_is_checked(
    key: str, value: object, error: type[Exception], tmp_path: Path
) -> None:
    """Text that is no text of ours, and tensors that fit nowhere, are refused."""
    app_with(replayml.Layer(Noisy, 10)).save(tmp_path / "app.ckpt")
    content = torch.load(tmp_path / "app.ckpt", weights_only=True)
    content[key] = value
    torch.save(content, tmp_path / "app.ckpt")
    with pytest.raises(
        error, match=r"not readable|newer|for the tensor 'a'|a is a sparse|another shape: model.1.plain"
    ):
        load(tmp_path / "app.ckpt")


# What is refused ------------------------------------------------------------------------------------------------


def _attribute(app: Any) -> None:
    app.model[1].by = 3.0


def _setting(app: Any) -> None:
    app.model[2].p = 0.75


def _hook(app: Any) -> None:
    app.model[0].register_forward_hook(lambda module, args, output: 2 * output)


def _untied(app: Any) -> None:
    app.model[0][2].bias = app.model[3].bias


@pytest.mark.parametrize("name", ["app.ckpt", "app.replayml"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_attribute, r"attributes that were set: model.1.by is 3.0 instead of 1.0"),
        (_setting, r"other settings: model.2.p is 0.75 instead of 0.5"),
        (_hook, "forward hooks: model.0"),
        (_untied, "made one: model.0.2.bias and model.3.bias"),
    ],
)
def test_what_would_not_come_back_is_refused(
    change: Callable[[Any], None], message: str, name: str, tmp_path: Path
) -> None:
    """A checkpoint is refused like a model file, with place, value and ways out; the older file stays."""
    app = app_with(replayml.Layer(Scale), replayml.Layer(nn.Dropout), replayml.Layer(nn.Linear, 10, 10))
    app.predict(digits()[0][:2])
    app.save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    change(app)
    with pytest.raises(replayml.CheckpointError, match=f"changed after its build.*{message}.*new.*after_build"):
        app.save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == content


class Schedule(lightning.Callback):
    """Changes settings while a model is trained."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Change them."""
        pl_module.model[1].by = 2.0
        pl_module.model[2].p = 0.25


def test_a_schedule_of_a_callback_is_told_and_does_not_end_the_training(tmp_path: Path) -> None:
    """Settings that change while a model is trained are told in a warning, and its checkpoint is written."""
    app = app_with(replayml.Layer(Scale), replayml.Layer(nn.Dropout))
    with pytest.warns(UserWarning, match=r"model.2.p is 0.25 instead of 0.5.*model.1.by is 2.0 instead of 1.0"):
        app.fit(digits(), max_epochs=1, **saving(tmp_path, callbacks=[Schedule()]))
    (path,) = tmp_path.rglob("*.ckpt")
    assert load(path).model[1].by == 1.0
    app.save(tmp_path / "app.ckpt")
    assert load(tmp_path / "app.ckpt").model[2].p == 0.5
    with pytest.raises(replayml.CheckpointError, match=r"model.2.p is 0.25"):
        app.save(tmp_path / "app.replayml")


class Doing(lightning.Callback):
    """Does something to an application when its training starts, or before."""

    def __init__(self, change: Callable[[Any], Any], when: str = "on_train_start") -> None:
        self.change = change
        setattr(self, when, self._do)

    def _do(self, trainer: Any, pl_module: Any) -> None:
        self.change(pl_module)


def _observed(app: Any) -> None:
    app.model[0].register_forward_hook(lambda module, args, output: None)


def _activation(app: Any) -> None:
    app.model[0][1] = nn.GELU()


def _more(app: Any) -> None:
    app.model.noise = nn.Sequential(nn.Dropout())


CHANGES = [
    (_setting, r"other settings: model.2.p is 0.75 instead of 0.5"),
    (_observed, "forward hooks: model.0"),
    (_activation, r"other modules: model.0.1: GELU\(approximate='none'\) instead of ReLU\(\)"),
    (_more, "other modules: model.noise, model.noise.0"),
]


def app_with_dropout() -> Any:
    """Return a built application with settings that can change."""
    return app_with(replayml.Layer(Scale), replayml.Layer(nn.Dropout))


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_what_is_told_in_a_training_is_told_ever_after(
    change: Callable[[Any], None], message: str, checkpointing: bool, tmp_path: Path
) -> None:
    """What costs no weights is told once, when it is first saved; a trained application is saved by any way after."""
    app = app_with_dropout()
    options = saving(tmp_path, callbacks=[Doing(change)], enable_checkpointing=checkpointing)
    trainer = plain_trainer(**options)
    with warnings.catch_warnings(record=True, action="always") as caught:
        trainer.fit(app, loader(digits()), loader(digits()))
        trainer.test(app, loader(digits()), verbose=False)
        trainer.save_checkpoint(tmp_path / "trainer.ckpt")
    assert len([warning for warning in caught if re.search(message, str(warning.message))]) == 1
    app.lr = 0.01
    with pytest.warns(UserWarning, match=message):
        app.save(tmp_path / "app.ckpt")
    plain_trainer(**saving(tmp_path / "second")).fit(app, loader(digits()), loader(digits()))
    for name in ("trainer.ckpt", "app.ckpt"):
        assert load(tmp_path / name).state_dict().keys() == app.state_dict().keys()


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_model_file_and_a_copy_of_a_trained_application_stay_strict(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    """A model file is refused after a training too, and so is a checkpoint of another application."""
    app = app_with_dropout()
    app.fit(digits(), max_epochs=1, **saving(tmp_path / "run"))
    path = tmp_path / "app.replayml"
    app.save(path)
    content = path.read_bytes()
    others = [copy.deepcopy(app), pickle.loads(pickle.dumps(app)), app.new().build()]
    change(app)
    with pytest.raises(replayml.CheckpointError, match=message):
        app.save(path)
    assert path.read_bytes() == content
    for other in others:
        change(other)
        with pytest.raises(replayml.CheckpointError, match=message):
            other.save(tmp_path / "other.ckpt")
    assert not (tmp_path / "other.ckpt").exists()


class Doubled(nn.Linear):
    """A linear layer that doubles its output."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of the output."""
        return 2 * super().forward(x)


def _doubled(app: Any) -> None:
    app.model[0][2] = Doubled(16, 10)


def _average(app: Any) -> None:
    app.average = copy.deepcopy(app.model)


def _buffer(app: Any) -> None:
    app.model.register_buffer("table", torch.ones(2))


@pytest.mark.parametrize("when", ["on_fit_start", "on_train_start", "on_train_epoch_start"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_doubled, "other modules with weights: model.0.2: Doubled.* instead of Linear"),
        (_average, r"unexpected: average.0.0 \(weight, bias\)"),
        (_buffer, r"unexpected: model \(table\)"),
    ],
)
def test_weights_that_would_not_come_back_are_refused_before_the_first_step(
    change: Callable[[Any], None], message: str, when: str, tmp_path: Path
) -> None:
    """What callbacks do to weights before the first batch ends the training there, and not after an epoch."""
    trainer = plain_trainer(**saving(tmp_path, callbacks=[Doing(change, when)]))
    with pytest.raises(replayml.CheckpointError, match=message):
        trainer.fit(app_with_dropout(), loader(digits()), loader(digits()))
    assert trainer.global_step == 0
    assert list(tmp_path.rglob("*.ckpt")) == []
    trainer = plain_trainer(callbacks=[Doing(change, when)])
    trainer.fit(app_with_dropout(), loader(digits()), loader(digits()))
    assert trainer.global_step == 6


class Hiding(Doing):
    """Takes out of the checkpoint what it has added to the model."""

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take it out."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if not name.endswith("table")}


@pytest.mark.parametrize("callback", [ModelPruning("l1_unstructured", amount=0.3), Hiding(_buffer, "on_fit_start")])
def test_a_callback_may_write_plain_weights(callback: Any, tmp_path: Path) -> None:
    """Where a callback writes the weights that the recipe makes, what it makes of the model meanwhile is its own."""
    app = app_with_dropout()
    app.fit(digits(), max_epochs=2, **saving(tmp_path, callbacks=[callback]))
    (path,) = tmp_path.rglob("*.ckpt")
    again = load(path)
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))
    assert again.state_dict().keys() <= app.state_dict().keys()


def _fail(app: Any) -> None:
    app.average = copy.deepcopy(app.model)
    raise ZeroDivisionError("mine")


@pytest.mark.filterwarnings("ignore:.*was called without a model:UserWarning")  # by Lightning, for that callback
@pytest.mark.filterwarnings("ignore:.*ckpt_path=.last.. is set, but there is no last checkpoint:UserWarning")
@pytest.mark.parametrize("change", [_fail, _average])
def test_the_error_that_ends_a_training_stays_the_one_that_is_raised(
    change: Callable[[Any], None], tmp_path: Path
) -> None:
    """Where a callback would write a last checkpoint, and cannot, the error says so, and is the same."""
    trainer = plain_trainer(**saving(tmp_path, callbacks=[Doing(change), OnExceptionCheckpoint(tmp_path)]))
    expected = ZeroDivisionError if change is _fail else replayml.CheckpointError
    with pytest.raises(expected) as caught:
        trainer.fit(app_with_dropout(), loader(digits()), loader(digits()))
    notes = getattr(caught.value, "__notes__", [])
    assert len(notes) == (change is _fail)
    assert all("no checkpoint was written" in note and "unexpected: average.0.0" in note for note in notes)
    assert caught.value.__context__ is None
    assert list(tmp_path.rglob("*.ckpt")) == []


@pytest.mark.filterwarnings("ignore:.*was called without a model:UserWarning")  # by Lightning, for that callback
@pytest.mark.filterwarnings("ignore:.*ckpt_path=.last.. is set, but there is no last checkpoint:UserWarning")
def test_a_last_checkpoint_is_written_where_it_can_be(tmp_path: Path) -> None:
    """An error in a training leaves a checkpoint behind if a callback is there to write it."""

    def fail(app: Any) -> None:
        raise ZeroDivisionError("mine")

    callbacks = [Doing(fail, "on_train_epoch_end"), OnExceptionCheckpoint(tmp_path)]
    trainer = plain_trainer(**saving(tmp_path, callbacks=callbacks))
    app = app_with_dropout()
    with pytest.raises(ZeroDivisionError, match="mine"):
        trainer.fit(app, loader(digits()), loader(digits()))
    assert torch.equal(load(tmp_path / "on_exception.ckpt").predict(digits()[0]), app.predict(digits()[0]))


class Lazy(replayml.Module):
    """Leaves the sizes of its layers to torch."""

    def __init__(self) -> None:
        self.conv = nn.LazyConv1d(4, 3)
        self.norm = nn.LazyBatchNorm1d()
        self.head = nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, 10)`` of ``(batch, 64)``."""
        result: Tensor = self.head(self.norm(self.conv(x[:, None])).flatten(1))
        return result


@pytest.mark.parametrize("name", ["app.ckpt", "app.replayml"])
def test_lazy_layers_of_torch_are_trained_and_come_back(name: str, tmp_path: Path) -> None:
    """Layers without sizes that an ``__init__`` makes are what they have become when they are loaded, in both files."""
    app = replayml.Classifier(Lazy(), num_classes=10)
    app.fit(digits(), max_epochs=1, **saving(tmp_path / "run"))
    app.save(tmp_path / name)
    for path in (*(tmp_path / "run").rglob("*.ckpt"), tmp_path / name):
        again = replayml.load(path)
        assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))
        assert [type(layer) for layer in again.model.modules()] == [type(layer) for layer in app.model.modules()]
        again.save(tmp_path / name)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create:UserWarning")
def test_a_plain_trainer_goes_on_from_such_a_checkpoint(tmp_path: Path) -> None:
    """What is said beside the weights does not disturb Lightning, which resumes and tests with the file."""
    app = app_with(replayml.Layer(Noisy, 10))
    trainer = app.fit(digits(), max_epochs=1, **saving(tmp_path))
    path = Path(trainer.checkpoint_callback.best_model_path)
    assert torch.load(path, weights_only=True).keys() >= {STATE, TENSORS, "state_dict"}
    again = app.new().build()
    other = plain_trainer(max_epochs=2)
    other.fit(again, loader(digits()), loader(digits()), ckpt_path=path)
    assert other.current_epoch == 2


# Names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.pt", "train.py", "app.CKPT", "app.ckpt.bak", "v1.0", "app.safetensors"])
def test_a_name_that_would_not_be_loaded_is_refused(name: str, tmp_path: Path) -> None:
    """A name with an ending that nothing reads is refused with the choices, and what stands there stays."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(replayml.ConfigurationError, match=r"would not be loaded again.*\.ckpt .*\.replayml .*a folder"):
        classifier().build(digits()[0][:1]).save(tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["app.ckpt", "app.replayml", "app", "app.ckpt/", "app.1/"])
def test_a_name_that_is_saved_to_is_loaded(name: str, tmp_path: Path) -> None:
    """Whatever name is taken, load reads the model that was saved there."""
    app = classifier().build(digits()[0][:1])
    app.save(f"{tmp_path}/{name}")
    assert torch.equal(replayml.load(f"{tmp_path}/{name}").predict(digits()[0]), app.predict(digits()[0]))


# Tensors without a form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["app.ckpt", "app.replayml"])
def test_weights_without_values_are_not_saved(name: str, tmp_path: Path) -> None:
    """An application on the meta device, as a whole or in part, writes no file."""
    whole = classifier().build(digits()[0][:1].to("meta"), device="meta")
    part: Any = classifier().build(digits()[0][:1])
    part.model[2].to("meta")
    for app, place in ((whole, "model.0.weight"), (part, "model.2.weight")):
        with pytest.raises(replayml.CheckpointError, match=f"{place} is on the meta device and has no values"):
            app.save(tmp_path / name)
    trainer = plain_trainer()
    trainer.strategy.connect(whole)
    with pytest.raises(replayml.CheckpointError, match=r"model.0.weight is on the meta device"):
        trainer.save_checkpoint(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def tensor_of(kind: str) -> Tensor:
    """Return a tensor that is more than its numbers and its shape."""
    if kind == "quantized":
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    if kind in ("nested", "jagged"):
        layout = torch.jagged if kind == "jagged" else torch.strided
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    return torch.eye(3).to_sparse_csr() if kind == "csr" else torch.eye(3).to_sparse()


class Sparse(nn.Module):
    """Has a buffer of some kind."""

    def __init__(self, kind: str, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("table", tensor_of(kind), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        """Return its input."""
        return x


KINDS = ["coo", "csr", "nested", "jagged", "quantized"]


@pytest.mark.filterwarnings("ignore:.*[Ss]parse CSR.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize("name", ["app.ckpt", "app.replayml"])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_not_dense_are_refused_by_name(kind: str, name: str, tmp_path: Path) -> None:
    """A sparse, nested or quantized buffer is refused with its layout and the way out, which works."""
    app = app_with(replayml.Layer(Sparse, kind, True))
    layout = {"quantized": "torch.qint8", "nested": "torch.strided", "coo": "torch.sparse_coo"}.get(kind, f".*{kind}")
    with pytest.raises(replayml.CheckpointError, match=f"model.1.table is a .* is {layout},.*persistent=False"):
        app.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    app = app_with(replayml.Layer(Sparse, kind, False))
    app.save(tmp_path / name)
    assert type(load(tmp_path / name).model[1].table) is type(app.model[1].table)


@pytest.mark.filterwarnings("ignore:.*[Ss]parse CSR.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.parametrize("kind", ["coo", "csr", "quantized"])
def test_tensors_in_a_file_that_are_not_dense_are_refused(kind: str, tmp_path: Path) -> None:
    """A checkpoint that somebody gave such a tensor is refused with the file and the name."""
    path = tmp_path / "app.ckpt"
    classifier().build(digits()[0][:1]).save(path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["model.0.bias"] = tensor_of(kind)
    torch.save(content, path)
    with pytest.raises(replayml.CheckpointError, match=r"app.ckpt: model.0.bias is a (sparse|quantized) tensor"):
        load(path)


class WithState(nn.Module):
    """Has a state beside its weights."""

    def __init__(self, state: Any = None) -> None:
        super().__init__()
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        """Return its input."""
        return x

    def get_extra_state(self) -> Any:
        """Return the state."""
        return self.state

    def set_extra_state(self, state: Any) -> None:
        """Take the state."""
        self.state = state


def test_extra_state_comes_back_or_is_refused(tmp_path: Path) -> None:
    """Plain values that get_extra_state returns come back; an object that would have to be unpickled is refused."""
    app = app_with(replayml.Layer(WithState))
    app.model[1].state = {"a": [1, 2.5]}
    app.save(tmp_path / "app.ckpt")
    assert replayml.load(tmp_path / "app.ckpt", trust=[WithState]).model[1].state == {"a": [1, 2.5]}
    app.model[1].state = Path("x")
    with pytest.raises(replayml.RecipeError, match=r"model.1._extra_state: .* cannot be opened without unpickling"):
        app.save(tmp_path / "app.ckpt")


class Keeping(replayml.Classifier):
    """Puts an object into its checkpoints."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put it there."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["mine"] = Path("x")


def test_a_checkpoint_that_would_not_open_replaces_none(tmp_path: Path) -> None:
    """What was written is opened before it takes the place of the older file."""
    classifier().build(digits()[0][:1]).save(tmp_path / "app.ckpt")
    content = (tmp_path / "app.ckpt").read_bytes()
    with pytest.raises(replayml.RecipeError, match=r"on_save_checkpoint\(\) of Keeping .* without unpickling"):
        Keeping(network(inputs=64), num_classes=10).build().save(tmp_path / "app.ckpt")
    assert (tmp_path / "app.ckpt").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1
