"""Checkpoints: what is written can be loaded, without its class, and what is hostile is refused."""

import io
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dill
import lightning
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

import replayml
from replayml.module.sizes import read_sizes, write_sizes
from replayml.recipe.randomness import random_state, resume_randomness
from tests.training.applications import (
    QUIET,
    Positions,
    Scaled,
    Tied,
    best_path,
    classifier,
    digits,
    loader,
    network,
    plain_trainer,
    saving,
)

ROOT = Path(__file__).parents[2]
RECIPE = "__from_ckpt_application"


def trained(app: Any, folder: Path, data: Any = None, **options: Any) -> Path:
    """Train an application for an epoch and return its checkpoint."""
    trainer = app.fit(digits() if data is None else data, max_epochs=1, **saving(folder, **options))
    return Path(best_path(trainer))


def load(path: Any, **options: Any) -> Any:
    """Load an application without naming its class; the plain torch modules of these tests are trusted."""
    trust = [Positions, Drawing, Reading, shape_of]
    return replayml.Application.load_from_checkpoint(path, **{"trust": trust, **options})


def tampered(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write a checkpoint anew after a change of its content."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


# What is written ------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_lightnings_own_and_opens_without_unpickling(tmp_path: Path) -> None:
    """The file has Lightning's keys, opens with weights_only=True, and holds the recipe as JSON text."""
    app = classifier()
    path = trained(app, tmp_path)
    content = torch.load(path, weights_only=True)
    assert {"epoch", "global_step", "state_dict", "loops", "callbacks", "optimizer_states"} <= content.keys()
    parameters = content["hyper_parameters"]
    assert parameters.keys() == {RECIPE, "__build_args", "__build_kwargs"}
    assert replayml.Recipe.from_json(parameters[RECIPE]) == app.recipe() == app.new().recipe()
    assert list(content["state_dict"]) == ["model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create:UserWarning")
def test_lightning_itself_loads_the_weights(tmp_path: Path) -> None:
    """A plain trainer tests an unbuilt application with the weights of a checkpoint, as with any Lightning file."""
    app = classifier()
    path = trained(app, tmp_path)
    found = plain_trainer().test(app.new(), loader(digits()), ckpt_path=path, verbose=False)[0]
    assert found["test_accuracy"] == pytest.approx(app.test(digits(), **QUIET)["test_accuracy"])


# Loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        classifier,
        lambda: Scaled(12, scale=0.5, depth=3).configure(width=9),
        lambda: replayml.Classifier(replayml.MultiLayerPerceptron(None, [16, 16], 10), num_classes=10),
    ],
    ids=["classifier", "subclass", "blocks"],
)
def test_the_base_class_loads_any_application(make: Callable[[], Any], tmp_path: Path) -> None:
    """Application.load_from_checkpoint gives the subclass with its arguments, its weights and its tape."""
    app = make()
    path = trained(app, tmp_path)
    again = load(path)
    assert type(again) is type(app)
    assert again._has_built
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))
    assert again.tape == app.tape
    assert again.new().recipe() == app.new().recipe()
    assert again.hparams == app.hparams
    assert [name for name, _ in again.named_modules()] == [name for name, _ in app.named_modules()]
    assert str(again) == str(app)


def test_what_was_loaded_trains_on_and_is_saved_again(tmp_path: Path) -> None:
    """A loaded application trains, validates and saves; the second checkpoint loads like the first."""
    first = load(trained(classifier(), tmp_path / "first"))
    before = first.test(digits(), **QUIET)["test_loss"]
    second = load(trained(first, tmp_path / "second"))
    assert second.test(digits(), **QUIET)["test_loss"] < before
    assert second.new().recipe() == first.new().recipe()


MODULE = """
import replayml, torch
from torch import nn

def cubed(x):
    return x**3

class Shop(replayml.Application):
    def __init__(self, width, activation=torch.tanh, *, head=None):
        self.first = replayml.Layer(nn.Linear, None, width)
        self.activation = activation
        self.head = replayml.Layer(nn.Linear, None, 10) if head is None else head
        super().__init__(loss=nn.CrossEntropyLoss())

    def forward(self, x):
        return self.head(self.activation(self.first(x)))
"""


def test_another_process_needs_the_class_imported_and_nothing_else(tmp_path: Path) -> None:
    """A fresh process that imported the user's module predicts the same; one that did not says what to import."""
    (tmp_path / "shopping.py").write_text(MODULE)
    sys.path.insert(0, str(tmp_path))
    try:
        import shopping  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    app = shopping.Shop(7, shopping.cubed).configure(width=5)
    path = str(trained(app, tmp_path))
    x, out = str(tmp_path / "x.pt"), str(tmp_path / "out.pt")
    torch.save(digits()[0], x)
    program = f"""
import torch
torch.set_num_threads(1)
import replayml
def attempt(**options):
    try:
        return replayml.Application.load_from_checkpoint({path!r}, **options)
    except replayml.RecipeError as error:
        print(error.message.splitlines()[0])
attempt()
import shopping
attempt()
app = attempt(trust=[shopping.cubed])
torch.save(app.predict(torch.load({x!r})), {out!r})
print(type(app).__name__)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    nothing_imported, nothing_trusted, name = done.stdout.splitlines()
    assert "'shopping.Shop' is not known to this program" in nothing_imported
    assert "'shopping.cubed' is not known to this program, or not trusted" in nothing_trusted
    assert name == "Shop"
    assert torch.equal(torch.load(out), app.predict(digits()[0]))


def test_another_class_is_refused_with_both_names(tmp_path: Path) -> None:
    """A class loads its own checkpoints and those of its subclasses, and names both classes otherwise."""
    path = trained(classifier(), tmp_path)
    assert type(replayml.Classifier.load_from_checkpoint(path)) is replayml.Classifier
    with pytest.raises(
        replayml.CheckpointError, match=r"holds a Classifier, which is no Regressor. Load it with Classifier\."
    ):
        replayml.Regressor.load_from_checkpoint(path)


def test_settings_can_be_changed_while_loading(tmp_path: Path) -> None:
    """Keywords are configured before the weights are loaded, and stay in the record of the loaded application."""
    path = trained(Scaled(12, scale=2.0), tmp_path)
    again = load(path, scale=0.5)
    assert again.scale == again.new().scale == 0.5
    assert load(path, optimizer=replayml.SGD(lr=0.5)).lr == 0.5
    with pytest.raises(replayml.CheckpointError, match=r"of another shape: layers.0.weight: \(12, 64\) in the file"):
        load(path, width=13)
    with pytest.raises(replayml.ConfigurationError, match=r"no setting 'skale'. Did you mean 'scale'\?"):
        load(path, skale=1)


def test_a_model_of_another_shape_takes_no_sizes_that_are_not_its_own(tmp_path: Path) -> None:
    """Where keywords replace the model, the recorded sizes of the old one are left out, and the weights refused."""
    path = trained(classifier(), tmp_path)
    again = load(path, model=replayml.Sequential(*network(inputs=64)))
    assert again.model[0].in_features == 64
    with pytest.raises(replayml.CheckpointError, match=r"missing: model.inner \(weight\)"):
        load(path, model=Tied())


def test_no_weight_is_initialised_and_no_random_number_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading makes every weight on the meta device, and leaves the generators of torch, NumPy and Python alone."""
    path = trained(
        replayml.Classifier(replayml.Sequential(network(), replayml.Layer(Drawing)), num_classes=10), tmp_path
    )
    seen: list[bool] = []
    for cls in (nn.Linear, Drawing):
        original = cls.reset_parameters

        def reset(self: Any, original: Any = original) -> None:
            seen.append(self.weight.is_meta)
            original(self)

        monkeypatch.setattr(cls, "reset_parameters", reset)
    resume_randomness(state := random_state())
    expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002 - the global generator is the point
    resume_randomness(state)
    app = load(path)
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]  # noqa: NPY002 - see above
    assert seen
    assert all(seen)
    assert not any(tensor.is_meta for tensor in (*app.parameters(), *app.buffers()))


class Drawing(nn.Module):
    """Draws its weight with a function that makes random tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 10))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Reading(nn.Module):
    """Reads a value of its weight when it is made, which a tensor without memory does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(10))
        self.first = float(self.weight[0].detach())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_a_layer_that_reads_its_weights_is_made_for_real(tmp_path: Path) -> None:
    """A layer that cannot be made without memory is made with it, still without moving the generators."""
    app = replayml.Classifier(replayml.Sequential(network(), replayml.Layer(Reading)), num_classes=10)
    path = trained(app, tmp_path)
    state = torch.get_rng_state()
    again = load(path)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    """A weight under two names and a layer in two places are one object again, and train as one."""
    app = replayml.Regressor(Tied())
    again = load(trained(app, tmp_path, digits()[0]))
    assert again.model.inner is again.model.again
    assert again.model.outer.weight is again.model.copy.weight
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))
    again.fit(digits()[0], max_epochs=1, **QUIET)
    assert torch.equal(again.model.outer.weight, again.model.copy.weight)


def test_torch_layers_that_were_given_keep_their_values_in_new_copies(tmp_path: Path) -> None:
    """A plain layer among the arguments has values in a copy of the loaded application, not only in itself."""
    app = replayml.Classifier(replayml.Sequential(network(), nn.PReLU()), num_classes=10)
    again = load(trained(app, tmp_path)).new().build(digits()[0][:1])
    assert not any(parameter.is_meta for parameter in again.parameters())


def test_what_no_file_holds_is_as_in_a_new_model(tmp_path: Path) -> None:
    """Buffers that are not saved, tensors in attributes and the states of metrics have their values after loading."""
    app = replayml.Classifier(replayml.Sequential(network(), replayml.Layer(Positions, 10)), num_classes=10)
    again = load(trained(app, tmp_path))
    for name in ("waves", "filled", "steps"):
        assert torch.equal(getattr(again.model[1], name), getattr(app.model[1], name))
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))
    assert again.test(digits(), **QUIET) == app.test(digits(), **QUIET)


def test_recurrent_and_normalised_layers(tmp_path: Path) -> None:
    """An LSTM, whose weights stand in a list too, and running statistics come back as they were."""
    app = replayml.Classifier(Recurrent(), num_classes=10)
    again = load(trained(app, tmp_path))
    assert again.model.lstm._flat_weights[0] is again.model.lstm.weight_ih_l0
    assert torch.equal(again.model.norm.running_mean, app.model.norm.running_mean)
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))


class Recurrent(replayml.Module):
    def __init__(self) -> None:
        self.lstm = replayml.Layer(nn.LSTM, None, 12, batch_first=True)
        self.norm = replayml.Layer(nn.LayerNorm)
        self.norm = replayml.Layer(nn.BatchNorm1d)
        self.head = replayml.Layer(nn.Linear, None, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x.reshape(-1, 8, 8))
        result: Tensor = self.head(self.norm(hidden[:, -1]))
        return result


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_the_type_of_the_weights_comes_back(precision: Any, tmp_path: Path) -> None:
    """A model that was trained in another precision is loaded in it, buffers that are not saved included."""
    app = replayml.Classifier(replayml.Sequential(network(), replayml.Layer(Positions, 10)), num_classes=10)
    again = load(trained(app, tmp_path, precision=precision))
    dtype = torch.float64 if precision == "64-true" else torch.bfloat16
    assert {tensor.dtype for tensor in (*again.parameters(), *again.buffers()) if tensor.is_floating_point()} == {dtype}
    x = digits()[0].to(dtype)
    assert torch.equal(again.predict(x), app.to(dtype).predict(x))


def test_sizes_of_every_kind_are_read_off_again(tmp_path: Path) -> None:
    """A size that is a tuple, and a value computed by a function of the user, come back without an input."""
    norm = replayml.Layer(nn.LayerNorm, None, elementwise_affine=False)
    norm.computed("normalized_shape", shape_of)
    app = replayml.Classifier(replayml.Sequential(norm, network()), num_classes=10)
    path = trained(app, tmp_path)
    again = load(path)
    assert again.model[0].normalized_shape == (64,)
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))


def shape_of(x: Tensor) -> tuple[int, ...]:
    """Return the shape of a row."""
    return tuple(x.shape[1:])


def test_places_to_load_from(tmp_path: Path) -> None:
    """A path as text, a Path, an open file, a buffer and a URL give the same application."""
    app = classifier()
    path = trained(app, tmp_path)
    with open(path, "rb") as file:
        found = [load(source) for source in (str(path), path, file, io.BytesIO(path.read_bytes()), f"file://{path}")]
    for again in found:
        assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.ckpt")
    with pytest.raises(replayml.CheckpointError, match="is a folder, such as a strategy that shards writes"):
        load(tmp_path)


@pytest.mark.parametrize("map_location", ["cpu", torch.device("cpu"), {"cuda:0": "cpu"}, lambda storage, _: storage])
def test_map_location(map_location: Any, tmp_path: Path) -> None:
    """Every form of map_location that torch takes works, and the application knows where it is."""
    again = load(trained(classifier(), tmp_path), map_location=map_location)
    assert again.device == again.model[0].weight.device == torch.device("cpu")
    assert again.predict(digits()[0], device="cpu").shape == (600, 10)


def test_loading_to_the_meta_device_reads_no_weight(tmp_path: Path) -> None:
    """map_location="meta" gives the model's shape, metrics and buffers included, without memory."""
    again = load(trained(classifier(), tmp_path), map_location="meta")
    assert {tensor.device.type for tensor in again.state_dict().values()} == {"meta"}
    assert again.device.type == "meta"
    assert again.predict(digits()[0], device="meta").shape == (600, 10)


def test_the_file_may_be_written_again_while_its_weights_are_in_use(tmp_path: Path) -> None:
    """Training on, and saving to the very file that the weights are read from, breaks neither of them."""
    path = trained(classifier(), tmp_path)
    app = load(path)
    expected = load(path).predict(digits()[0])
    trainer = plain_trainer()
    trainer.test(app, loader(digits()), verbose=False)
    trainer.save_checkpoint(path)
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(app.predict(digits()[0]), expected)


def test_loading_is_a_matter_of_the_class(tmp_path: Path) -> None:
    """Calling load_from_checkpoint on an application, whose weights would stay as they are, is refused."""
    path = trained(classifier(), tmp_path)
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        classifier().load_from_checkpoint(path)


# Without a trainer ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create:UserWarning")
def test_a_checkpoint_without_a_trainer(tmp_path: Path) -> None:
    """save() writes a file that loads, that a trainer tests, and whose permissions are those of a new file."""
    app, path = classifier().build(digits()[0][:1]), tmp_path / "app.ckpt"
    app.save(path)
    assert torch.equal(load(path).predict(digits()[0]), app.predict(digits()[0]))
    found = plain_trainer().test(app.new(), loader(digits()), ckpt_path=path, verbose=False)[0]
    assert found["test_loss"] == pytest.approx(app.test(digits(), batch_size=100, **QUIET)["test_loss"])
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    path.chmod(0o600)
    app.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["app.ckpt", "other"]


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that could not be loaded, and a write that fails half way, leave the old checkpoint and nothing else."""
    path = tmp_path / "app.ckpt"
    classifier().build(digits()[0][:1]).save(path)
    content = path.read_bytes()
    with pytest.raises(replayml.NotBuiltError, match=r"no weights yet. Build it first: app.build\(x\)"):
        classifier().save(path)
    with pytest.raises(replayml.RecipeError, match="could not be loaded again, so none is written"):
        WithFunction(network(inputs=64), lambda x: x).build().save(path)
    app = classifier().build(digits()[0][:1])
    monkeypatch.setattr(os, "fsync", _full_disk)
    with pytest.raises(OSError, match="No space left"):
        app.save(path)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["app.ckpt"]


def _full_disk(handle: int) -> None:
    raise OSError(28, "No space left on device")


# Compiled models ------------------------------------------------------------------------------------------------


def test_a_compiled_part_leaves_no_trace_in_the_names(tmp_path: Path) -> None:
    """A checkpoint of a model with a compiled part loads into one without, and the other way round."""
    app = classifier().build(digits()[0][:1])
    app.model[0] = torch.compile(app.model[0], backend="eager")
    path = trained(app, tmp_path / "compiled")
    assert "model.0._orig_mod.weight" in torch.load(path, weights_only=True)["state_dict"]
    again = load(path)
    assert list(again.state_dict()) == ["model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"]
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))

    late = replayml.Classifier(CompiledLate(), num_classes=10)
    path = trained(late, tmp_path / "late")
    tampered(path, lambda content: content.update(state_dict=_plain_names(content["state_dict"])))
    assert torch.equal(load(path).predict(digits()[0]), late.predict(digits()[0]))


def _plain_names(state: dict[str, Any]) -> dict[str, Any]:
    assert any("_orig_mod." in name for name in state)
    return {name.replace("_orig_mod.", ""): value for name, value in state.items()}


class CompiledLate(replayml.Module):
    def __init__(self) -> None:
        self.net: Any = network()
        self.compile_net()

    @replayml.after_build
    def compile_net(self) -> None:
        self.net = torch.compile(self.net, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result


# Keys that do not fit -------------------------------------------------------------------------------------------


def _without_bias(content: dict[str, Any]) -> None:
    del content["state_dict"]["model.0.bias"]


def _with_more(content: dict[str, Any]) -> None:
    content["state_dict"]["model.7.weight"] = torch.zeros(2)


def _of_another_shape(content: dict[str, Any]) -> None:
    content["state_dict"]["model.0.weight"] = torch.zeros(3, 64)


def _of_another_kind(content: dict[str, Any]) -> None:
    content["state_dict"]["model.0.weight"] = "text"


def _of_another_type(content: dict[str, Any]) -> None:
    content["state_dict"]["model.0.weight"] = torch.zeros(16, 64, dtype=torch.long)


@pytest.mark.parametrize(
    ("change", "message", "passes"),
    [
        (_without_bias, r"do not fit Classifier: missing: model.0 \(bias\)", True),
        (_with_more, r"do not fit Classifier: unexpected: model.7 \(weight\)", True),
        (_of_another_shape, r"another shape: model.0.weight: \(3, 64\) in the file, \(16, 64\) in the model", False),
        (_of_another_kind, r"another shape: model.0.weight: no tensor in the file, \(16, 64\) in the model", False),
        (_of_another_type, r"of another type: model.0.weight: torch.int64 in the file, torch.float32", False),
    ],
)
def test_weights_that_do_not_fit_are_listed_by_path(change: Any, message: str, passes: bool, tmp_path: Path) -> None:
    """Missing and unexpected weights raise unless strict=False; those of another shape always do."""
    path = tampered(trained(classifier(), tmp_path), change)
    with pytest.raises(replayml.CheckpointError, match=message):
        load(path)
    if passes:
        app = load(path, strict=False)
        assert not app.model[0].bias.is_meta
        assert app.predict(digits()[0]).isfinite().all()
    else:
        with pytest.raises(replayml.CheckpointError, match=message):
            load(path, strict=False)


def test_the_application_may_say_that_loading_is_not_strict(tmp_path: Path) -> None:
    """Without strict=, an application's own strict_loading decides, as in Lightning."""
    path = tampered(trained(Lenient(network(), num_classes=10), tmp_path), _without_bias)
    assert load(path).model[0].bias.shape == (16,)
    with pytest.raises(replayml.CheckpointError, match="missing"):
        load(path, strict=True)


class Lenient(replayml.Classifier):
    strict_loading = False


def test_a_checkpoint_of_another_model_is_refused_even_if_not_strict(tmp_path: Path) -> None:
    """With next to none of the weights in the file, strict=False does not give an untrained model."""
    path = tampered(
        trained(classifier(), tmp_path), lambda content: content.update(state_dict={"other": torch.zeros(1)})
    )
    with pytest.raises(replayml.CheckpointError, match="has 0 of the 4 weights of Classifier; it is of another model"):
        load(path, strict=False)


class Renaming(replayml.Classifier):
    """Reads files in which the model was called differently."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        checkpoint["state_dict"] = {
            name.replace("old.", "model."): value for name, value in checkpoint["state_dict"].items()
        }


def test_on_load_checkpoint_may_change_what_is_loaded(tmp_path: Path) -> None:
    """The hook sees the content before the weights are taken, as in Lightning."""
    app = Renaming(network(), num_classes=10)
    path = trained(app, tmp_path)

    def rename(content: dict[str, Any]) -> None:
        content["state_dict"] = {name.replace("model.", "old."): value for name, value in content["state_dict"].items()}

    assert torch.equal(load(tampered(path, rename)).predict(digits()[0]), app.predict(digits()[0]))


# What cannot be saved -------------------------------------------------------------------------------------------


class WithFunction(replayml.Classifier):
    def __init__(self, model: Any, function: Any) -> None:
        super().__init__(model, num_classes=10)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(super().forward(x))  # type: ignore[no-any-return]


def test_a_model_without_data_form_raises_before_training(tmp_path: Path) -> None:
    """A lambda among the arguments stops the training at its start, by name; without checkpoints the model trains."""
    app = WithFunction(network(), lambda x: x * 2)
    with pytest.raises(
        replayml.RecipeError, match=r"at model.args\[1\]: the function .*lambda.*enable_checkpointing=False"
    ):
        app.fit(digits(), max_epochs=1, **saving(tmp_path))
    assert app.model[0].weight.grad is None
    assert not list(tmp_path.rglob("*.ckpt"))
    trainer = app.fit(digits(), max_epochs=1, **QUIET)
    assert trainer.global_step == 19
    with pytest.raises(replayml.RecipeError, match="could not be loaded again, so none is written"):
        trainer.save_checkpoint(tmp_path / "by_hand.ckpt")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_model_that_was_changed_after_its_build_raises_before_training(tmp_path: Path) -> None:
    """A layer put into the built model is in no recipe: training says so at its start; else it trains."""
    app = classifier().build(digits()[0][:1])
    app.model.append(nn.Linear(10, 10))
    with pytest.raises(
        replayml.CheckpointError,
        match=r"changed after its build.*unexpected: model.3 \(weight, bias\).*@replayml.after_build",
    ):
        app.fit(digits(), max_epochs=1, **saving(tmp_path))
    app.fit(digits(), max_epochs=1, **QUIET)


class Growing(lightning.Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.model[0] = nn.Linear(64, 16, bias=False)


def test_a_model_that_changes_while_it_trains_is_not_saved(tmp_path: Path) -> None:
    """A callback that changes the structure is caught when the checkpoint would be written."""
    with pytest.raises(replayml.CheckpointError, match=r"changed after its build.*missing: model.0 \(bias\)"):
        trained(classifier(), tmp_path, callbacks=[Growing()])
    assert not list(tmp_path.rglob("*.ckpt"))


def test_metrics_that_cannot_be_made_again_name_external(tmp_path: Path) -> None:
    """A metric that was changed by hand is refused before training, with External as the way out."""
    metric = MeanSquaredError()
    metric.extra = 3
    app = replayml.Regressor(network(1), metrics=[metric])
    with pytest.raises(
        replayml.RecipeError, match=r"its 'extra' is not that of a new one. Use replayml.External\(MeanSq"
    ):
        trained(app, tmp_path, (digits()[0], digits()[1].float()))


def test_a_part_of_a_larger_model_is_saved_by_itself(tmp_path: Path) -> None:
    """An application that was built inside of another module trains, and its checkpoint is its own."""
    whole = Around()
    whole.app.model[0].configure(bias=False)
    whole.build(digits()[0][:1])
    path = trained(whole.app, tmp_path)
    again = load(path)
    assert again.model[0].bias is None
    assert torch.equal(again.predict(digits()[0]), whole.app.predict(digits()[0]))


class Around(replayml.Module):
    def __init__(self) -> None:
        self.app = classifier()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.app(x)
        return result


# Hostile files --------------------------------------------------------------------------------------------------


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("dump", [dill.dumps, pickle.dumps])
def test_bytes_in_the_place_of_the_recipe_are_not_unpickled(dump: Any, tmp_path: Path) -> None:
    """A checkpoint as Deeplay writes it, with pickled bytes, is refused, and nothing in it runs."""
    path, mark = trained(classifier(), tmp_path), tmp_path / "mark"
    payload = dump(Payload(mark))
    tampered(path, lambda content: content["hyper_parameters"].update({RECIPE: payload}))
    with pytest.raises(replayml.RecipeError, match=r"not-text.*must be JSON text and is bytes. Nothing was unpickled"):
        load(path)
    with pytest.raises(replayml.RecipeError, match="Nothing was unpickled"):
        replayml.Classifier(__from_ckpt_application=payload, __build_args=(), __build_kwargs={})
    with pytest.raises(replayml.RecipeError, match="Nothing was unpickled"):
        replayml.Classifier(__from_ckpt_application=payload, __build_args=payload, __build_kwargs=payload)
    assert not mark.exists()
    dill.loads(payload)  # the honest twin: the payload works where it is unpickled
    assert mark.exists()


@pytest.mark.parametrize("text", ["", "{}", "[1", "\x80\x04.", "PK\x03\x04", '{"format": "replayml.recipe"}', "null"])
def test_text_that_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    """Whatever else stands in the place of the recipe is a RecipeError."""
    path = trained(classifier(), tmp_path)
    tampered(path, lambda content: content["hyper_parameters"].update({RECIPE: text}))
    with pytest.raises(replayml.RecipeError):
        load(path)


@pytest.mark.parametrize("place", ["hyper_parameters", "callbacks", "extra"])
def test_an_object_in_the_file_is_not_unpickled(place: str, tmp_path: Path) -> None:
    """A file with an object that only unpickling would open is refused wherever the object stands."""
    path, mark = trained(classifier(), tmp_path), tmp_path / "mark"
    tampered(path, lambda content: content.setdefault(place, {}).update(x=Payload(mark)))
    with pytest.raises(replayml.RecipeError, match="opened without unpickling, and nothing was unpickled"):
        load(path)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["empty", "pickle", "text", "truncated", "zip"])
def test_other_files_are_refused(kind: str, tmp_path: Path) -> None:
    """A file that is no checkpoint is refused in one family of errors, and nothing in it runs."""
    path, mark = trained(classifier(), tmp_path), tmp_path / "mark"
    content = {
        "empty": b"",
        "pickle": pickle.dumps(Payload(mark)),
        "text": b"hello",
        "truncated": path.read_bytes()[:-1000],
        "zip": b"PK\x05\x06" + bytes(18),
    }[kind]
    path.write_bytes(content)
    with pytest.raises(replayml.RecipeError, match="unsafe-file"):
        load(path)
    with pytest.raises(replayml.RecipeError, match="unsafe-file"):
        load(io.BytesIO(content))
    assert not mark.exists()


def test_files_without_recipe_or_weights_say_what_they_lack(tmp_path: Path) -> None:
    """A checkpoint of a plain LightningModule, and a bare state_dict, are told apart."""
    path = trained(classifier(), tmp_path)
    tampered(path, lambda content: content.pop("hyper_parameters"))
    with pytest.raises(replayml.RecipeError, match=r"no-recipe.*was not written by a replayml.Application"):
        load(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(replayml.CheckpointError, match="is no Lightning checkpoint: it has no 'state_dict' with names"):
        load(path)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (b"bytes", "gives the sizes of the built model and torch's default type, and nothing else"),
        ({"device": "cuda"}, "gives the sizes of the built model and torch's default type, and nothing else"),
        ({"default_dtype": "torch.os"}, "the default type is one of torch.float16, .*, not 'torch.os'"),
        ({"sizes": b"bytes"}, "they are bytes, not text. Nothing was unpickled"),
        ({"sizes": "[[["}, "not-json"),
        ({"sizes": "{}"}, "they are no list"),
        ({"sizes": "[1]"}, "no pair of a path and its sizes"),
        ({"sizes": '[[["model", "0"], {"in_features": {"$call": "x"}}]]'}, "an object that is no tuple"),
        ({"sizes": '[[["model", "9"], {"in_features": 1}]]'}, "nothing at 'model.9' takes 'in_features'"),
        ({"sizes": '[[["model", "0"], {"bias": 1}]]'}, "nothing at 'model.0' takes 'bias'"),
        ({"sizes": '[[["model", "0"], {"classtype": "x"}]]'}, "nothing at 'model.0' takes 'classtype'"),
        ({"sizes": '[[["__class__"], {"in_features": 1}]]'}, "nothing at '__class__' takes"),
        ({"sizes": '[[[], {"loss": "x"}]]'}, "nothing at '' takes 'loss'"),
    ],
)
def test_build_arguments_are_sizes_and_nothing_else(kwargs: Any, message: str, tmp_path: Path) -> None:
    """What a file gives for the build reaches only arguments that an input could have told."""
    path = trained(classifier(), tmp_path)
    tampered(path, lambda content: content["hyper_parameters"].update(__build_kwargs=kwargs))
    with pytest.raises(replayml.RecipeError, match=message):
        load(path)


@given(text=st.text(max_size=40) | st.binary(max_size=40) | st.just("[" * 100_000) | st.just('[[["a"], {"b": NaN}]]'))
def test_any_text_for_sizes_is_read_or_refused(text: Any) -> None:
    """No text makes the reader fail in another way than by its own error."""
    with suppress(replayml.RecipeError):
        read_sizes(text)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.lists(st.text(), max_size=3).map(tuple), st.dictionaries(st.text(), _values, max_size=3), max_size=3
    )
)
def test_sizes_come_back_as_they_were(sizes: dict[Any, Any]) -> None:
    """Numbers, strings, lists and tuples are read as they were written, types included."""
    again = read_sizes(write_sizes(sizes))
    assert repr(again) == repr(sizes)


def test_sizes_without_data_form_are_refused() -> None:
    """A computed value that is no data names the place and what to compute instead."""
    for value in (float("nan"), object(), {1: 2}, torch.zeros(1)):
        with pytest.raises(replayml.RecipeError, match=r"at model.0.width: the value .* cannot be written"):
            write_sizes({("model", "0"): {"width": value}})


# The metaclass's path -------------------------------------------------------------------------------------------


def test_the_class_itself_makes_an_application_from_its_recipe() -> None:
    """Cls(__from_ckpt_application=text, ...) gives the built application, with sizes, examples or settings."""
    app = classifier().build(digits()[0][:1])
    parameters = dict(app.hparams)
    one = replayml.Classifier(**parameters)
    assert one._has_built
    assert one.model[0].in_features == 64
    text = parameters[RECIPE]
    application: Any = replayml.Application
    two = application(
        __from_ckpt_application=text, __build_args=(digits()[0][:1],), __build_kwargs={"seed": 3}, num_classes=4
    )
    assert type(two) is replayml.Classifier
    assert two.num_classes == 4
    assert torch.equal(two.model[0].weight, classifier().build(digits()[0][:1], seed=3).model[0].weight)
    with pytest.raises(replayml.CheckpointError, match="holds a Classifier, which is no Regressor"):
        replayml.Regressor(__from_ckpt_application=text, __build_args=(), __build_kwargs={})
    with pytest.raises(TypeError, match=r"is no replayml.Application"):
        replayml.Sequential(**{RECIPE: text})
