"""What comes of a recipe, counted before it is allocated.

A few bytes of a file can ask for more memory than any machine has: ``Linear(10**9, 10**9)``. So a model is first made
in a dry run: every new tensor is put on the meta device, where it has a shape and no memory, and is counted there.
Only what stays within the `Limits` is made for real.

Invariants:
    * A dry run allocates no memory for a tensor that is made from sizes, and leaves the global generators alone.
    * A constructor that needs the values of its tensors cannot be run dry; then each tensor is counted just before it
      is made for real.
    * What is counted are tensors and modules. A constructor that goes on without making either is broken off: see
      ``text.watching``. Too much memory, and too deep a recursion, are refusals as well.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from replayml.core.errors import RecipeError
from replayml.core.meta import watched
from replayml.recipe.faults import MODEL, Flaw
from replayml.recipe.format import Limits
from replayml.recipe.randomness import fixed_randomness
from replayml.recipe.text.watching import Exceeded, Watch, too_slow

__all__ = ["Rehearsal", "is_about_meta", "measured", "rehearse"]

T = TypeVar("T")

_FREE_UNASKED = 64 * 1024 * 1024  # so much is taken to be free, without a look at the machine
_UNKNOWN_MEMORY = 16 * 1024**3  # where the system does not tell

_FROM_SIZES: frozenset[Callable[..., Any]] = frozenset(
    {
        torch.arange,
        torch.bartlett_window,
        torch.blackman_window,
        torch.empty,
        torch.empty_like,
        torch.empty_permuted,
        torch.empty_quantized,
        torch.empty_strided,
        torch.eye,
        torch.full,
        torch.full_like,
        torch.hamming_window,
        torch.hann_window,
        torch.kaiser_window,
        torch.linspace,
        torch.logspace,
        torch.normal,
        torch.ones,
        torch.ones_like,
        torch.rand,
        torch.rand_like,
        torch.randint,
        torch.randint_like,
        torch.randn,
        torch.randn_like,
        torch.randperm,
        torch.range,
        torch.sparse_coo_tensor,
        torch.tril_indices,
        torch.triu_indices,
        torch.zeros,
        torch.zeros_like,
        torch.Tensor.new_empty,
        torch.Tensor.new_empty_strided,
        torch.Tensor.new_full,
        torch.Tensor.new_ones,
        torch.Tensor.new_zeros,
    }
)
_FROM_VALUES: frozenset[Callable[..., Any]] = frozenset(
    {torch.as_tensor, torch.asarray, torch.clone, torch.from_numpy, torch.tensor, torch.Tensor.clone}
)
_ABOUT_MEMORY = ("generator", "out", "pin_memory")


@dataclass(frozen=True, slots=True)
class Rehearsal(Generic[T]):
    """What a dry run counted.

    Attributes:
        made: What was made, with its tensors on the meta device; None when it cannot be made there.
        bytes: What its tensors take.
        tensors: How many were made.
        modules: How many modules of replayml stood at once, at the most.
        seconds: How long it took.
    """

    made: T | None
    bytes: int
    tensors: int
    modules: int
    seconds: float


def rehearse(make: Callable[[], T], limits: Limits) -> Rehearsal[T]:
    """Run something dry: on the meta device, with everything counted.

    Args:
        make: Makes a model; it is called once.
        limits: How much it may take.

    Raises:
        RecipeError: When it takes more. Errors of ``make`` itself are raised as they are.

    Example:
        >>> done = rehearse(lambda: torch.nn.Linear(1000, 1000), Limits())
        >>> done.bytes, done.tensors, done.made.weight.is_meta
        (4004000, 2, True)
        >>> rehearse(lambda: torch.nn.Linear(10**9, 10**9), Limits())
        Traceback (most recent call last):
            ...
        replayml.core.errors.RecipeError: [too-much-memory] at model: a tensor of shape (1000000000, 1000000000) ...
    """
    meter = _Meter(limits, dry=True)
    made = None
    with fixed_randomness():
        try:
            made = meter.run(make)
        except Exception as error:
            if not is_about_meta(error):
                raise
    return Rehearsal(made, meter.bytes, meter.tensors, meter.modules, meter.seconds())


def measured(make: Callable[[], T], limits: Limits) -> T:
    """Make something for real, once a dry run has shown that it stays within the limits.

    Args:
        make: Makes a model; it is called twice.
        limits: How much it may take.

    Raises:
        RecipeError: When it takes more. Errors of ``make`` itself are raised as they are.

    Example:
        >>> measured(lambda: torch.nn.Linear(2, 3), Limits()).weight.device
        device(type='cpu')
    """
    if rehearse(make, limits).made is None:
        return _Meter(limits, dry=False).run(make)
    return make()


def is_about_meta(error: Exception) -> bool:
    """Tell whether an error only says that the meta device holds no values.

    Example:
        >>> is_about_meta(RuntimeError("Tensor.item() cannot be called on meta tensors")), is_about_meta(ValueError())
        (True, False)
    """
    return isinstance(error, NotImplementedError) or re.search(r"\bmeta\b", str(error), re.IGNORECASE) is not None


class _Meter(TorchFunctionMode):
    """Counts what torch and replayml make while it runs something.

    Args:
        limits: How much may be made.
        dry: Make tensors on the meta device; else count each there, just before it is made.
    """

    def __init__(self, limits: Limits, dry: bool) -> None:
        super().__init__()
        self._limits = limits
        self._dry = dry
        self._most: int | None = None
        self._start = time.monotonic()
        self._living: dict[int, weakref.ref[Any]] = {}
        self._noted = 0
        self.bytes = 0
        self.tensors = 0
        self.modules = 0

    def run(self, make: Callable[[], T]) -> T:
        """Return what ``make`` makes, or refuse it."""
        note = " Nothing was allocated." if self._dry else ""
        try:
            with watched(self._note_module), self:
                return Watch(self._limits.seconds, lambda: self.tensors + self._noted).run(make)
        except Exceeded as exceeded:
            flaw = exceeded.flaw
            raise RecipeError(flaw.code, str(MODEL), flaw.message + note) from None
        except MemoryError as error:
            message = "its values take more memory than there is."
            raise RecipeError("too-much-memory", str(MODEL), message + note) from error
        except RecursionError as error:
            message = f"it goes deeper than {sys.getrecursionlimit()} calls. Raise sys.setrecursionlimit()."
            raise RecipeError("too-deep", str(MODEL), message + note) from error

    def seconds(self) -> float:
        """Return how long it has been running."""
        return time.monotonic() - self._start

    # Counting -----------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, and count what it makes."""
        self._check_time()
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__":  # a look at an attribute, the most frequent of all
            return func(*args, **kwargs)
        if func not in _FROM_SIZES:
            result = func(*args, **kwargs)
            self._count(result, is_kept=func in _FROM_VALUES)
            return result
        on_meta = {name: value for name, value in kwargs.items() if name not in _ABOUT_MEMORY} | {"device": "meta"}
        result = self._sized(func, args, on_meta)
        self._count(result, is_kept=True)
        return result if self._dry else func(*args, **kwargs)

    def _sized(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except (OverflowError, RuntimeError, TypeError) as error:
            if "overflow" in str(error).lower():
                message = "a tensor would have more elements than 64 bits can count."
                raise Exceeded(Flaw("too-much-memory", message)) from None
            raise

    def _count(self, made: object, is_kept: bool) -> None:
        if not isinstance(made, torch.Tensor) or made.layout is not torch.strided:
            return
        size = made.nbytes
        self.bytes += size if is_kept else 0
        self.tensors += is_kept
        if self.tensors > self._limits.tensors:
            raise Exceeded(
                Flaw(
                    "too-many-tensors",
                    f"more than {self._limits.tensors} tensors would be made. Raise Limits(tensors=).",
                )
            )
        total = self.bytes if is_kept else size  # what comes of other tensors may be gone at once, or be one of them
        if total > (_FREE_UNASKED if self._limits.memory is None else self._limits.memory):
            self._check_memory(made, total)

    def _check_memory(self, made: torch.Tensor, total: int) -> None:
        if self._most is None:
            self._most = free_memory() // 2 if self._limits.memory is None else self._limits.memory
        if total > self._most:
            what = f"a tensor of shape {tuple(made.shape)} and {str(made.dtype).removeprefix('torch.')}"
            which = "half of the memory that is free" if self._limits.memory is None else "the limit"
            raise Exceeded(
                Flaw(
                    "too-much-memory",
                    f"{what} brings the tensors to {total} bytes; {which} is {self._most}. Raise Limits(memory=).",
                )
            )

    def _note_module(self, module: object) -> None:
        """Count a module of replayml that is being made."""
        self._check_time()
        self._noted += 1
        key, living = id(module), self._living
        living[key] = weakref.ref(module, lambda _: living.pop(key, None))
        if len(living) > self._limits.modules:
            gc.collect()  # a module and its parts hold each other
        self.modules = max(self.modules, len(living))
        if len(living) > self._limits.modules:
            raise Exceeded(
                Flaw(
                    "too-many-modules",
                    f"more than {self._limits.modules} modules would be made. Raise Limits(modules=).",
                )
            )

    def _check_time(self) -> None:
        if self.seconds() > self._limits.seconds:
            raise Exceeded(too_slow(self._limits.seconds))


def free_memory() -> int:
    """Return the bytes of memory that programs can still have, as far as the system tells.

    Example:
        >>> free_memory() > 0
        True
    """
    told = Path("/proc/meminfo")
    if told.exists():
        found = re.search(r"^MemAvailable: +(\d+) kB$", told.read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _UNKNOWN_MEMORY
