"""What a built model has beside its weights: it comes back, or the model is not saved."""

from __future__ import annotations

import copy
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import replayml


class Net(replayml.Module):
    """A model with torch layers that show none of their settings."""

    def __init__(self, function: Any = None) -> None:
        self.encoder = replayml.Layer(nn.TransformerEncoderLayer, 4, 2, batch_first=True)
        self.head = replayml.Layer(nn.Linear, 4, 1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, length, 1)."""
        self.calls += 1
        self.head.last_output = result = self.head(self.encoder(x))
        return result  # type: ignore[no-any-return]

    @replayml.after_build
    def double(self) -> None:
        """Double what the head returns."""
        self.head.register_forward_hook(lambda module, args, output: 2 * output)


def _hook(model: Any) -> None:
    model.head.register_forward_hook(lambda module, args, output: 3 * output)


def _pre_hook(model: Any) -> None:
    model.register_forward_pre_hook(lambda module, args: args)


def _forward(model: Any) -> None:
    model.head.forward = lambda x: 0 * x


def _setting(model: Any) -> None:
    model.encoder.norm_first = True


def _function(model: Any) -> None:
    model.encoder.activation = torch.tanh


def _order(model: Any) -> None:
    model._modules["encoder"] = model._modules.pop("encoder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_hook, "forward hooks: head"),
        (_pre_hook, "forward hooks: the model itself"),
        (_forward, "another forward: head"),
        (_setting, "other settings: encoder"),
        (_function, "other settings: encoder"),
        (_order, "another order of children: the model itself"),
    ],
)
def test_what_the_recipe_does_not_make_is_not_saved(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    """A hook, a forward, a setting of torch's own or an order that came after the build is refused with its place."""
    model = Net().build()
    change(model)
    with pytest.raises(replayml.CheckpointError, match=f"changed after its build.*{message}.*after_build"):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_the_recipe_makes_and_what_a_forward_keeps_is_saved(tmp_path: Path) -> None:
    """Hooks, logs and maps of the recipe come back, and counters and outputs that a forward keeps are no change."""
    model: Any = Net()
    model.double()
    model.encoder.log_output("encoded")
    model = model.build()
    compiled: Any = Net().build()
    compiled.encoder = torch.compile(compiled.encoder, backend="eager")
    compiled.head.compile(backend="eager")
    x = torch.randn(2, 3, 4)
    for each in (model, compiled):
        each.eval()
        expected = each(x)
        each.save(tmp_path / "model")
        assert torch.equal(replayml.load(tmp_path / "model")(x), expected)
    mapped = replayml.Sequential(replayml.Layer(nn.Linear, 4, 2).set_input_map("x").set_output_map("y")).build()
    mapped.save(tmp_path / "mapped")
    assert sorted(replayml.load(tmp_path / "mapped")({"x": x})) == ["x", "y"]


class Noisy(nn.Module):
    """Draws tensors that no state_dict has, and computes one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))
        self.register_buffer("drawn", torch.randn(size), persistent=False)
        self.register_buffer("computed", torch.ones(size), persistent=False)
        self.register_buffer("cache", None, persistent=False)
        self.plain = torch.randn(size)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of the input."""
        result: Tensor = x * self.weight + self.drawn * self.computed + self.plain
        self.cache = result
        return result


@pytest.mark.parametrize("form", ["model.replayml", "model"])
def test_tensors_that_no_state_dict_has_come_back(form: str, tmp_path: Path) -> None:
    """Non-persistent buffers and plain tensors that were drawn or changed are in the file, computed ones are not."""
    model = replayml.Sequential(replayml.Layer(Noisy, 4)).build(seed=3)
    x = torch.randn(2, 4)
    expected = model(x)
    model.save(tmp_path / form)
    assert "0.computed" not in replayml.recipe.files.reading.read_model_file(tmp_path / form).names
    again = replayml.load(tmp_path / form, trust=[Noisy])
    assert torch.equal(again(x), expected)
    assert again.state_dict().keys() == model.state_dict().keys()
    again[0].computed.fill_(5)
    again.save(tmp_path / form)
    third = replayml.load(tmp_path / form, trust=[Noisy])
    assert torch.equal(third(x), again(x))
    assert not torch.equal(third(x), expected)
    assert torch.equal(replayml.load(tmp_path / form, at="0", trust=[Noisy])(x), third(x))


class Sharing(replayml.Module):
    """Has one layer in two places."""

    def __init__(self) -> None:
        self.one = replayml.Layer(Noisy, 4)
        self.other = self.one


def test_a_shared_tensor_that_no_state_dict_has_stays_one(tmp_path: Path) -> None:
    """A layer with such tensors that stands in two places is one layer again."""
    model = Sharing().build()
    model.save(tmp_path / "model")
    again = replayml.load(tmp_path / "model", trust=[Noisy])
    assert again.one is again.other
    assert torch.equal(again.other.drawn, model.one.drawn)


class Wider(Noisy):
    """Draws more than it did when its model was saved."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("drawn", torch.randn(2 * size), persistent=False)


def test_a_stored_buffer_of_another_shape_is_refused(tmp_path: Path) -> None:
    """Where the class makes the buffer in another shape now, the file is refused with its name."""
    replayml.Sequential(replayml.Layer(Noisy, 4)).build().save(tmp_path / "model")
    rename = {f"{__name__}.Noisy": f"{__name__}.Wider"}
    with pytest.raises(replayml.CheckpointError, match=r"of another shape: 0.drawn: \(4,\) in the file, \(8,\)"):
        replayml.load(tmp_path / "model", trust=[Wider], rename=rename)


# Attributes -----------------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """A layer of the user's own, with numbers, a function, a counter and a date."""

    limit = 9.0

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, 1))
        self.stride = stride
        self.function = torch.relu
        self.label = "first"
        self.mean: float | None = None
        self.steps = 0
        self.made = time.perf_counter()
        self.drawn = random.random()
        self.device = "cpu"

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, length)."""
        self.steps += 1
        setattr(self, "last_size", x.shape[0])  # noqa: B010 - a name that only a string tells
        x = x * (1.0 if self.mean is None else self.mean) * (self.made > 0) * (self.drawn >= 0)
        x = nn.functional.conv1d(x.to(self.device), self.weight, stride=self.stride)
        result: Tensor = self.function(x).clamp(max=self.limit)
        return result

    def fit(self, x: Tensor) -> None:
        """Note the mean of some data."""
        self.mean = float(x.mean())


class Around(replayml.Module):
    """Has a part of replayml's, and one of torch's."""

    def __init__(self, by: float = 1.0, part: Any = None) -> None:
        self.by = by
        self.conv = replayml.Layer(Conv)
        self.part = Part() if part is None else part

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, length)."""
        result: Tensor = self.part(self.conv(x) * self.by)
        return result


class Part(replayml.Module):
    """A part that keeps none of its arguments under their names."""

    def __init__(self, shift: float = 0.0) -> None:
        self._shift = shift
        self.inner = replayml.Layer(nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of the input."""
        result: Tensor = self.inner(x) + self._shift
        return result


def _with(path: str, **values: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        module = model.get_submodule(path)
        for name, value in values.items():
            setattr(module, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with("", by=3.0), "attributes that were set: by is 3.0 instead of 1.0"),
        (_with("conv", stride=2), "attributes that were set: conv.stride is 2 instead of 1"),
        (_with("conv", function=torch.tanh), "attributes that were set: conv.function is tanh instead of relu"),
        (_with("conv", limit=1.0), "attributes that were set: conv.limit is 1.0 instead of 9.0"),
        (_with("", conv=Conv(stride=2)), "attributes that were set: conv.stride is 2 instead of 1"),
        (_with("", part=Part(2.0).build()), "parts of another model: part.shift is 2.0 instead of 0.0"),
    ],
)
@pytest.mark.parametrize("form", ["model.replayml", "model"])
def test_what_was_set_on_a_built_model_is_not_saved(
    change: Callable[[Any], None], message: str, form: str, tmp_path: Path
) -> None:
    """A number or function that the model computes with, or a part of other arguments, is refused with both values."""
    model = Around().build()
    change(model)
    with pytest.raises(replayml.CheckpointError, match=f"changed after its build.*{message}.*model.new.*after_build"):
        model.save(tmp_path / form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with("", name="mine"), "attributes that came new: name is 'mine'"),
        (_with("conv", classes=("a", "b")), r"conv.classes is \('a', 'b'\)"),
        (_with("conv", label="second"), "conv.label is 'second' instead of 'first'"),
    ],
)
def test_what_makes_no_difference_is_told(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    """What no code of the model reads is told in a warning, and the model is saved."""
    model = Around().build()
    change(model)
    with pytest.warns(UserWarning, match=f"{message}.*saved without that.*model.new.*after_build"):
        model.save(tmp_path / "model")
    replayml.load(tmp_path / "model", trust=[Conv])


def test_what_a_model_keeps_itself_is_no_change(tmp_path: Path) -> None:
    """Counters, fitted numbers, dates, random numbers, devices, private names and data that changes are let be."""
    model: Any = Around().build()
    for _ in range(3):
        model(torch.ones(2, 1, 4))
    model.conv.fit(torch.ones(3))
    model.conv.device = "cuda:0"
    model.conv._cache = 3
    model.conv.seen = [1, 2]
    model.conv.outputs = torch.ones(2)
    model.save(tmp_path / "model")


def test_a_part_of_another_model_with_the_same_arguments_is_saved(tmp_path: Path) -> None:
    """A part that is built elsewhere, or copied, with the arguments that the recipe has is a matter of weights only."""
    model: Any = Around().build()
    other: Any = Around(part=Part(0.0)).build()
    nn.init.constant_(other.conv.weight, 5)
    model.part, model.conv = other.part, other.conv
    model.save(tmp_path / "model")
    assert replayml.load(tmp_path / "model", trust=[Conv]).conv.weight.item() == 5
    for given in (Around(part=Part(2.0)).build(), replayml.Sequential(Around(part=Part(2.0)), Part(3.0)).build()):
        given.save(tmp_path / "model")
        copy.deepcopy(given).save(tmp_path / "model")
        pickle.loads(pickle.dumps(given)).save(tmp_path / "model")


def test_activation_checkpoints_leave_no_trace(tmp_path: Path) -> None:
    """What torch puts around a module to compute it twice is no part of the model."""
    model: Any = Net().build().eval()
    expected = model(torch.ones(1, 2, 4))
    model.encoder = checkpoint_wrapper(model.encoder)
    model.save(tmp_path / "model")
    assert torch.equal(replayml.load(tmp_path / "model")(torch.ones(1, 2, 4)), expected)


def test_synchronised_normalisation_is_saved_as_what_the_recipe_has(tmp_path: Path) -> None:
    """A trainer over several processes exchanges these layers; what is loaded has those of the recipe."""
    model: Any = replayml.Sequential(replayml.Layer(nn.BatchNorm1d, 3)).build()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    assert type(model[0]) is nn.SyncBatchNorm
    model.save(tmp_path / "model")
    assert type(replayml.load(tmp_path / "model")[0]) is nn.BatchNorm1d


# Not built ------------------------------------------------------------------------------------------------------


class Unbuilt(replayml.Module):
    """Has a torch layer of its own before it is built."""

    def __init__(self, by: float = 1.0) -> None:
        self.by = by
        self.conv = nn.Conv1d(1, 2, 3)
        self.head = replayml.Layer(nn.Linear, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor."""
        result: Tensor = self.head(self.conv(x) * self.by)
        return result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.__dict__.update(by=3.0), "attributes that were set: by is 3.0 instead of 1.0"),
        (_with("conv", stride=(2,)), r"other settings: conv.stride is \(2,\) instead of \(1,\)"),
        (lambda model: model.conv.register_forward_hook(print), "forward hooks: conv"),
        (lambda model: model.conv.requires_grad_(False), "frozen, or no longer: conv.bias, conv.weight"),
        (lambda model: model.conv.register_parameter("bias", None), r"missing: conv \(bias\)"),
        (lambda model: model.conv.add_module("more", nn.ReLU()), "other modules: conv.more"),
    ],
)
@pytest.mark.parametrize("form", ["model.replayml", "model"])
def test_an_unbuilt_model_that_its_recipe_does_not_make_is_not_saved(
    change: Callable[[Any], Any], message: str, form: str, tmp_path: Path
) -> None:
    """A change that went past the tape is refused with its place, and a recorded one comes back."""
    model: Any = Unbuilt().configure(by=2.0).configure(by=1.0)
    model.save(tmp_path / form)
    again = replayml.load(tmp_path / form)
    assert again.tape == model.tape
    change(model)
    with pytest.raises(replayml.CheckpointError, match=f"not what its recipe makes.*{message}.*configure"):
        model.save(tmp_path / form)
    assert replayml.load(tmp_path / form).by == 1.0


class Once(replayml.Module):
    """Can be made once only."""

    made: ClassVar[list[int]] = []

    def __init__(self) -> None:
        if len(self.made) > 2:
            raise ValueError("no more of these")
        self.made.append(1)


def test_an_unbuilt_model_that_cannot_be_made_again_is_not_saved(tmp_path: Path) -> None:
    """The error of the constructor is raised, with a note that says when."""
    model = Once()
    Once.made.extend([1] * 5)
    with pytest.raises(ValueError, match="no more of these") as caught:
        model.save(tmp_path / "model")
    assert any("while making Once again, as loading it would" in note for note in caught.value.__notes__)
    assert list(tmp_path.iterdir()) == []
