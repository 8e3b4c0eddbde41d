"""`replayml tree`: the modules of a model, with their arguments and weights.

Invariants:
    * Classes and arguments are told where every class is one of replayml, torch, or a module named by ``--import``;
      otherwise the paths of the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree
from torch import nn

from replayml.cli.opening import Opened, Tensor, make_model, open_file
from replayml.cli.report import Answer, clean
from replayml.core.errors import RecipeError
from replayml.core.meta import ExtendedConstructorMeta
from replayml.module.explain import candidates, factory_of, settings_taken_by, shown

__all__ = ["run"]

CLASS = "classtype"


def run(path: Path, imports: Sequence[str] = (), rename: Sequence[str] = ()) -> Answer:
    """Show the modules of a model.

    Args:
        path: The file.
        imports: Modules that the user names.
        rename: Names in the file and those of today, as ``OLD=NEW``.
    """
    opened = open_file(path)
    note = ""
    described: dict[str, dict[str, Any]] = {}
    try:
        described = _described(make_model(opened, imports, rename))
    except RecipeError as error:
        if error.code != "untrusted-name":
            raise
        note = error.message
    nodes = _nodes(opened, described)
    total = sum(math.prod(tensor.shape) for tensor in (opened.weights or {}).values())
    data = {
        "file": str(path),
        "form": opened.form,
        "has_weights": opened.weights is not None,
        "elements": total,
        "modules": list(nodes.values()),
    }
    texts: list[RenderableType] = [_drawn(nodes), *([Text(clean(note))] if note else [])]
    return Answer({**data, **({"note": note} if note else {})}, Group(*texts))


def _described(model: Any) -> dict[str, dict[str, Any]]:
    """Return class and arguments of each module, by path."""
    found: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(type(module), ExtendedConstructorMeta) and not module._record.built:
            values = {name: candidates(module, name) for name in settings_taken_by(module) if name != CLASS}
            given = {key: first[0] for key, first in values.items() if first and first[0].source != "default"}
            name = getattr(factory_of(module), "__name__", type(module).__name__)
            found[path] = {
                "class": name,
                "arguments": {
                    key: shown(first.value) for key, first in given.items() if not isinstance(first.value, nn.Module)
                },
            }
        else:
            found[path] = {"class": type(module).__name__, "arguments": {}}
    return found


def _nodes(opened: Opened, described: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is known of each module, by path, parents first."""
    root = {"class": opened.recipe.plan.root.name.rpartition(".")[2], "arguments": {}}
    nodes: dict[str, dict[str, Any]] = {"": {"path": "", **(described.get("") or root), "tensors": []}}
    for path, known in described.items():
        nodes.setdefault(path, {"path": path, **known, "tensors": []})
    for name, tensor in (opened.weights or {}).items():
        path, _, last = name.rpartition(".")
        parts = path.split(".") if path else []
        for end in range(1, len(parts) + 1):
            above = ".".join(parts[:end])
            nodes.setdefault(above, {"path": above, "class": None, "arguments": {}, "tensors": []})
        nodes[path]["tensors"].append({"name": last, "shape": list(tensor.shape), "dtype": tensor.dtype})
    return nodes


def _drawn(nodes: Mapping[str, Mapping[str, Any]]) -> Tree:
    drawn: dict[str, Tree] = {}
    for path, node in nodes.items():
        label = Text()
        name = path.rpartition(".")[2]
        label.append(f"{clean(name)}  " if name else "", "bold")
        label.append(clean(node["class"] or ""), "cyan")
        if node["arguments"]:
            label.append(clean(f"({', '.join(f'{key}={value}' for key, value in node['arguments'].items())})"))
        for tensor in node["tensors"]:
            text = f"  {tensor['name']} {_text(Tensor(tuple(tensor['shape']), tensor['dtype']))}"
            label.append(clean(text), "dim")
        drawn[path] = Tree(label) if not path else drawn[path.rpartition(".")[0]].add(label)
    return drawn[""]


def _text(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype}"
