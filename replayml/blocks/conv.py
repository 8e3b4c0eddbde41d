"""`Conv1dBlock`, `Conv2dBlock`, `Conv3dBlock`: a convolution and what stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import nn

from replayml.blocks.base import BaseBlock, own_copy
from replayml.blocks.residual import residual
from replayml.blocks.sequential import Addable
from replayml.core.hooks import edit
from replayml.core.signatures import missing
from replayml.layers.containers import Sequential
from replayml.layers.layer import Layer

__all__ = ["Conv1dBlock", "Conv2dBlock", "Conv3dBlock", "ConvBlock"]

Size = int | tuple[int, ...]


class ConvBlock(BaseBlock):
    """A convolution, to be activated, normalized, pooled, strided, repeated, or given a shortcut.

    Its subclasses fix the number of dimensions.

    Args:
        in_channels: The number of channels of the input; None to read it off the example input.
        out_channels: The number of channels of the output.
        kernel_size: The size of the kernel.
        stride: The stride.
        padding: The padding.
        bias: Whether the convolution adds a bias.
        order: The names of the modules in the order in which they run.
        **modules: Further modules, or classes of modules, which run after the layer unless ``order`` says otherwise.
    """

    pool = Addable(mode="prepend")
    upsample = Addable()

    _dimensions: ClassVar[int]

    _arguments = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "bias")
    _size_in = "in_channels"
    _size_out = "out_channels"
    _once: ClassVar[dict[str, Any]] = {"stride": 1}

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size | str = 0,
        bias: bool = True,
        order: Sequence[str] | None = None,
        **modules: Any,
    ) -> None:
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.bias = bias
        layer = Layer(
            self._class("Conv"),
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            bias=bias,
        )
        super().__init__(order=order, **{"layer": layer, **modules})

    @classmethod
    def _class(cls, name: str) -> type[nn.Module]:
        """Return the class of torch for this number of dimensions: of ``"Conv"`` that is `torch.nn.Conv2d`."""
        found: type[nn.Module] = getattr(nn, f"{name}{cls._dimensions}d")
        return found

    # What is added where nothing is given ---------------------------------------------------------------------

    def get_default_normalization(self) -> Any:
        """Return a batch normalization."""
        return Layer(self._class("BatchNorm"))

    def get_default_shortcut(self) -> Any:
        """Return a block that holds nothing but the input where the shapes agree, else a convolution of one point."""
        size = self._size_inside()
        block = type(self)._basic(self.in_channels, size, kernel_size=1, stride=self.stride)
        if self.in_channels == size and _all_one(self.stride):
            block.configure("layer", nn.Identity)
        return block

    @classmethod
    def _basic(cls, *args: Any, **kwargs: Any) -> ConvBlock:
        """Return a block of the class that fixes the dimensions, not of a subclass with other arguments."""
        basic: type[ConvBlock] = next(base for base in cls.__mro__ if "_dimensions" in base.__dict__)
        return basic(*args, **kwargs)

    # Adding ---------------------------------------------------------------------------------------------------

    @edit
    def pooled(self, pool: Any = None, mode: str = "prepend", after: str | None = None) -> Self:
        """Add a pooling, or put another one in the place of the one that is there.

        Args:
            pool: A layer, of which a copy is used, or its class; by default the maximum over two points each way.
            mode: ``"append"``, ``"prepend"``, ``"insert"``, or ``"replace"`` to add nothing.
            after: For ``"insert"``, the name of the module that runs before it.

        Example:
            >>> Conv2dBlock(1, 2).pooled(nn.AvgPool2d).pool
            Layer(AvgPool2d, kernel_size=2)
        """
        given = own_copy(Layer(self._class("MaxPool"), 2, 2) if pool is None else pool)
        if isinstance(given, Layer) and "kernel_size" in missing(given.classtype, given.kwargs):
            given.configure(kernel_size=2)
        return self._put("pool", given, mode, after)

    @edit
    def upsampled(self, upsample: Any = None, mode: str = "append", after: str | None = None) -> Self:
        """Add an upsampling, or put another one in the place of the one that is there.

        Args:
            upsample: A layer, of which a copy is used, or its class; by default a transposed convolution that doubles
                the resolution and keeps the channels.
            mode: ``"append"``, ``"prepend"``, ``"insert"``, or ``"replace"`` to add nothing.
            after: For ``"insert"``, the name of the module that runs before it.

        Example:
            >>> Conv2dBlock(1, 4).upsampled().upsample.in_channels
            4
        """
        return self._put("upsample", own_copy(self._doubling() if upsample is None else upsample), mode, after)

    @edit
    def transposed(
        self,
        transpose: Any = None,
        mode: str = "prepend",
        after: str | None = None,
        remove_upsample: bool = True,
        remove_layer: bool = True,
    ) -> Self:
        """Convolve the other way: add a transposed convolution.

        Args:
            transpose: A layer, of which a copy is used, or its class; by default one that doubles the resolution.
            mode: ``"append"``, ``"prepend"``, ``"insert"``, or ``"replace"`` to add nothing.
            after: For ``"insert"``, the name of the module that runs before it.
            remove_upsample: Whether to take out the upsampling.
            remove_layer: Whether to take out the convolution, in whose place it comes.

        Example:
            >>> block = Conv2dBlock(4, 1).activated().transposed()
            >>> block.order, block.transpose.out_channels
            (['transpose', 'activation'], 1)
        """
        self._put("transpose", own_copy(self._doubling() if transpose is None else transpose), mode, after)
        if remove_upsample:
            self.remove("upsample", allow_missing=True)
        if remove_layer:
            self.remove("layer", allow_missing=True)
        return self

    def _doubling(self) -> Layer:
        return Layer(self._class("ConvTranspose"), kernel_size=2, stride=2, padding=0)

    def strided(self, stride: Size, remove_pool: bool = True) -> Self:
        """Give the convolution a stride; of several copies the first one, and a shortcut that goes around as well.

        Args:
            stride: The stride.
            remove_pool: Whether to take out the pooling.

        Example:
            >>> block = Conv2dBlock(1, 1, padding=1).pooled().shortcut().strided(2)
            >>> block.order, block.layer.stride, block.shortcut_start.layer.stride
            (['shortcut_start', 'layer', 'shortcut_end'], 2, 2)
        """
        self.configure(stride=stride)
        layer = self._modules.get("layer")
        if isinstance(layer, Layer):
            if layer.classtype is nn.Identity and not _all_one(stride):
                layer.configure(self._class("Conv"))
            if getattr(layer, "stride", stride) != stride:
                layer.configure(stride=stride)
        blocks = self._modules.get("blocks")
        if isinstance(blocks, Sequential) and len(blocks) and isinstance(blocks[0], ConvBlock):
            _stride(blocks[0], stride, remove_pool)
        if remove_pool:
            self.remove("pool", allow_missing=True)
        around = self._modules.get("shortcut_start")
        if isinstance(around, ConvBlock):
            _stride(around, stride, remove_pool)
        elif isinstance(around, Layer) and around.classtype is nn.Identity and not _all_one(stride):
            around.configure(self._class("Conv"), self.in_channels, self.out_channels, kernel_size=1, stride=stride)
        elif isinstance(around, Layer) and getattr(around, "stride", stride) != stride:
            around.configure(stride=stride)
        return self

    def keep_shape(self) -> Self:
        """Pad the convolution, so that it keeps the resolution of its input if its stride is 1."""
        size = self.kernel_size
        return self.configure(padding=tuple(k // 2 for k in size) if isinstance(size, tuple) else size // 2)


ConvBlock.register_style(residual)


def _stride(block: ConvBlock, stride: Size, remove_pool: bool) -> None:
    if block.stride != stride or (remove_pool and "pool" in block.order):
        block.strided(stride, remove_pool)


def _all_one(stride: Size) -> bool:
    return all(step == 1 for step in (stride if isinstance(stride, tuple) else (stride,)))


class Conv1dBlock(ConvBlock):
    """A convolution over sequences; see `ConvBlock`.

    Example:
        >>> import torch
        >>> Conv1dBlock(None, 4).normalized().activated().build(torch.zeros(1, 2, 9))(torch.zeros(5, 2, 9)).shape
        torch.Size([5, 4, 7])
    """

    _dimensions = 1


class Conv2dBlock(ConvBlock):
    """A convolution over images; see `ConvBlock`.

    Example:
        >>> import torch
        >>> block = Conv2dBlock(3, 8, padding=1).normalized().activated().pooled().shortcut()
        >>> block.build()(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    _dimensions = 2


class Conv3dBlock(ConvBlock):
    """A convolution over volumes; see `ConvBlock`.

    Example:
        >>> import torch
        >>> Conv3dBlock(1, 2, padding=1).pooled().build()(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 2, 4, 4, 4])
    """

    _dimensions = 3
