"""What a built model has beside its weights: it comes back, or the model is not saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
