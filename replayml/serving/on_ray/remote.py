"""What a worker serves that has no model: it checks requests for one that runs elsewhere.

Invariants:
    * The facts about a model travel as data; what comes of them checks requests exactly as the model's own worker does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from replayml.serving.messages.parameters import Parameters, is_plain_default
from replayml.serving.messages.schema import TensorSpec, specs_of
from replayml.serving.messages.wire import decode
from replayml.serving.packing.spec import Spec
from replayml.serving.worker.target import Target

__all__ = ["RemoteTarget", "facts_of"]

_TYPES = {kind.__name__: kind for kind in (str, int, float, bool, type(None))}


class RemoteTarget(Target):
    """What is known here of a model that runs elsewhere.

    Args:
        spec: What to serve; ``place`` is a file with where it runs, and the facts.

    Attributes:
        place: Where it runs.
    """

    def __init__(self, spec: Spec) -> None:
        known = orjson.loads(Path(spec.place).read_bytes())
        self.place: Mapping[str, Any] = known["place"]
        facts = known["facts"]
        self.title = spec.title
        self.version = spec.version
        self.has_rows = spec.has_rows
        self.is_batchable = spec.most_rows > 0
        self.is_steady = False
        self.is_stream = facts["is_stream"]
        self.output = _form(facts["output"])
        self.example = self.specs = None
        if spec.example:
            self.example = decode(Path(spec.example).read_bytes())
            self.specs = specs_of(self.example, any_rows=spec.has_rows)
        self.takes = Parameters(_signature(facts["signature"]), None if self.specs is None else len(self.specs))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: there is no model here."""
        raise NotImplementedError(f"{self.title} runs elsewhere")


def facts_of(target: Target) -> dict[str, Any]:
    """Return what a `RemoteTarget` has to know of a target, as data.

    Args:
        target: The target, which has run its example.
    """
    signature = target.takes.signature
    parameters = None
    if signature is not None:
        parameters = [[each.name, int(each.kind), *_default_facts(each)] for each in signature.parameters.values()]
    return {
        "signature": parameters,
        "output": _form_facts(target.output),
        "is_stream": target.is_stream,
    }


def _default_facts(parameter: inspect.Parameter) -> list[Any]:
    """Return what kind of a default a parameter has, and it."""
    if parameter.default is inspect.Parameter.empty:
        return ["none", None]
    return ["plain", parameter.default] if is_plain_default(parameter.default) else ["other", None]


def _signature(facts: list[Any] | None) -> inspect.Signature | None:
    if facts is None:
        return None
    kinds = {int(kind): kind for kind in inspect._ParameterKind}
    return inspect.Signature(
        [inspect.Parameter(name, kinds[kind], default=_default(what, value)) for name, kind, what, value in facts]
    )


def _default(what: str, value: Any) -> Any:
    return {"none": inspect.Parameter.empty, "plain": value}.get(what, ...)


def _form_facts(form: Any) -> Any:
    """Return the form of a result as data."""
    if isinstance(form, TensorSpec):
        return {"tensor": [form.dtype, list(form.shape)]}
    if isinstance(form, list):
        return {"list": [_form_facts(item) for item in form]}
    if isinstance(form, dict):
        return {"dict": [[name, _form_facts(item)] for name, item in form.items()]}
    return {"type": form.__name__ if isinstance(form, type) else ""}


def _form(facts: Any) -> Any:
    [(kind, content)] = facts.items()
    if kind == "tensor":
        return TensorSpec(content[0], tuple(content[1]))
    if kind == "list":
        return [_form(item) for item in content]
    if kind == "dict":
        return {name: _form(item) for name, item in content}
    return _TYPES.get(content)
