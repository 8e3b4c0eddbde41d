"""Random sequences of operations on blocks: each an operation's name and numbers that choose its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from torch import nn

from replayml.blocks.base import BaseBlock
from replayml.blocks.conv import Conv2dBlock
from replayml.blocks.linear import LinearBlock
from replayml.blocks.merge import Cat
from replayml.layers.layer import Layer

ACTIVATIONS = (nn.GELU, nn.Tanh, Layer(nn.LeakyReLU, 0.2), nn.PReLU())
NORMALIZATIONS = {LinearBlock: (None, nn.LayerNorm, Layer(nn.GroupNorm, 1)), Conv2dBlock: (None, nn.InstanceNorm2d)}
ADDED = (nn.ReLU, Layer(nn.ELU, alpha=0.5))
# What the shape of the output depends on stays where it is.
FIXED = ("layer", "blocks", "shortcut_start", "shortcut_end", "pool")


@dataclass(frozen=True)
class Operation:
    """One call on a block.

    Attributes:
        name: Which one.
        pick: Which of the block's modules it is about, and which of its arguments it takes.
        mode: Where something is added.
    """

    name: str
    pick: int
    mode: str

    def apply(self, block: Any) -> Any:
        """Make the call; what it returns tells nothing where the block has no module that it could be about."""
        return CALLS[self.name](block, self)

    def of(self, values: Any) -> Any:
        """Return one of several values."""
        return values[self.pick % len(values)]


def _added(block: BaseBlock, op: Operation) -> Any:
    name = f"extra_{op.pick}"
    if name in block.order or not block.order:
        return None
    module = op.of(ADDED)
    module = module.new() if isinstance(module, Layer) else module
    calls: dict[str, Callable[[], Any]] = {
        "append": lambda: block.append(module, name=name),
        "prepend": lambda: block.prepend(module, name=name),
        "insert": lambda: block.insert(module, after=op.of(block.order), name=name),
        "replace": lambda: block.set(name, module),
    }
    return calls[op.mode]()


def _activated(block: BaseBlock, op: Operation) -> Any:
    return block.activated(op.of(ACTIVATIONS), mode=op.mode, after=op.of(block.order or [None]))


def _normalized(block: BaseBlock, op: Operation) -> Any:
    choices = next(choices for cls, choices in NORMALIZATIONS.items() if isinstance(block, cls))
    return block.normalized(op.of(choices), mode=op.mode, after=op.of(block.order or [None]))


def _dropout(block: BaseBlock, op: Operation) -> Any:
    mode = "append" if op.mode == "replace" else op.mode
    return block.set_dropout(op.pick / 10, on_missing=mode, after=op.of(block.order) if mode == "insert" else None)


def _remove(block: BaseBlock, op: Operation) -> Any:
    loose = [name for name in block.order if name not in FIXED]
    return block.remove(op.of(loose)) if loose else block.remove("dropout", allow_missing=True)


def _reorder(block: BaseBlock, op: Operation) -> Any:
    loose = [name for name in block.order if name not in FIXED]
    if not loose:
        return None
    moved = op.of(loose)
    order = [name for name in block.order if name != moved]
    order.insert(op.pick % (len(order) + 1), moved)
    return block.configure(order=order)


def _configure_activation(block: BaseBlock, op: Operation) -> Any:
    return block.configure(activation=op.of((nn.SiLU, nn.Softplus, Layer(nn.CELU, alpha=2.0))))


def _configure_layer(block: BaseBlock, op: Operation) -> Any:
    return block.configure("layer", bias=False) if "layer" in block.order else block.configure(bias=False)


def _configure_inner(block: BaseBlock, op: Operation) -> Any:
    return op.of(block.blocks).activated(op.of(ACTIVATIONS)) if "blocks" in block.order and block.blocks else None


def _multi(block: BaseBlock, op: Operation) -> Any:
    depth = sum(1 for module in block.modules() if isinstance(module, BaseBlock))
    return block.multi(1 + op.pick % 2) if depth < 4 else None


def _shortcut(block: BaseBlock, op: Operation) -> Any:
    return block.shortcut(merge=Cat) if op.pick == 0 else block.shortcut()


CALLS: dict[str, Callable[[Any, Operation], Any]] = {
    "added": _added,
    "activated": _activated,
    "normalized": _normalized,
    "dropout": _dropout,
    "remove": _remove,
    "reorder": _reorder,
    "configure_activation": _configure_activation,
    "configure_layer": _configure_layer,
    "configure_inner": _configure_inner,
    "multi": _multi,
    "shortcut": _shortcut,
}

operations = st.lists(
    st.builds(
        Operation,
        st.sampled_from(sorted(CALLS)),
        st.integers(0, 5),
        st.sampled_from(["append", "prepend", "insert", "replace"]),
    ),
    max_size=6,
)
