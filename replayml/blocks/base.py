"""`BaseBlock`: a layer that can be activated, normalized, repeated, and given a shortcut.

Invariants:
    * A layer given to several blocks, or to a block that is constructed several times, is copied for each.
    * Sizes that follow from those of the block are set by the block, and again whenever the block changes; sizes that
      the user gives stay.
    * A block has at most one shortcut, around all that runs between its two ends.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

from torch import nn

from replayml.blocks.merge import Add, Cat, MergeOp
from replayml.blocks.sequential import Addable, SequentialBlock, as_module
from replayml.blocks.sizes import open_sizes, size_after, sizes_along
from replayml.core.copying import describe
from replayml.core.errors import ConfigurationError
from replayml.core.hooks import before_build, edit
from replayml.core.meta import not_top_level, scope
from replayml.core.replay import realize
from replayml.core.settings import settings_of
from replayml.core.signatures import bind, call_arguments
from replayml.core.tape import CallRecord, TapeEntry
from replayml.layers.containers import Sequential
from replayml.layers.layer import Layer
from replayml.module.module import Module

__all__ = ["BaseBlock", "own_copy"]

RESIZING = ("pool", "upsample")


def own_copy(value: Any) -> Any:
    """Return a module for one place: a class as a `Layer`, an unbuilt module as ``new()``, another as a deep copy.

    Example:
        >>> layer = Layer(nn.ReLU)
        >>> own_copy(layer) is layer, own_copy(nn.ReLU)
        (False, Layer(ReLU))
    """
    if isinstance(value, Module) and not value._has_built:
        return value.new()
    return copy.deepcopy(value) if isinstance(value, nn.Module) else as_module(value)


class BaseBlock(SequentialBlock):
    """Named modules around a layer; the base of `LinearBlock` and `Conv2dBlock`.

    Args:
        order: The names of the modules in the order in which they run; by default that in which they are given.
        **modules: The modules, or classes of modules.

    Example:
        >>> block = BaseBlock(layer=Layer(nn.Linear, 4, 4)).activated(nn.GELU).shortcut()
        >>> block.order
        ['shortcut_start', 'layer', 'activation', 'shortcut_end']
    """

    blocks: Sequential[Any]
    activation = Addable()
    normalization = Addable()
    dropout = Addable()

    # The arguments that copies of the block share, those two of them that are its sizes, and the values for all
    # copies but the first of those that shall take effect once.
    _arguments: ClassVar[tuple[str, ...]] = ()
    _size_in: ClassVar[str] = ""
    _size_out: ClassVar[str] = ""
    _once: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init__(self, order: Sequence[str] | None = None, **modules: Any) -> None:
        super().__init__(order=order, **modules)
        self.find_sizes()

    def forward(self, x: Any) -> Any:
        """Run the modules in ``order``; what enters ``shortcut_start`` goes around to ``shortcut_end``.

        Args:
            x: What the first module takes.

        Returns:
            What the last module returns.
        """
        around = x
        for name in self.order:
            module: Any = self._modules[name]
            if name == "shortcut_start":
                around = module(x)
            elif name == "shortcut_end":
                x = module(x, around)
            else:
                x = module(x)
        return x

    # What is added where nothing is given ---------------------------------------------------------------------

    def get_default_activation(self) -> Any:
        """Return the activation for `activated`."""
        return Layer(nn.ReLU)

    def get_default_normalization(self) -> Any:
        """Return the normalization for `normalized`; its open sizes are found."""
        raise ConfigurationError(f"{self._place()} has no usual normalization. Give one: .normalized(nn.LayerNorm)")

    def get_default_merge(self) -> MergeOp:
        """Return the merging for `shortcut`."""
        return Add()

    def get_default_shortcut(self) -> Any:
        """Return what goes around for `shortcut`."""
        return Layer(nn.Identity)

    # Adding ---------------------------------------------------------------------------------------------------

    @edit
    def activated(self, activation: Any = None, mode: str = "append", after: str | None = None) -> Self:
        """Add an activation, or put another one in the place of the one that is there.

        Args:
            activation: A layer, of which a copy is used, or its class; by default the block's usual one.
            mode: ``"append"``, ``"prepend"``, ``"insert"``, or ``"replace"`` to add nothing.
            after: For ``"insert"``, the name of the module that runs before it.

        Example:
            >>> from replayml.blocks.linear import LinearBlock
            >>> LinearBlock(2, 3).activated(nn.GELU).activation
            Layer(GELU)
        """
        given = self.get_default_activation() if activation is None else activation
        return self._put("activation", own_copy(given), mode, after)

    @edit
    def normalized(self, normalization: Any = None, mode: str = "append", after: str | None = None) -> Self:
        """Add a normalization, or put another one in the place of the one that is there.

        Args:
            normalization: A layer, of which a copy is used, or its class; by default the block's usual one. Its size,
                left open, is the one at its place.
            mode: ``"append"``, ``"prepend"``, ``"insert"``, or ``"replace"`` to add nothing.
            after: For ``"insert"``, the name of the module that runs before it.

        Example:
            >>> from replayml.blocks.linear import LinearBlock
            >>> block = LinearBlock(2, 3).normalized()
            >>> block.normalization
            Layer(BatchNorm1d, num_features=3)
            >>> block.configure(out_features=5).normalization
            Layer(BatchNorm1d, num_features=5)
        """
        given = self.get_default_normalization() if normalization is None else normalization
        return self._put("normalization", own_copy(given), mode, after)

    @edit
    def shortcut(self, merge: Any = None, shortcut: Any = None) -> Self:
        """Lead the input around what the block holds, and merge it with the output.

        A pooling or upsampling at the start or the end of the block stays outside.

        Args:
            merge: How: a module that takes both, of which a copy is used, or its class; by default `Add`.
            shortcut: What goes around: a layer, of which a copy is used, or its class. By default nothing but the
                input where the sizes agree, else a projection.

        Raises:
            ConfigurationError: When something amid the block changes the resolution, and the default shortcut does not.

        Example:
            >>> import torch
            >>> from replayml.blocks.linear import LinearBlock
            >>> block = LinearBlock(2, 3).shortcut()
            >>> block.shortcut_start
            Layer(Linear, in_features=2, out_features=3)
            >>> block.build()(torch.zeros(1, 2)).shape
            torch.Size([1, 3])
        """
        plain = merge is None or merge in (Add, Cat) or isinstance(merge, (Add, Cat))
        resized = [name for name in self._inside() if name in (*RESIZING, "transpose")]
        if shortcut is None and plain and resized:
            raise ConfigurationError(
                f"the shortcut of {self._place()} would go around {resized[0]!r}, and keep the resolution that it "
                "changes. Give one that changes it too: .shortcut(shortcut=...)"
            )
        around = own_copy(self.get_default_shortcut() if shortcut is None else shortcut)
        merging = own_copy(self.get_default_merge() if merge is None else merge)
        if "shortcut_start" in self.order:
            return self._put("shortcut_start", around, "replace", None)._put("shortcut_end", merging, "replace", None)
        inside = self._inside()
        first = self.order.index(inside[0]) if inside else 0
        self._place_at("shortcut_end", merging, first + len(inside))
        return self._place_at("shortcut_start", around, first)

    def _inside(self) -> list[str]:
        """Return the names of what the shortcut goes around, or would go around."""
        order = list(self.order)
        if "shortcut_start" in order:
            return order[order.index("shortcut_start") + 1 : order.index("shortcut_end")]
        while order and order[0] in RESIZING:
            del order[0]
        while order and order[-1] in RESIZING:
            del order[-1]
        return order

    def _size_inside(self) -> int | None:
        """Return the size of what comes out of what the shortcut goes around: the one that it is merged with."""
        size = self.__dict__.get(self._size_in)
        for name in self._inside():
            size = size_after(self._modules[name], size)
        out: int | None = self.__dict__.get(self._size_out)
        return out if size is None else size

    def multi(self, n: int = 1) -> Self:
        """Become a sequence of ``n`` copies of what the block is now, in its child ``blocks``.

        What is configured on the block later reaches the copies: sizes as they follow, a stride the first copy only,
        everything else all of them.

        Args:
            n: How many.

        Example:
            >>> from replayml.blocks.linear import LinearBlock
            >>> [block.layer.in_features for block in LinearBlock(2, 3).activated().multi(3).blocks]
            [2, 3, 3]
        """
        if self.is_constructing:
            raise ConfigurationError(
                f"{type(self).__name__}.__init__ cannot make copies of the block that it is making. "
                "Call multi() on the finished block, or hold the block as a child"
            )
        template = self._as_template()
        copies: list[Self] = [realize(template) for _ in range(n)]
        top = scope()
        for made in copies:
            made._record.maker = None if top is None else top.by
        return self.nest(Sequential(copies))

    def _as_template(self) -> CallRecord:
        """Return this block as data, its arguments given as they are in force instead of configured."""
        call = describe(self)
        cls = type(self)
        named, surplus = bind(cls, call.args, call.kwargs)
        shared = [name for name in self._arguments if name in self.configurables]
        args, kwargs = call_arguments(cls, {**named, **{name: self.__dict__[name] for name in shared}}, surplus)
        tape = [_without(entry, shared) for entry in call.tape]
        return CallRecord(cls, args, kwargs, [entry for entry in tape if entry is not None], call.where)

    @edit
    def nest(self, blocks: Sequential[Any]) -> Self:
        """Run other blocks instead of what this one holds; see `multi`.

        Args:
            blocks: The blocks. They take the arguments of this one that they have as well.
        """
        for name in list(self._modules):
            self.remove(name)
        self._put("blocks", blocks, "append", None)
        size = self.__dict__.get(self._size_in)
        for index, inner in enumerate(list[Any](blocks)):
            with not_top_level(self):
                inner.configure(**self._passed_on(inner, index, size))
            size = size_after(inner, size)
        return self

    def keep_shape(self) -> Self:
        """Let the layer keep the shape of its input, apart from the size; a convolution is padded."""
        return self

    def _passed_on(self, inner: Module, index: int, size: int | None) -> dict[str, Any]:
        """Return what a copy of this block takes from it; ``size`` is that of what the copy gets."""
        values = {**self.__dict__, self._size_in: size, **(self._once if index > 0 else {})}
        return {name: values[name] for name in self._arguments if name in inner.configurables}

    # Sizes ----------------------------------------------------------------------------------------------------

    def _arrange(self) -> None:
        super()._arrange()
        self._find_sizes()

    @before_build
    def find_sizes(self) -> None:
        """Set the sizes that follow from those of the block."""
        self._find_sizes()

    def _find_sizes(self) -> None:
        if self._record.built:
            return
        out = self.__dict__.get(self._size_out)
        for name, child, size in sizes_along(self, self.__dict__.get(self._size_in))[0]:
            if size is None or not isinstance(child, Layer):
                continue
            transposed = size if "layer" in self.order else out
            wanted_out = {"shortcut_start": out, "transpose": transposed, "upsample": size}.get(name)
            given = {key: value for key, value in child.kwargs.items() if not self._found(child, key)}
            found = open_sizes(child, given, size, wanted_out)
            if any(child.kwargs.get(key) != value for key, value in found.items()):
                with not_top_level(self):
                    child.configure(**found)

    def _found(self, child: Layer, name: str) -> bool:
        """Tell whether it was this block that set an argument of a child."""
        setting = settings_of(child).get(name)
        return setting is not None and setting.by is self


def _without(entry: TapeEntry, names: Sequence[str]) -> TapeEntry | None:
    """Return an entry without what it configures under some names, or None if nothing is left."""
    if entry.tags or entry.method != "configure":
        return entry
    if entry.args:
        return None if entry.args[0] in names else entry
    kwargs = {name: value for name, value in entry.kwargs.items() if name not in names}
    return replace(entry, kwargs=kwargs) if kwargs else None
