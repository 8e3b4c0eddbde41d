"""Initializers: which tensors they write, and what."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.layers.containers import Sequential
from replayml.layers.initializers import Constant, Initializer, Kaiming, Normal, Orthogonal, Uniform, Xavier
from replayml.layers.layer import Layer

ALL = [Constant(nn.Linear), Normal(), Uniform(), Kaiming(), Xavier(), Xavier(uniform=True), Orthogonal()]


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of every tensor of a module."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_constant_fills_weights_and_biases_with_their_values(weight, bias):
    """`Constant` gives every weight one value and every bias the other."""
    layer = nn.BatchNorm2d(3)
    Constant(weight=weight, bias=bias).initialize(layer)
    assert torch.equal(layer.weight, torch.full((3,), weight))
    assert torch.equal(layer.bias, torch.full((3,), bias))


@given(st.sampled_from(ALL), st.sampled_from([nn.ReLU(), nn.Embedding(3, 2), nn.LayerNorm(4)]))
def test_other_layers_stay_as_they_are(initializer, layer):
    """A layer that is not among the targets is not touched."""
    before = values(layer)
    initializer.initialize(layer)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("initializer", ALL, ids=repr)
def test_only_the_named_tensors_are_written(initializer):
    """A tensor whose name is not given keeps its values, its identity and its gradient setting."""
    layer = nn.Linear(4, 4)
    layer.bias.requires_grad_(requires_grad=False)
    before, weight = values(layer), layer.weight
    initializer.initialize(layer, tensors=("weight", "absent"))
    assert layer.weight is weight
    assert layer.weight.requires_grad
    assert not torch.equal(layer.weight, before["weight"])
    assert torch.equal(layer.bias, before["bias"])


@pytest.mark.parametrize("initializer", ALL, ids=repr)
def test_a_layer_without_a_bias_is_fine(initializer):
    """A tensor that a layer does not have is passed over."""
    initializer.initialize(nn.Linear(4, 4, bias=False))


def test_the_spread_is_the_one_asked_for():
    """The drawn values have the mean, the spread or the bounds that were given."""
    torch.manual_seed(0)
    layer = nn.Linear(200, 200)
    Normal(mean=3, std=0.5).initialize(layer)
    assert layer.weight.mean().item() == pytest.approx(3, abs=0.05)
    assert layer.weight.std().item() == pytest.approx(0.5, rel=0.05)
    Uniform(low=2, high=3).initialize(layer)
    assert 2 <= layer.weight.min().item() < 2.05
    assert 2.95 < layer.weight.max().item() <= 3
    Kaiming(bias=0.25).initialize(layer)
    assert layer.weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.05)
    assert torch.all(layer.bias == 0.25)
    Orthogonal(gain=2).initialize(layer)
    assert torch.allclose(layer.weight @ layer.weight.T, 4 * torch.eye(200), atol=1e-3)


def test_equal_settings_make_equal_initializers():
    """An initializer is data: equal to its copy, unequal to one with another setting, and fixed."""
    assert copy.deepcopy(Normal(std=0.1)) == Normal(std=0.1) != Normal(std=0.2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Normal().std = 3.0  # type: ignore[misc]


def test_a_tensor_that_cannot_be_initialized_is_named():
    """The error of a tensor with too few dimensions says which tensor of which layer it was."""
    with pytest.raises(ValueError, match="fewer than 2 dimensions") as caught:
        Kaiming(targets=nn.BatchNorm1d).initialize(nn.BatchNorm1d(3))
    assert any("while initializing 'weight' of BatchNorm1d(3" in note for note in caught.value.__notes__)


def test_the_base_class_says_what_to_override():
    """An initializer without a rule says what it lacks."""
    with pytest.raises(NotImplementedError, match=r"lacks initialize_tensor\(tensor, name\)"):
        Initializer().initialize(nn.Linear(1, 1))


def test_a_model_is_initialized_when_it_is_built():
    """`initialize` on an unbuilt model takes effect on the real layers, in copies of the model too."""
    model = Sequential(Layer(nn.Linear, 2, 3), Layer(nn.BatchNorm1d, 3))
    model.initialize(Constant((nn.Linear, nn.BatchNorm1d), weight=7.0), tensors="weight")
    for built in (model.create(), model.new().build()):
        assert torch.all(built[0].weight == 7)
        assert torch.all(built[1].weight == 7)
