"""Fifty models that never change, and their fingerprints.

    python -c "from tests.recipe.fixed_models import show; show()" > tests/recipe/fingerprints.json

A fingerprint that changes means that stored models no longer equal new ones. The file is written again only when that
is meant, and the changelog says so.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F

import replayml
from replayml.layers import initializers
from replayml.recipe import Recipe
from tests.recipe.samples import MONEY, Access, Mode, Money, Net, Options, Pair, Point, Setup, Versioned, helper


class Pipe(replayml.Module):
    """A layer and an activation, of any width."""

    def __init__(self, width: int | None = 4, activation: Any = nn.ReLU, **options: Any) -> None:
        super().__init__()
        self.layer = replayml.Layer(nn.Linear, None, width)
        self.activation = replayml.Layer(activation)
        self.options = options

    @replayml.stateful
    def widen(self, by: int) -> None:
        self.layer.configure(out_features=self.layer.out_features + by)

    @replayml.after_build
    def freeze(self) -> None:
        self.requires_grad_(False)


class Pipes(replayml.Module):
    """Pipes in a row, with a head that may be shared."""

    def __init__(self, *pipes: Any, head: Any = None) -> None:
        super().__init__()
        self.pipes = replayml.LayerList(*pipes)
        self.head = head


def edited(model: Any, *edits: Callable[[Any], Any]) -> Any:
    """Return a model after some edits."""
    for edit in edits:
        edit(model)
    return model


def _shared() -> Any:
    pipe, items = Pipe(3), [1, 2]
    return Pipes(pipe, Pipe(4, note=items, more=items), pipe, head=pipe)


def _moved() -> Any:
    model = Pipes(Pipe(1), Pipe(2), Pipe(3))
    model.pipes.append(model.pipes.pop(0))
    del model.head
    model.tied = model.pipes[0]
    return model


def _everything(value: Any) -> Callable[[], Any]:
    return lambda: Net(value)


def _strings() -> Any:
    return {"b": {"x", "yy", "zzz", "ä"}, "a": frozenset({1, 2.5, "3", None}), "\U0001f600": {Mode.FAST, Mode.SLOW}}


MODELS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        "layer": lambda: replayml.Layer(nn.Linear, 2, 3),
        "layer by name": lambda: replayml.Layer(nn.Linear, in_features=2, out_features=3, bias=False),
        "open size": lambda: replayml.Layer(nn.LazyLinear, 3),
        "configured": lambda: replayml.Layer(nn.Linear, 2, 3).configure(bias=False),
        "swapped": lambda: replayml.Layer(nn.ReLU).configure(nn.LeakyReLU, negative_slope=0.1),
        "external": lambda: replayml.External(dict, a=1, b=[1, (2, 3)]),
        "external function": lambda: replayml.External(helper, Point(1, 2)),
        "sequential": lambda: replayml.Sequential(replayml.Layer(nn.Linear, 2, 3), replayml.Layer(nn.ReLU)),
        "plain layers": lambda: replayml.Sequential(
            nn.Linear(2, 3), nn.Conv2d(1, 2, (3, 5), padding=1), nn.Dropout(0.1)
        ),
        "parallel": lambda: replayml.Parallel(left=replayml.Layer(nn.ReLU), right=replayml.Layer(nn.Tanh)),
        "module list": lambda: Pipes(nn.Sequential(OrderedDict(b=nn.ReLU(), a=nn.Tanh()))),
        "transformer layer": lambda: replayml.Sequential(nn.TransformerEncoderLayer(4, 2, 8, activation=F.gelu)),
        "pipe": Pipe,
        "pipe with options": lambda: Pipe(5, nn.GELU, zeta=1, alpha=(2, [3])),
        "pipe configured": lambda: Pipe().configure(width=9, activation=nn.Tanh),
        "pipe widened": lambda: edited(Pipe(), lambda m: m.widen(3), lambda m: m.layer.configure(bias=False)),
        "pipe with hook": lambda: edited(Pipe(), lambda m: m.freeze()),
        "pipes": lambda: Pipes(Pipe(1), Pipe(2), head=Pipe(3)),
        "pipes edited": lambda: edited(
            Pipes(Pipe(1), Pipe(2)),
            lambda m: m.pipes.append(Pipe(7)),
            lambda m: m.pipes.pop(0),
            lambda m: m["pipes", 0].configure(width=4),
            lambda m: m.configure(head=Pipe(1)),
        ),
        "pipes selected": lambda: edited(Pipes(Pipe(1), Pipe(2)), lambda m: m[..., "activation"].configure(nn.ELU)),
        "pipes initialized": lambda: edited(Pipes(Pipe(1)), lambda m: m.initialize(initializers.Kaiming(bias=0.5))),
        "attributes": lambda: edited(Pipe(), lambda m: setattr(m, "note", {"a": 1}), lambda m: delattr(m, "options")),
        "shared": _shared,
        "moved": _moved,
        "copied": lambda: _shared().new(),
        "a part of a tree": lambda: edited(Pipes(Pipe(1)), lambda m: m.pipes[0].configure(width=6)).pipes[0].new(),
        "built": lambda: replayml.Sequential(replayml.Layer(nn.Linear, None, 3)).build(torch.zeros(1, 2)),
        "optimizer": lambda: replayml.Optimizer(torch.optim.SGD, lr=0.1, momentum=0.9),
        "scheduler": lambda: replayml.External(torch.optim.lr_scheduler.StepLR, step_size=3),
        "metric": lambda: replayml.External(torchmetrics.classification.MulticlassF1Score, num_classes=3),
        "version of a class": lambda: Versioned(width=3),
        "numbers": _everything([0, -1, 2**63 - 1, -(2**63), 0.1, -0.0, 1e308, 5e-324, math.inf, math.nan, 1 - 2j]),
        "texts": _everything(["", "ä", "\U0001f600", "\u2028\x00\x1f", "$call", "a.b"]),
        "bytes": _everything([b"", bytes(range(256))]),
        "collections": _everything([(), (1,), [], {}, set(), frozenset(), OrderedDict(b=1, a=2), {1: 2, "a": (3,)}]),
        "strings in sets": lambda: Net(_strings()),
        "keys in another order": _everything({"b": 1, "a": 2, "$tuple": 3}),
        "slices": _everything([slice(1, None, -1), range(5, 0, -2), ..., None, True, False]),
        "of torch": _everything([torch.float16, torch.device("cuda:1"), torch.Size([2, 3]), torch.channels_last]),
        "tensor": _everything(torch.arange(6, dtype=torch.float32).reshape(2, 3)),
        "parameter": _everything(nn.Parameter(torch.tensor([1.5], dtype=torch.bfloat16), requires_grad=False)),
        "array": _everything([np.arange(4, dtype=np.int16).reshape(2, 2), np.float32(0.5), np.bool_(True)]),
        "paths": _everything([Path("data/set"), Path("/etc")]),
        "enums": _everything([Mode.SLOW, Access.READ, Access.READ | Access.RUN, Access(0)]),
        "dataclasses": _everything([Options(0.5, ["a"]), Point(1), Pair(1, Point(2))]),
        "pydantic": _everything(Setup.model_validate({"learningRate": 0.5, "inner": {"sizes": [1]}})),
        "names": _everything([nn.ReLU, F.gelu, torch.tanh, helper, Mode, Pipe, int, nn.init.kaiming_normal_]),
        "codec": _everything([Money(3), [Money(4)]]),
        "deep": lambda: Net([[[[{"a": [{"b": ({"c": Pipe(2)},)}]}]]]]),
        "keywords": lambda: Net(1, 2, zeta=3, alpha=4, depth=5, width=6),
    }
)


def fingerprint(model: Any) -> str:
    """Return the fingerprint of a model."""
    recipe: Recipe = model.recipe(codecs=[MONEY])
    return recipe.fingerprint


def show() -> None:
    """Print the fingerprints of all models."""
    print(json.dumps({name: fingerprint(make()) for name, make in MODELS.items()}, indent=1))
