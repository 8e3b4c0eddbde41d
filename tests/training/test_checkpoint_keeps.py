"""What a checkpoint keeps of a model beside its weights: it comes back, or no checkpoint is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    with pytest.raises(replayml.CheckpointError, match=r"model.2.p is 0.25"):
        app.save(tmp_path / "app.ckpt")


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
