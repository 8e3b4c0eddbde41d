"""Every class that replayml can wrap comes back from a recipe: layers, losses, optimizers, schedulers, metrics."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F

import replayml
from replayml.core.copying import describe
from replayml.core.errors import RecipeError
from replayml.layers import initializers
from replayml.recipe import Recipe
from replayml.recipe.text.torch_names import CLASSES, FUNCTIONS, LAYERS, own_classes, torchmetrics_classes
from tests.recipe.test_plain import METRIC_ARGUMENTS, REQUIRED, assert_alike

# Beside those of `REQUIRED`: layers whose sizes are found later, and those that hold other modules.
MORE: dict[str, tuple[Any, ...]] = {
    "LazyConv1d": (2, 3),
    "LazyConv2d": (2, 3),
    "LazyConv3d": (2, 3),
    "LazyConvTranspose1d": (2, 3),
    "LazyConvTranspose2d": (2, 3),
    "LazyConvTranspose3d": (2, 3),
    "LazyLinear": (3,),
    "ModuleDict": (),
    "ModuleList": (),
    "ParameterDict": (),
    "ParameterList": (),
    "Sequential": (),
    "Transformer": (4, 2, 1, 1, 8, 0.2, F.gelu),
    "TransformerDecoder": (replayml.External(nn.TransformerDecoderLayer, 4, 2, 8), 2),
    "TransformerEncoder": (replayml.External(nn.TransformerEncoderLayer, 4, 2, 8), 2),
}

SCHEDULERS: dict[str, tuple[Any, ...]] = {
    "ChainedScheduler": ([],),
    "CosineAnnealingLR": (10,),
    "CosineAnnealingWarmRestarts": (10,),
    "ExponentialLR": (0.9,),
    "MultiStepLR": ([2, 4],),
    "OneCycleLR": (0.1, 10),
    "SequentialLR": ([], [5]),
    "StepLR": (5,),
}


def again(model: Any, **options: Any) -> Any:
    """Return a model that was written and read."""
    recipe = Recipe.from_json(model.recipe().to_json())
    copied = recipe.model(**options)
    assert copied.recipe() == recipe
    return copied


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("name", [name.removeprefix("torch.nn.") for name in LAYERS])
def test_every_layer_of_torch_comes_back_wrapped(name: str) -> None:
    """A `Layer` of any class of torch, configured or not, is the same after reading, and builds the same."""
    cls = getattr(nn, name)
    model = replayml.Layer(cls, *MORE.get(name, REQUIRED.get(name, ())))
    copied = again(model)
    assert copied.classtype is cls
    if name.startswith("Lazy"):
        assert str(copied.create()) == str(model.create())
    else:
        assert_alike(copied.create(), model.create())


@pytest.mark.parametrize("name", [name.removeprefix("torch.nn.") for name in LAYERS])
def test_every_layer_of_torch_may_be_configured(name: str) -> None:
    """The class of a layer, set later, and an argument of it come back from the tape."""
    cls = getattr(nn, name)
    model = replayml.Layer(nn.ReLU).configure(cls)
    given = [p for p in inspect.signature(cls.__init__).parameters.values() if p.default in (True, False)]
    for parameter in given[:1]:
        if parameter.name in model.configurables:
            model.configure(parameter.name, not parameter.default)
    copied = again(model)
    assert copied.classtype is cls
    assert copied.kwargs == model.kwargs


OPTIMIZERS = [name for name in CLASSES if name.startswith("torch.optim.") and "lr_scheduler" not in name]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_comes_back(name: str) -> None:
    """An optimizer of torch with a rate is the same after reading, and makes the same optimizer."""
    cls: Any = CLASSES[name]
    weight = nn.Parameter(torch.ones(2, 2))
    made = [
        optimizer.create(params=[weight]) if "params" in optimizer.configurables else optimizer.create([weight])
        for optimizer in (replayml.Optimizer(cls, lr=0.5), again(replayml.Optimizer(cls, lr=0.5)))
    ]
    assert [type(optimizer) for optimizer in made] == [cls, cls]
    assert made[0].defaults == made[1].defaults
    assert made[0].defaults["lr"] == 0.5


@pytest.mark.parametrize("name", [name for name in CLASSES if "lr_scheduler" in name])
def test_every_scheduler_comes_back(name: str) -> None:
    """A scheduler of torch, to be made later, keeps its class and arguments."""
    cls: Any = CLASSES[name]
    names = list(inspect.signature(cls).parameters)
    own = names[names.index("optimizer") + 1 :] if names[0] == "optimizer" else names
    model = replayml.External(cls, **dict(zip(own, SCHEDULERS.get(cls.__name__, ()), strict=False)))
    assert again(model).kwargs == model.kwargs


@pytest.mark.parametrize("name", torchmetrics_classes())
def test_every_metric_comes_back_wrapped(name: str) -> None:
    """An `External` of any metric keeps its class and arguments."""
    cls: Any = torchmetrics_classes()[name]
    assert issubclass(cls, torchmetrics.Metric)
    parameters = inspect.signature(cls.__init__).parameters
    kwargs = {key: METRIC_ARGUMENTS[key] for key in parameters if key in METRIC_ARGUMENTS}
    model = replayml.External(cls, **kwargs)
    copied = again(model)
    assert (copied.classtype, copied.kwargs) == (cls, model.kwargs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_pinned_function_may_be_an_argument(name: str) -> None:
    """A function of torch that stands in the tables comes back as the same function."""
    model = replayml.External(dict, function=FUNCTIONS[name])
    assert again(model, trust=[dict]).kwargs["function"] is FUNCTIONS[name]


# Our own initializers -----------------------------------------------------------------------------------------------

OWN = [getattr(initializers, name) for name in initializers.__all__ if name != "Initializer"]


@pytest.mark.parametrize("cls", OWN, ids=lambda cls: cls.__name__)
def test_initializers_need_no_trust(cls: Any) -> None:
    """What an `initialize` on the tape names of ours is known to every program that uses replayml."""
    model = replayml.MultiLayerPerceptron(4, [8], 2)
    model[..., "layer"].initialize(cls())
    model[..., "layer"].initialize(cls(nn.Linear))
    copied = again(model)
    assert list(copied.tape) == list(model.tape)
    built = [each.create(seed=3).state_dict() for each in (model, copied)]
    assert all(torch.equal(tensor, built[1][key]) for key, tensor in built[0].items())


def test_the_table_of_our_own_classes_is_complete() -> None:
    """Every initializer that can be used as it is stands in the table; the base class, to be derived from, does not."""
    assert {name.rsplit(".", 1)[1] for name in own_classes()} == {cls.__name__ for cls in OWN}


class Halves(initializers.Initializer):
    """An initializer of a user's."""


def test_an_initializer_of_ones_own_needs_trust() -> None:
    """A class of the user's is trusted by the user."""
    model = replayml.Layer(nn.Linear, 2, 3).initialize(Halves(nn.Linear))
    recipe = Recipe.of(describe(model))
    with pytest.raises(RecipeError, match=r"untrusted-name.*test_layers\.Halves"):
        recipe.model()
    assert recipe.model([Halves]).recipe() == recipe
