"""The style "residual": several layers in a row with a shortcut around them (He et al., 2015)."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from replayml.blocks.base import BaseBlock
from replayml.core.errors import ConfigurationError

__all__ = ["residual"]

B = TypeVar("B", bound=BaseBlock)

LETTERS = {"l": "layer", "a": "activation", "n": "normalization", "d": "dropout"}


def residual(
    block: B, order: str = "lanlan|", activation: Any = nn.ReLU, normalization: Any = None, dropout: float = 0.1
) -> B:
    """Make a block residual: ``block.style("residual", order="lnaln|a")``.

    Args:
        block: The block.
        order: What runs, one letter each: ``l`` for the layer, ``a`` activation, ``n`` normalization, ``d`` dropout;
            ``|`` is where the shortcut ends. A letter that repeats starts another copy of the block.
        activation: A layer, of which copies are used, or its class.
        normalization: A layer, of which copies are used, or its class; by default the block's usual one.
        dropout: The probability of dropping a value.

    Raises:
        ConfigurationError: When ``order`` has another letter, or behind the shortcut a layer or a letter twice; or when
            the block has no layer any more.

    Example:
        >>> from replayml.blocks.linear import LinearBlock
        >>> block = LinearBlock(4, 8).style("residual", order="nal|d")
        >>> block.order, block.blocks[0].order
        (['shortcut_start', 'blocks', 'shortcut_end', 'dropout'], ['normalization', 'activation', 'layer'])
    """
    around, _, behind = order.lower().partition("|")
    if set(around) - set(LETTERS) or set(behind) - set("and") or len(set(behind)) < len(behind):
        raise ConfigurationError(
            f"{order!r} is no order of a residual block. Before the '|' it takes the letters l (layer), "
            "a (activation), n (normalization) and d (dropout); behind it a, n and d, each once: 'lnaln|a'"
        )
    if "l" in around and "layer" not in block.order:
        raise ConfigurationError(
            f"{block._place()} has no layer, for which the 'l' in {order!r} stands; it runs {', '.join(block.order)}. "
            "Give a block its style before it is repeated or transposed"
        )
    runs = _runs(around)
    for end in ("shortcut_start", "shortcut_end"):
        block.remove(end, allow_missing=True)
    block.keep_shape().multi(len(runs)).shortcut()
    for index, names in enumerate(runs):
        inner = block.blocks[index]
        _add(inner, names, activation, normalization, dropout)
        inner.configure(order=names)
        for name in [name for name in inner._modules if name not in names]:
            inner.remove(name)
    _add(block, [LETTERS[letter] for letter in behind], activation, normalization, dropout)
    return block


def _runs(letters: str) -> list[list[str]]:
    """Return the names that the letters stand for, parted where one repeats."""
    runs: list[list[str]] = []
    for letter in letters:
        if not runs or LETTERS[letter] in runs[-1]:
            runs.append([])
        runs[-1].append(LETTERS[letter])
    return runs


def _add(block: BaseBlock, names: list[str], activation: Any, normalization: Any, dropout: float) -> None:
    for name in names:
        if name == "activation":
            block.activated(activation)
        elif name == "normalization":
            block.normalized(normalization)
        elif name == "dropout":
            block.set_dropout(dropout)
