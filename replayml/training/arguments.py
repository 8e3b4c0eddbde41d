"""What users give an application as model, loss and optimizer, and what they may have meant instead.

Invariants:
    * What could only fail later, in the middle of a training, is refused here, with its place and the next step.
    * What is right is passed on as it is; a class alone becomes the object that makes it when the model is built.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from replayml.core.errors import ArgumentError, BuildError
from replayml.core.signatures import bind, signature_of
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.layers.optimizer import Optimizer

__all__ = [
    "LossLike",
    "OptimizerLike",
    "as_loss",
    "as_optimizer",
    "check_keywords",
    "checked_model",
    "require_parameters",
]

# What an application takes; command lines read from this what may be named in a file.
LossLike = nn.Module | type[nn.Module] | Callable[..., Any] | None
OptimizerLike = Optimizer | type[torch.optim.Optimizer] | Callable[[list[nn.Parameter]], Any] | None


def check_keywords(cls: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise when a class does not take some arguments.

    Raises:
        ArgumentError: Naming the nearest of those that it takes.

    Example:
        >>> check_keywords(Layer, (), {})
        >>> check_keywords(dict, (), {"a": 1})
    """
    if not signature_of(cls).accepts_kwargs:
        bind(cls, args, kwargs)


def checked_model(model: Any, place: str) -> nn.Module:
    """Return a model.

    Args:
        model: What was given.
        place: Where, such as ``"model of Classifier"``.

    Raises:
        ArgumentError: When it is no module.

    Example:
        >>> checked_model(nn.Linear, "model of Classifier")
        Traceback (most recent call last):
        replayml.core.errors.ArgumentError: model of Classifier is a module, not the class Linear. Make one of it: \
Layer(Linear, ...)
    """
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, type) or not issubclass(model, nn.Module):
        raise ArgumentError(
            f"{place} is a module, such as replayml.MultiLayerPerceptron(None, [64], 10), not {_shown(model)}"
        )
    made = f"Layer({model.__name__}, ...)" if model.__module__.startswith("torch.") else f"{model.__name__}(...)"
    raise ArgumentError(f"{place} is a module, not the class {model.__name__}. Make one of it: {made}")


def as_loss(loss: Any, place: str) -> Any:
    """Return a loss, a class as the `Layer` or `External` of it.

    Args:
        loss: A module, a function, a class of either, or None.
        place: Where it was given.

    Raises:
        ArgumentError: When it cannot be called with ``(prediction, target)``.

    Example:
        >>> as_loss(nn.L1Loss, "loss of Regressor")
        Layer(L1Loss)
        >>> as_loss("mse", "loss of Regressor")
        Traceback (most recent call last):
        replayml.core.errors.ArgumentError: loss of Regressor is called with (prediction, target), which 'mse' cannot \
be. Did you mean nn.MSELoss? Give a torch loss, its class or a function
    """
    if loss is None or (isinstance(loss, nn.Module) and not isinstance(loss, Optimizer)):
        return loss
    if isinstance(loss, type) and issubclass(loss, nn.Module) and not issubclass(loss, Optimizer):
        return Layer(loss)
    if isinstance(loss, type) and any("__call__" in vars(base) for base in loss.__mro__):
        return External(loss)
    if callable(loss) and not isinstance(loss, (type, Optimizer)):
        return loss
    losses = [name for name in vars(nn) if name.endswith("Loss")]
    raise ArgumentError(
        f"{place} is called with (prediction, target), which {_shown(loss)} cannot be."
        f"{_meant(loss, losses, 'nn.', 'loss')} Give a torch loss, its class or a function"
    )


def as_optimizer(optimizer: Any, place: str) -> Any:
    """Return an optimizer, a class of ``torch.optim`` as the `Optimizer` of it.

    Args:
        optimizer: An `Optimizer`, a class of ``torch.optim``, or a function of the parameters that returns one.
        place: Where it was given.

    Raises:
        ArgumentError: When it is none of these.

    Example:
        >>> as_optimizer(torch.optim.SGD, "optimizer of Classifier")
        Optimizer(SGD)
        >>> as_optimizer("adam", "optimizer of Classifier")
        Traceback (most recent call last):
        replayml.core.errors.ArgumentError: optimizer of Classifier cannot be 'adam'. Did you mean torch.optim.Adam? \
Give a replayml.Optimizer, such as replayml.Adam(lr=1e-3), or a class of torch.optim
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    is_class = isinstance(optimizer, type)
    if is_class and issubclass(optimizer, Optimizer) and optimizer is not Optimizer:
        return optimizer()
    if is_class and issubclass(optimizer, torch.optim.Optimizer):
        return Optimizer(optimizer)
    if callable(optimizer) and not is_class and not isinstance(optimizer, nn.Module):
        return optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        what = f"an optimizer that exists ({type(optimizer).__name__}): the parameters are made later, by the build."
    else:
        classes = [name for name, value in vars(torch.optim).items() if isinstance(value, type)]
        what = f"{_shown(optimizer)}.{_meant(optimizer, classes, 'torch.optim.', '')}"
    raise ArgumentError(
        f"{place} cannot be {what} Give a replayml.Optimizer, such as replayml.Adam(lr=1e-3), or a class of torch.optim"
    )


def require_parameters(app: nn.Module, has_forward: bool) -> list[nn.Parameter]:
    """Return the parameters of an application that can be trained.

    Args:
        app: The application.
        has_forward: Whether its ``forward`` is its own, so that it needs no ``model``.

    Raises:
        BuildError: When there are none.
    """
    found = [parameter for parameter in app.parameters() if parameter.requires_grad]
    if found:
        return found
    name = type(app).__name__
    if has_forward or app._modules.get("model") is not None:
        reason = "no parameter of its modules requires a gradient. Let some: app.model.requires_grad_()"
    else:
        reason = f"it has no model. Give one, {name}(model), or assign one in __init__: self.model = ..."
    raise BuildError(f"{name} has no parameters to train: {reason}")


def _shown(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else reprlib.repr(value)


def _meant(given: Any, names: Iterable[str], prefix: str, ending: str) -> str:
    """Return which of the names a string may stand for, upper and lower case being the same."""
    if not isinstance(given, str):
        return ""
    plain = "".join(letter for letter in given.lower() if letter.isalnum())
    found = [name for name in names if name.lower() in (plain, plain + ending)]
    return f" Did you mean {prefix}{found[0]}?" if found else ""
