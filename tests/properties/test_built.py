"""What is built: plain torch, faithful to the recipe of the unbuilt model, and free of replayml."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import dill
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import AlreadyBuiltError, BuildError, NotBuiltError
from replayml.core.hooks import after_build, before_build
from replayml.layers.containers import LayerList, Parallel, Sequential
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module
from tests.properties import models, strategies


class Counted(nn.Module):
    """A torch layer that counts how often it is made."""

    made: ClassVar[int] = 0

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        type(self).made += 1
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the input."""
        return x * self.weight


class Refusing(nn.Module):
    """A torch layer whose constructor raises for a size."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        if size == 13:
            raise ArithmeticError("not 13")
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input."""
        return x


class Net(Module):
    """Two layers and an activation."""

    def __init__(self, width: int = 8) -> None:
        self.hidden = Layer(nn.Linear, 4, width)
        self.norm = Layer(nn.BatchNorm1d, width)
        self.activation = Layer(nn.ReLU)
        self.out = Layer(nn.Linear, width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, 2)`` for ``(batch, 4)``."""
        out: torch.Tensor = self.out(self.activation(self.norm(self.hidden(x))))
        return out


class Tied(Module):
    """One layer under two names, and one parameter in two layers."""

    def __init__(self) -> None:
        self.first = Layer(nn.Linear, 4, 4)
        self.again = self.first
        self.second = Layer(nn.Linear, 4, 4)

    @after_build
    def tie(self) -> None:
        """Tie the weights of the second layer to the first one's."""
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, 4)``."""
        out: torch.Tensor = self.second(self.again(self.first(x)))
        return out


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Return the names and shapes of all that a state dict holds."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


# The same as hand-written torch -------------------------------------------------------------------------------------


class TorchNet(nn.Module):
    """`Net`, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.activation = nn.ReLU()
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, 2)`` for ``(batch, 4)``."""
        out: torch.Tensor = self.out(self.activation(self.norm(self.hidden(x))))
        return out


class Shortcut(Module):
    """A convolutional block with a shortcut."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = Sequential(Layer(nn.Conv2d, None, channels, 3, padding=1), Layer(nn.BatchNorm2d, None))
        self.shortcut = Layer(nn.Conv2d, None, channels, 1)
        self.blocks = LayerList([Layer(nn.Conv2d, None, channels, 1) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, channels, height, width)``."""
        x = self.conv(x) + self.shortcut(x)
        for block in self.blocks:
            x = block(x)
        return x


class TorchShortcut(nn.Module):
    """`Shortcut`, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.shortcut = nn.Conv2d(2, 3, 1)
        self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, channels, height, width)``."""
        x = self.conv(x) + self.shortcut(x)
        for block in self.blocks:
            x = block(x)
        return x


class Recurrent(Module):
    """An LSTM and a head."""

    def __init__(self, hidden: int = 5) -> None:
        self.lstm = Layer(nn.LSTM, None, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.head = Layer(nn.Linear, None, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, 1)`` for ``(batch, time, features)``."""
        steps, _ = self.lstm(x)
        out: torch.Tensor = self.head(steps[:, -1])
        return out


class TorchRecurrent(nn.Module):
    """`Recurrent`, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, 1)`` for ``(batch, time, features)``."""
        steps, _ = self.lstm(x)
        out: torch.Tensor = self.head(steps[:, -1])
        return out


class Attending(Module):
    """A transformer layer and a norm."""

    def __init__(self) -> None:
        self.layer = Layer(nn.TransformerEncoderLayer, 8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.norm = Layer(nn.LayerNorm, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, time, 8)``."""
        out: torch.Tensor = self.norm(self.layer(x))
        return out


class TorchAttending(nn.Module):
    """`Attending`, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, time, 8)``."""
        out: torch.Tensor = self.norm(self.layer(x))
        return out


@pytest.mark.parametrize(
    ("ours", "theirs", "size"),
    [
        (Net, TorchNet, (3, 4)),
        (Shortcut, TorchShortcut, (3, 2, 6, 6)),
        (Recurrent, TorchRecurrent, (3, 7, 3)),
        (Attending, TorchAttending, (3, 7, 8)),
    ],
)
def test_a_built_model_equals_the_hand_written_one(
    ours: Callable[[], Any], theirs: Callable[[], nn.Module], size: tuple[int, ...]
) -> None:
    """Keys, shapes, order and outputs are those of the hand-written torch model; weights load both ways."""
    x = torch.randn(size)
    built, plain = ours().create(x), theirs()
    assert list(shapes(built).items()) == list(shapes(plain).items())
    plain.load_state_dict(built.state_dict())
    assert [name for name, _ in built.named_modules()] == [name for name, _ in plain.named_modules()]
    for mode in (True, False):
        torch.testing.assert_close(built.train(mode)(x), plain.train(mode)(x), rtol=0, atol=0)


def test_no_replayml_code_runs_in_forward() -> None:
    """``__call__`` is torch's own, and no layer, hook or wrapper of replayml is left in the tree."""
    built = Net().create(torch.zeros(3, 4))
    assert type(built).__call__ is nn.Module.__call__
    for name, module in built.named_modules():
        assert name == "" or type(module).__module__.startswith("torch."), name
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


def test_forward_leaves_no_entry_on_the_tape() -> None:
    """Running, training and moving a built model, and writing attributes on it, records nothing."""
    built = Net().configure(width=6).build()
    before = list(built.tape)
    for _ in range(3):
        built(torch.zeros(3, 4)).sum().backward()
    built.steps = 3
    built.out.extra = nn.Linear(1, 1)
    built.register_buffer("seen", torch.zeros(1))
    built.eval().to(torch.float64)
    assert list(built.tape) == before
    assert [entry.method for entry in before] == ["configure"]


def test_running_the_unbuilt_model_says_to_build_it() -> None:
    """A forward pass before the build names the layer and ``build``."""
    with pytest.raises(NotBuiltError, match=r"Linear at 'hidden' has no weights yet\. Build the model first"):
        Net()(torch.zeros(3, 4))


# Sharing ------------------------------------------------------------------------------------------------------------


class Twice(Module):
    """One layer given to two places."""

    def __init__(self, layer: Any) -> None:
        self.left = layer
        self.right = Sequential(layer, Layer(nn.ReLU))
        self.items = LayerList(layer, layer)


def test_a_layer_given_twice_is_built_once() -> None:
    """One unbuilt layer in four places is one built layer in four places."""
    Counted.made = 0
    model = Twice(Layer(Counted))
    assert model.left is model.right[0]
    built = model.build()
    assert Counted.made == 1
    assert built.left is built.right[0] is built.items[0] is built.items[1]
    assert len(list(built.parameters())) == 1
    assert set(built.state_dict()) == {"left.weight", "right.0.weight", "items.0.weight", "items.1.weight"}


def test_a_layer_among_the_arguments_of_two_externals_is_built_once() -> None:
    """A module argument that two layers share is built once, also inside lists and dicts."""
    Counted.made = 0
    shared = Layer(Counted)
    model = Twice(Layer(models.Holder, shared, shared, table={"a": [shared]}))
    model.other = External(dict, key=shared)
    built = model.build()
    assert Counted.made == 1
    assert built.left.inner is built.left.others[0] is built.left.table["a"][0] is built.other["key"]


# Seeds --------------------------------------------------------------------------------------------------------------


def test_two_builds_with_one_seed_are_bit_identical_and_leave_the_global_generator_alone() -> None:
    """``seed`` fixes all weights and neither reads nor changes torch's global generator."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = Net().create(torch.zeros(2, 4), seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    second = Net().new().create(seed=5).state_dict()
    other = Net().create(seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["hidden.weight"], other["hidden.weight"])


def test_editing_one_block_leaves_the_weights_of_the_others() -> None:
    """With a seed, a change of one layer, or a new one before the others, changes no other layer's weights."""
    first = Net().create(seed=5).state_dict()
    edited = Net()
    edited.out.configure(out_features=3)
    edited.activation.configure(nn.PReLU)
    edited.early = Layer(nn.Linear, 9, 9)
    second = edited.build(seed=5).state_dict()
    for name in ("hidden.weight", "hidden.bias"):
        assert torch.equal(first[name], second[name])
    assert second["out.weight"].shape == (3, 8)


class OwnTensors(Module):
    """One that makes a parameter in its own ``__init__``."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(3))
        self.layer = Layer(nn.Linear, 2, 2)


def test_a_seed_covers_tensors_that_an_init_made() -> None:
    """A parameter made in a user's ``__init__`` comes from the seed as well."""
    first, second = OwnTensors().build(seed=1), OwnTensors().build(seed=1)
    assert torch.equal(first.token, second.token)
    assert not torch.equal(first.token, OwnTensors().build(seed=2).token)


# Failing builds -----------------------------------------------------------------------------------------------------


def test_a_build_that_lacks_a_size_leaves_the_model_unbuilt_and_usable() -> None:
    """The error names the layer and what it lacks; afterwards the model is configured and built."""
    model = Sequential(Layer(Counted), Layer(nn.Linear, None, 3), Layer(nn.ReLU))
    before = strategies.trace(model)
    with pytest.raises(BuildError, match="Linear at '1' lacks in_features"):
        model.build()
    assert strategies.trace(model) == before
    assert not model._has_built
    model.configure(1, in_features=2)
    assert model.build()(torch.zeros(5, 2)).shape == (5, 3)


def test_a_constructor_that_raises_leaves_the_model_unbuilt_and_usable() -> None:
    """The constructor's own error comes with the place of the layer; the model can be corrected and built."""
    model: Any = Sequential(Layer(Counted), Parallel(a=Layer(Refusing, 13)))
    before = strategies.trace(model)
    with pytest.raises(ArithmeticError, match="not 13") as caught:
        model.build(seed=3)
    assert any("model.1.0" in note and "test_built.py" in note for note in caught.value.__notes__)
    assert strategies.trace(model) == before
    model[1][0].configure(size=2)
    assert set(shapes(model.build())) == {"0.weight", "1.0.weight"}


def test_an_example_input_that_does_not_fit_leaves_the_model_unbuilt() -> None:
    """When the example input raises inside a layer, nothing is built and the modes are as before."""
    model = Net()
    before = strategies.trace(model)
    with pytest.raises(RuntimeError):
        model.build(torch.zeros(3, 5))
    assert strategies.trace(model) == before
    assert model.build(torch.zeros(3, 4)).hidden.in_features == 4


class FailingHook(Module):
    """One whose hooks raise."""

    def __init__(self) -> None:
        self.layer = Layer(Counted)

    @before_build
    def early(self) -> None:
        """Fail before the build."""
        raise LookupError("early")

    @after_build
    def late(self) -> None:
        """Fail after the build."""
        raise LookupError("late")


@pytest.mark.parametrize("phase", ["early", "late"])
def test_a_hook_that_raises_leaves_the_model_unbuilt(phase: str) -> None:
    """A failing ``before_build`` or ``after_build`` undoes the build; the hook waits for the next one again."""
    model = Sequential(FailingHook())
    getattr(model[0], phase)()
    before = strategies.trace(model)
    for _ in range(2):
        with pytest.raises(LookupError, match=phase):
            model.build()
        assert strategies.trace(model) == before
        assert isinstance(model[0].layer, Layer)


def test_a_built_model_refuses_configure_and_names_new() -> None:
    """Configuring a built model raises and says how to get an unbuilt copy."""
    built = Net().build()
    with pytest.raises(AlreadyBuiltError, match=r"model\.new\(\)\.configure"):
        built.configure(width=3)
    with pytest.raises(RuntimeError, match="built"):
        built.configure("hidden", out_features=3)


# Devices and types --------------------------------------------------------------------------------------------------


def test_building_on_the_meta_device_allocates_nothing() -> None:
    """``device="meta"`` gives every tensor its shape and no memory."""
    built = Net(width=1000).create(device="meta")
    assert {tensor.device.type for tensor in built.state_dict().values()} == {"meta"}
    assert built.hidden.weight.shape == (1000, 4)
    inferred = Shortcut().create(torch.zeros(1, 2, 4, 4), device="meta")
    assert inferred.shortcut.weight.device.type == "meta"
    assert shapes(inferred) == shapes(TorchShortcut())


def test_building_with_a_dtype() -> None:
    """``dtype`` is that of every floating point tensor; integer buffers stay integers."""
    built = Net().create(dtype=torch.float64)
    assert built.hidden.weight.dtype == torch.float64
    assert built.norm.num_batches_tracked.dtype == torch.int64
    assert built(torch.zeros(3, 4, dtype=torch.float64)).dtype == torch.float64


# Copies and pickles -------------------------------------------------------------------------------------------------


def double(module: nn.Module, args: Any, output: Any) -> Any:
    """Double an output; a torch hook."""
    return output * 2


def altered() -> Any:
    """Return a built model with a mode, dtype, frozen part, tie and hook of its own."""
    model: Any = Sequential[Any](Net(), LayerList(Layer(nn.Dropout)))
    tied = Tied()
    tied.tie()
    model.append(tied)
    built = model.build(dtype=torch.float64)
    built.train()
    built[0].norm.eval()
    built[0].hidden.weight.requires_grad_(False)
    built[2].second.register_forward_hook(double)
    built[0].out.half()
    return built


def saved(model: Any) -> Any:
    """Return a model after ``torch.save`` and ``torch.load``."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: dill.loads(dill.dumps(m)), saved],
    ids=["deepcopy", "pickle", "dill", "torch.save"],
)
def test_copies_of_a_built_model_keep_everything(copied: Callable[[Any], Any]) -> None:
    """Weights, dtype, mode, requires_grad, ties, hooks, attributes and the record survive; nothing is shared."""
    built = altered()
    built.note = ["kept"]
    copy_ = copied(built)
    assert [name for name, _ in copy_.named_modules()] == [name for name, _ in built.named_modules()]
    for (name, old), (_, new) in zip(built.state_dict().items(), copy_.state_dict().items(), strict=True):
        assert torch.equal(old, new), name
        assert old.dtype == new.dtype
        assert old.data_ptr() != new.data_ptr()
    assert [m.training for m in copy_.modules()] == [m.training for m in built.modules()]
    assert [p.requires_grad for p in copy_.parameters()] == [p.requires_grad for p in built.parameters()]
    assert copy_[2].second.weight is copy_[2].first.weight
    assert copy_[2].again is copy_[2].first
    assert list(copy_[2].second._forward_hooks.values()) == [double]
    assert copy_.note == ["kept"]
    assert copy_._has_built
    assert strategies.picture(copy_.new()) == strategies.picture(built.new())
    assert list(copy_.tape) == list(built.tape)
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(copy_[2](x), built[2](x), rtol=0, atol=0)


@given(strategies.recipes(), st.lists(strategies.edits(), max_size=3))
def test_a_built_tree_has_the_sharing_of_the_unbuilt_one(recipe: Any, edits: list[Any]) -> None:
    """Every path that a replayml or torch module stood at is there after the build, shared as before."""
    model = strategies.attempt(recipe)
    assume(model is not None)
    for edit in edits:
        strategies.try_to_perform(model, edit)
    paths = dict(model.named_modules(remove_duplicate=False))
    inside = {
        id(below)
        for module in model.modules()
        if isinstance(module, External)
        for below in module.modules()
        if below is not module
    }
    kept = {path: module for path, module in paths.items() if id(module) not in inside}
    built = model.create()
    for path, module in kept.items():
        new = built.get_submodule(path) if path else built
        assert not getattr(new, "_record", None) or new._record.built
        for other, same in kept.items():
            assert (module is same) == (new is (built.get_submodule(other) if other else built))
    assert not any(isinstance(module, External) and not module._record.built for module in built.modules())
    assert strategies.picture(built.new()) == strategies.picture(model.new())
    copy_ = pickle.loads(pickle.dumps(built))
    assert [name for name, _ in copy_.named_modules(remove_duplicate=False)] == [
        name for name, _ in built.named_modules(remove_duplicate=False)
    ]


def test_lazy_layers_of_torch_find_their_sizes_when_the_model_is_built() -> None:
    """A lazy layer that an ``__init__`` made is initialised by the example input, with its hooks gone."""

    class Lazy(Module):
        def __init__(self) -> None:
            self.first = Layer(nn.Linear, None, 3)
            self.second = nn.LazyLinear(2)

        def forward(self, x: Any) -> Any:
            return self.second(self.first(x))

    built = Lazy().build(torch.zeros(1, 4))
    assert type(built.second) is nn.Linear
    assert built.second.weight.shape == (2, 3)
    assert not built.second._forward_pre_hooks
    assert built(torch.zeros(1, 4)).shape == (1, 2)
