"""Optimizers: made later, from parameters that arrive later."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import AlreadyBuiltError, ArgumentError, BuildError, ConfigurationError
from replayml.layers.layer import Layer
from replayml.layers.optimizer import SGD, Adam, AdamW, Optimizer, RMSprop
from replayml.module.module import Module

NAMED = [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW), (SGD, torch.optim.SGD), (RMSprop, torch.optim.RMSprop)]
rates = st.floats(1e-6, 1.0)


class Trained(Module):
    """A model that holds its optimizer, as an application does."""

    def __init__(self, width=3, optimizer=None):
        self.net = Layer(nn.Linear, 2, width)
        self.optimizer = optimizer or Adam(lr=0.1)

    def forward(self, x):
        return self.net(x)


def chosen(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the parameters that a torch optimizer optimizes."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def weights_of(module: nn.Module) -> list[nn.Parameter]:
    """Choose the weights of a model, not its biases."""
    return [parameter for name, parameter in module.named_parameters() if name.endswith("weight")]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Tell whether two lists hold the same tensors, not equal ones."""
    return len(found) == len(expected) and all(a is b for a, b in zip(found, expected, strict=True))


@given(st.sampled_from(NAMED), rates, rates)
def test_each_class_makes_its_torch_optimizer(classes, rate, later):
    """The arguments, by position or name, and what was configured later, reach the torch class."""
    cls, torch_class = classes
    net = nn.Linear(2, 3)
    for optimizer in (cls(rate), cls(lr=rate), Optimizer(torch_class, lr=rate)):
        made = optimizer.create(net.parameters())
        assert type(made) is torch_class
        assert made.defaults["lr"] == rate
        assert same(chosen(made), list(net.parameters()))
        assert optimizer.configure(lr=later).create(net.parameters()).defaults["lr"] == later
        assert optimizer.new().create(net.parameters()).defaults["lr"] == later


@pytest.mark.parametrize(("cls", "torch_class"), NAMED)
def test_absent_arguments_keep_the_defaults_of_torch(cls, torch_class):
    """What is not given is what torch takes by default."""
    net = nn.Linear(2, 3)
    assert cls().create(net.parameters()).defaults == torch_class(net.parameters()).defaults


def test_parameters_may_be_given_at_once_or_configured():
    """`params` given by name or position, in the call or later, as a generator too, are used as they are."""
    net = nn.Linear(2, 3)
    expected = list(net.parameters())
    for optimizer in (
        SGD(lr=0.1, params=net.parameters()),
        Optimizer(torch.optim.SGD, net.parameters(), lr=0.1),
        SGD(lr=0.1).configure(params=net.parameters()),
        SGD(lr=0.1).configure("params", net.parameters()),
        SGD(lr=0.1).configure(params=net.parameters).configure(lr=0.2),
    ):
        assert same(chosen(optimizer.create()), expected)
        assert same(chosen(optimizer.create()), expected)
        assert same(chosen(optimizer.build()), expected)


def test_parameter_groups_are_passed_on():
    """A list of groups reaches torch as such."""
    net = nn.Linear(2, 3)
    made = SGD(lr=0.1).create([{"params": [net.weight]}, {"params": [net.bias], "lr": 0.5}])
    assert [group["lr"] for group in made.param_groups] == [0.1, 0.5]


def test_a_function_of_the_module_chooses():
    """A function as `params` gets the module that `create` gets, and goes before its parameters."""
    net = nn.Linear(2, 3)
    optimizer = SGD(lr=0.1).params(weights_of)
    assert same(chosen(optimizer.create(net)), [net.weight])
    assert same(chosen(optimizer.new().create(net)), [net.weight])
    with pytest.raises(BuildError, match=r"SGD \(made at .*test_optimizer.py:\d+\) has a function that chooses"):
        optimizer.create()


def test_a_module_stands_for_its_trainable_parameters():
    """Given a module, the optimizer takes the parameters that require a gradient."""
    net = nn.Linear(2, 3)
    net.bias.requires_grad_(requires_grad=False)
    assert same(chosen(SGD().create(net)), [net.weight])


def test_nothing_to_optimize_is_an_error_that_says_so():
    """Without parameters `create` raises and shows the call that is right."""
    with pytest.raises(BuildError, match=r"has no params to optimize: \.create\(model\.parameters\(\)\)"):
        Adam().create()


def test_wrong_arguments_are_refused_when_they_are_given():
    """An unknown argument, a class that is no optimizer, and a value that is missing are errors with the choices."""
    with pytest.raises(ArgumentError, match="Adam takes no 'learning_rate'"):
        Adam(learning_rate=0.1)
    with pytest.raises(ConfigurationError, match=r"takes no 'momentun'\. Did you mean 'momentum'"):
        SGD().configure(momentun=0.9)
    with pytest.raises(ArgumentError, match=r"wraps a subclass of torch\.optim\.optimizer\.Optimizer"):
        Optimizer(nn.Linear, 2, 3)
    with pytest.raises(ArgumentError, match="got 'lr' twice"):
        Adam(0.1, lr=0.2)


def test_the_class_may_be_swapped():
    """Another class keeps the arguments that it takes and drops the others."""
    optimizer = Adam(lr=0.3, betas=(0.8, 0.9)).configure(torch.optim.SGD)
    made = optimizer.new().create(nn.Linear(1, 1))
    assert type(made) is torch.optim.SGD
    assert made.defaults["lr"] == 0.3


@given(st.sampled_from(NAMED), rates)
def test_it_stands_in_a_model_before_and_after_the_build(classes, rate):
    """In a model the optimizer is configured, copied and built over, and makes the torch optimizer afterwards."""
    cls, torch_class = classes
    model = Trained(optimizer=cls(lr=0.5))
    model.optimizer.configure(lr=rate)
    model.configure(width=4)
    for built in (model.create(), model.new().build()):
        assert isinstance(built.optimizer, cls)
        assert list(built.state_dict()) == ["net.weight", "net.bias"]
        made = built.optimizer.create(built.parameters())
        assert type(made) is torch_class
        assert made.defaults["lr"] == rate
        assert same(chosen(made), list(built.parameters()))


def test_configured_functions_hold_in_a_built_model():
    """A function of the module, configured before the build, chooses from the built model."""
    built = Trained(optimizer=SGD().params(weights_of)).build()
    assert same(chosen(built.optimizer.create(built)), [built.net.weight])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_built_model_keep_their_optimizer(copied):
    """After a deep copy or pickling the optimizer optimizes the copy."""
    built = Trained(optimizer=AdamW(lr=0.25)).build()
    again = copied(built)
    made = again.optimizer.create(again.parameters())
    assert made.defaults["lr"] == 0.25
    assert same(chosen(made), list(again.parameters()))
    assert repr(again.new()) == repr(built.new())


def test_a_built_model_does_not_change_its_optimizer():
    """Configuring after the build raises and names the way."""
    with pytest.raises(AlreadyBuiltError, match=r"model\.new\(\)"):
        Trained().build().optimizer.configure(lr=1.0)


def test_what_it_shows():
    """The text of an optimizer is its class and arguments, without the parameters."""
    assert repr(SGD(lr=0.5, params=nn.Linear(2, 2).parameters())) == "SGD(SGD, lr=0.5)"


def test_steps_go_down():
    """The torch optimizer that a model makes trains it."""
    torch.manual_seed(0)
    built = Trained(optimizer=SGD(lr=0.1)).build()
    made = built.optimizer.create(built)
    x = torch.randn(16, 2)
    losses = []
    for _ in range(5):
        made.zero_grad()
        loss = built(x).square().mean()
        loss.backward()
        made.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
