"""What a worker serves: a model that it replayed, or a function, with what it takes and returns.

Invariants:
    * A model runs in evaluation mode and without gradients.
    * No caller gives an argument whose name starts with an underscore: with such ones a program leaves out steps of a
      flow.
    * Where there is an example, it was run before the first request: a service that cannot answer does not start.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from replayml.core.errors import ConfigurationError
from replayml.module.saving import load
from replayml.serving.errors import Refusal
from replayml.serving.messages.parameters import Parameters
from replayml.serving.messages.schema import TensorSpec, describe_output, specs_of, taken
from replayml.serving.messages.wire import decode
from replayml.serving.packing.spec import Spec
from replayml.serving.worker.batching import parted
from replayml.serving.worker.streaming import Items, is_stream

__all__ = ["Target"]

_GIVEN = frozenset({"args", "kwargs"})
_LONGEST_TEXT = 200
_STEADY = ("torch.nn.modules.", "replayml.blocks.", "replayml.layers.")


class Target:
    """What is served.

    Args:
        spec: What to serve.

    Attributes:
        title: What it is called.
        version: Which version of the service it is.
        specs: What it takes; None where nothing was declared.
        output: The form of what it returns, as `replayml.serving.messages.schema.describe_output` tells it; of a
            stream, the form of its first item.
        example: The inputs that the service was given as an example; None where there are none.
        takes: What its arguments are called, as far as that is known.
        is_stream: Whether its result comes item by item; None where that is not known.
        has_rows: Whether the first dimension of each input counts rows.
        is_batchable: Whether requests may run together.
        is_steady: Whether the time that it takes depends on the shapes of its inputs alone: it is made of layers of
            torch and replayml, and holds no code of the user.

    Raises:
        ConfigurationError: When the example does not fit it.
    """

    def __init__(self, spec: Spec) -> None:
        self.title = spec.title
        self.version = spec.version
        self.has_rows = spec.has_rows
        self.is_batchable = spec.most_rows > 0
        for name in spec.imports:
            importlib.import_module(name)
        self._function, self._forward, self.is_steady = _opened(spec)
        self._has_gradients = spec.kind == "function"
        self.specs: tuple[TensorSpec, ...] | None = None
        self.output: Any = None
        self.example: Sequence[torch.Tensor] | None = None
        self.takes = Parameters(_signature(self._forward), None)
        self.is_stream: bool | None = True if _yields(self._forward) else None
        if spec.example:
            self._rehearse(decode(bytearray(Path(spec.example).read_bytes())))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run it; a result that comes item by item is made into `replayml.serving.worker.streaming.Items`."""
        result = self._function(*args, **kwargs)
        return Items(result, has_gradients=self._has_gradients) if is_stream(result) else result

    def _rehearse(self, example: Sequence[torch.Tensor]) -> None:
        self.specs = specs_of(example, any_rows=self.has_rows)
        self.takes = Parameters(_signature(_asked(self._forward)), len(self.specs))
        self.example = example
        rows = example[0].shape[0] if self.has_rows else None
        result = self(*(value.clone() for value in example))
        self.is_stream = isinstance(result, Items)
        if isinstance(result, Items):
            if self.is_batchable:
                raise ConfigurationError(f"{self.title} returns a stream, which has no rows. Serve it with batch=False")
            with contextlib.closing(result) as items:
                result = next(items, None)
        self.output = describe_output(result, rows)
        if self.is_batchable and rows is not None:
            try:
                parted(self._function(*(torch.cat([value, value]) for value in example)), [rows, rows])
            except ValueError as error:
                raise ConfigurationError(
                    f"{self.title} cannot run requests as one batch: {error}. Serve it with batch=False"
                ) from error

    def arguments(self, given: Any) -> tuple[tuple[Any, ...], Mapping[str, Any], int | None]:
        """Return the arguments in a request, checked, and how many rows they have where that counts.

        Raises:
            Refusal: When they are not what it takes.
        """
        if not isinstance(given, dict) or not given.keys() <= _GIVEN:
            raise Refusal("wrong-arguments", {"expected": '{"args": [...], "kwargs": {"name": ...}}'})
        args, kwargs = given.get("args", ()), given.get("kwargs", {})
        if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
            raise Refusal("wrong-arguments", {"expected": "a list as args, an object as kwargs"})
        if any(type(name) is not str for name in kwargs):
            raise Refusal("wrong-arguments", {"expected": "names as keys of kwargs"})
        if private := [name for name in kwargs if name.startswith("_")]:
            raise Refusal("wrong-arguments", {"found": f"{private[0][:_LONGEST_TEXT]}, which is for the program alone"})
        if self.specs is None:
            args, kwargs = self.takes.bound(args, kwargs)
            return tuple(args), kwargs, None
        if kwargs or len(args) != len(self.specs):
            args, kwargs = self.takes.placed(args, kwargs)
        checked = taken(self.specs, args, any_rows=self.has_rows)
        return checked, kwargs, checked[0].shape[0] if self.is_batchable and checked else None


def _opened(spec: Spec) -> tuple[Callable[..., Any], Callable[..., Any], bool]:
    """Return what to call, what has its signature, and whether it is steady."""
    if spec.kind == "function":
        function = _found(spec.place)
        return function, function, False
    trust = [_found(place) for place in spec.trust]
    model = load(spec.place, trust=trust, rename=spec.renames or None)
    is_steady = False
    if isinstance(model, nn.Module):
        model.eval()
        for part in model.modules():
            take = getattr(type(part), "_take_owners", None)
            if take is not None:
                take(part, spec.owners)  # a client of another service of the same program
        is_steady = not trust and all(type(part).__module__.startswith(_STEADY) for part in model.modules())
    return torch.no_grad()(model.__call__), getattr(model, "forward", model), is_steady


def _found(place: str) -> Any:
    module, _, qualname = place.partition(":")
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _asked(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return what gets the arguments of a call: of a module that hands them on as they are, the one that it asks."""
    while _hands_on(forward):
        asked = getattr(getattr(forward, "__self__", None), "_asks", lambda: None)()
        if asked is None:
            break
        forward = getattr(asked, "forward", asked)
    return forward


def _hands_on(forward: Callable[..., Any]) -> bool:
    """Tell whether a signature says nothing but that there are arguments."""
    signature = _signature(forward)
    kinds = {parameter.kind for parameter in signature.parameters.values()} if signature is not None else set()
    return {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds


def _yields(function: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None  # built in, without one
