"""Building: from a recorded model to weights.

    describe the model ─► example input through it, to find open sizes ─► before_build hooks
    ─► each layer becomes the real object, depth first ─► after_build hooks ─► the record is sealed

Invariants:
    * A layer that stands in two places is built once.
    * A build that raises leaves the model unbuilt and as it was.
    * With a seed each layer draws from a generator of its own, and the global generators are as they were before.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.rnn import PackedSequence

from replayml.core import tags
from replayml.core.copying import describe
from replayml.core.errors import ArgumentError, BuildError
from replayml.core.hooks import run_hooks
from replayml.core.journal import note, transaction
from replayml.core.meta import CALL, Frame, entered, quiet
from replayml.core.rebuilding import reconstruct
from replayml.core.record import Blueprint, HookCall, Record
from replayml.core.replay import realize
from replayml.core.settings import settings_of
from replayml.core.tape import Path
from replayml.module.mapping import MappedForward

__all__ = ["Builder", "build", "current", "going_on", "run_example"]

_current: ContextVar[Builder | None] = ContextVar("replayml_builder", default=None)


def current() -> Builder | None:
    """Return the build that is going on, or None."""
    return _current.get()


class Builder:
    """One build: what was made so far, and how to make the rest.

    Args:
        module: The module that is built.
        device: Where to make the weights.
        dtype: The floating point type of the weights.
        seed: Where the generators of the layers start.
    """

    def __init__(
        self, module: Any, device: torch.device | str | None, dtype: torch.dtype | None, seed: int | None
    ) -> None:
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise ArgumentError(f"build(dtype=...) takes a torch.dtype, such as torch.float32, not {dtype!r}")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise ArgumentError(f"build(seed=...) takes an int from 0 to 2**63 - 1, not {seed!r}")
        self.device = None if device is None else torch.device(device)
        self.dtype = dtype
        self.seed = seed
        self.built: dict[int, Any] = {}
        self.early: dict[int, tuple[int, Any]] = {}
        self.copies: dict[int, Any] = {}
        self.sizes: dict[Path, dict[str, Any]] = {}
        self.waiting: dict[str, list[HookCall]] = {}
        self.logs: dict[str, Any] = {}
        self.is_logging = False
        self.has_built_parts = False
        self._module = module

    # Making objects -------------------------------------------------------------------------------------------

    def make(self, module: Any) -> Any:
        """Return the built object for a module, made on the first call."""
        known = self.built.get(id(module))
        if known is not None:
            return known
        record = getattr(module, "_record", None)
        if record is None:
            self.built[id(module)] = module
            self._make_children(module)
            return module
        if record.built:
            self.has_built_parts = True
            return module
        if not module.is_external:
            refuse_hidden_layers(module)
        if record.hooks is not None:
            with entered(Frame(CALL, module)):
                run_hooks(module, "before_build")
        if module._modules:
            self._make_children(module)
        result = self.built[id(module)] = self.object_for(module)
        module._hand_over(result)
        if record.hooks:
            random = nullcontext() if self.seed is None else seeded(self.seed, (*tags.shown(module), "after_build"))
            with entered(Frame(CALL, module)), random:
                run_hooks(module, "after_build", result)
            if record.hooks and result is not module:
                self._keep_waiting(record.hooks, result)
        return result

    def _keep_waiting(self, hooks: Mapping[str, list[HookCall]], result: Any) -> None:
        """Keep what waits for training on a layer, for the object that replaced it."""
        for phase, calls in hooks.items():
            for call in calls:
                call.target = result
            self.waiting.setdefault(phase, []).extend(calls)

    def object_for(self, module: Any) -> Any:
        """Return the object that stands for a module; the sizes may ask for it before the hooks have run."""
        version, result = self.early.get(id(module), (0, None))
        if version != module._record.constructed_at:
            result = module._build_self(self)
            self.early[id(module)] = (module._record.constructed_at, result)
        return result

    def note_sizes(self, module: Any, sizes: Mapping[str, Any]) -> None:
        """Note what was read off the example input for a module."""
        for path in tags.shown_below(module, self._module):
            self.sizes[path] = dict(sizes)

    def _make_children(self, module: Any) -> None:
        children: dict[str, Any] = module._modules
        for name, child in list(children.items()):
            if child is None:
                continue
            result = self.make(child)
            if result is child or children.get(name) is not child:
                continue
            note(children.__setitem__, name, child)
            if isinstance(result, nn.Module):
                children[name] = result
            elif name.isdigit():
                raise BuildError(
                    f"{describe_place(child)} makes a {type(result).__name__}, and a {type(module).__name__} holds "
                    "modules. Keep it as an attribute of a module with a name"
                )
            else:
                del children[name]
                module.__dict__[name] = result
                note(module.__dict__.pop, name, None)

    def construct(self, module: Any, factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the real class of a layer, on the right device and from the right generator."""
        try:
            if self.device is None and self.seed is None:
                result = factory(*args, **kwargs)
            else:
                with ExitStack() as stack:
                    if self.device is not None:
                        stack.enter_context(self.device)
                    if self.seed is not None:
                        stack.enter_context(seeded(self.seed, tags.shown(module)))
                    result = factory(*args, **kwargs)
        except Exception as error:
            error.add_note(f"while building {describe_place(module)}")
            raise
        if self.dtype is not None and isinstance(result, nn.Module):
            result.to(dtype=self.dtype)
        return result


def refuse_hidden_layers(module: Any) -> None:
    """Raise when an attribute of a module is a plain list or dict of unbuilt layers: torch would not see them."""
    for name, value in module.__dict__.items():
        if name.startswith("_") or not isinstance(value, (list, tuple, dict)):
            continue
        for item in value.values() if isinstance(value, dict) else value:
            record = getattr(item, "_record", None) if isinstance(item, nn.Module) else None
            if record is not None and not record.built:
                raise BuildError(
                    f"{type(module).__name__}.{name} is a {type(value).__name__} that holds unbuilt modules, which "
                    "torch does not see. Hold them in a replayml.LayerList, or as attributes of their own"
                )


def describe_place(module: Any) -> str:
    """Return the path of a module and the lines that set its arguments."""
    path = ".".join(("model", *tags.shown(module)))
    call = module._record.call
    lines = [f"made at {call.where}"] if call.where else []
    for name, setting in settings_of(module).items():
        if setting.where is not None:
            lines.append(f"{name!r} was set to {setting.value!r} at {setting.where}")
    return f"{path} ({call})" + (": " + "; ".join(lines) if lines else "")


def build(
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    seed: int | None,
) -> Any:
    """Build a module in place: see `Module.build`."""
    builder = Builder(module, device, dtype, seed)
    call = describe(module)
    if _has_layers_in_plain_modules(module):
        call = describe(realize(call))  # the build replaces them in the very modules that the record names
    with transaction(), going_on(builder):
        if seed is not None and _owns_tensors(module):
            _construct_seeded(module, seed)
        if args or kwargs:
            run_example(module, builder, args, kwargs)
        result = builder.make(module)
        _put_in_place(module, result)
        if isinstance(result, nn.Module) and (device is not None or dtype is not None):
            result.to(device=builder.device, dtype=dtype)
        places = {id(below): (below, path) for path, below in _records_inside(result)}
    for below, _ in places.values():
        for child in below._record.children.values():
            if id(child) not in places and not child._record.built:
                child._record.links = [link for link in child._record.links if link[0] is not below]
    if builder.has_built_parts:
        _take_over_sizes(result, builder.sizes)
    blueprint = Blueprint(call, builder.sizes)
    for below, path in places.values():
        if builder.is_logging:
            below.__dict__["_logs"] = builder.logs
        below._record.seal(blueprint, path)
    if builder.waiting and "_record" in result.__dict__:
        result._record.wait(builder.waiting)
    if isinstance(result, nn.Module) and "_record" not in result.__dict__:
        module._record.seal(blueprint, ())
    return result


def _has_layers_in_plain_modules(module: Any) -> bool:
    """Tell whether an unbuilt module stands inside of a plain one."""
    stack = [module]
    while stack:
        for slots, below in stack.pop()._record.children.items():
            if len(slots) > 1:
                return True
            if below._record.children:
                stack.append(below)
    return False


def _put_in_place(module: Any, result: Any) -> None:
    """Put what a module became where the module stood, when a part of a tree is built by itself."""
    if result is module:
        return
    for parent, slots in module._record.links:
        holder = tags.child_at(parent, slots[:-1])
        record = getattr(holder, "_record", None)
        name = slots[-1] if record is None else record.name_of(slots[-1])
        if isinstance(result, nn.Module):
            note(holder._modules.__setitem__, name, module)
            holder._modules[name] = result


@contextmanager
def going_on(builder: Builder) -> Iterator[None]:
    """Make a build the current one while the block runs."""
    token = _current.set(builder)
    try:
        yield
    finally:
        _current.reset(token)


def _take_over_sizes(result: Any, sizes: dict[Path, dict[str, Any]]) -> None:
    """Add the sizes of parts that another model has built before, and that this one shares."""
    for name, below in result.named_modules():
        record = below.__dict__.get("_record")
        if record is not None and record.built:
            path = tuple(name.split(".")) if name else ()
            for place, found in record.blueprint.sizes.items():
                if place[: len(record.path)] == record.path:
                    sizes.setdefault((*path, *place[len(record.path) :]), dict(found))


def _records_inside(module: Any) -> Iterator[tuple[Path, Any]]:
    """Yield each unsealed replayml module below one, with its path."""
    if isinstance(module, nn.Module):
        seen: set[int] = set()
        stack: list[tuple[Path, Any]] = [((), module)]
        while stack:
            path, below = stack.pop()
            if id(below) in seen:
                continue
            seen.add(id(below))
            record = below.__dict__.get("_record")
            if record is not None and not record.built:
                yield path, below
            for name, child in reversed(below._modules.items()):
                if child is not None and (child._modules or "_record" in child.__dict__):
                    stack.append(((*path, name), child))


# Sizes from an example input ------------------------------------------------------------------------------------


HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def run_example(module: Any, builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the example through the model: each layer makes its real object with the sizes that it sees."""
    args, kwargs = _moved(args, builder), _moved(kwargs, builder)
    modes = [(below, below.training) for below in module.modules()]
    hooks = [
        (below.__dict__, {name: below.__dict__[name] for name in HOOKS}) for below, _ in modes if not _is_lazy(below)
    ]
    random: AbstractContextManager[Any] = nullcontext() if builder.seed is None else forked_rng()
    try:
        with quiet(), torch.no_grad(), random:
            for attributes, _ in hooks:
                attributes.update({name: OrderedDict() for name in HOOKS})
            for below, _ in modes:
                below.__dict__["training"] = False
                if isinstance(getattr(below, "_record", None), Record) and not getattr(below, "is_layer", False):
                    below._connect_maps(below)
                    if "_computed" in below.__dict__:
                        _probe(below)
            module(*args, **kwargs)
    finally:
        for attributes, kept in hooks:
            attributes.update(kept)
            if isinstance(attributes.get("forward"), MappedForward):
                del attributes["forward"]
        for below, mode in modes:
            below.__dict__["training"] = mode
    for below, mode in modes:
        early = builder.early.get(id(below))
        if early is not None and isinstance(early[1], nn.Module):
            early[1].train(mode)


def _is_lazy(module: nn.Module) -> bool:
    """Tell whether it is a lazy layer of torch, which finds its sizes by hooks of its own."""
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()


def _probe(module: Any) -> None:
    """Let a module compute its settings from the first input that it gets."""

    def compute(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = {name: function(*args, **kwargs) for name, function in module.__dict__["_computed"].items()}
        module._take_sizes(values)
        builder = current()
        if builder is not None:
            builder.note_sizes(module, values)

    nn.Module.register_forward_pre_hook(module, compute, with_kwargs=True)


def _moved(value: Any, builder: Builder) -> Any:
    """Return example inputs on the device of the build, floating point ones in the type that the weights will have."""
    if isinstance(value, torch.Tensor):
        floating = builder.dtype or torch.get_default_dtype()
        return value.to(device=builder.device, dtype=floating if value.is_floating_point() else None)
    if isinstance(value, PackedSequence):
        data = _moved(value.data, builder)
        return PackedSequence(data, value.batch_sizes, value.sorted_indices, value.unsorted_indices)
    if isinstance(value, (tuple, list)):
        moved = [_moved(item, builder) for item in value]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    if isinstance(value, dict):
        return {key: _moved(item, builder) for key, item in value.items()}
    return value


# Seeds ----------------------------------------------------------------------------------------------------------


def derived_seed(seed: int, path: Path) -> int:
    """Return the seed of one place, derived from the seed of the whole.

    Example:
        >>> derived_seed(1, ("a",)) == derived_seed(1, ("b",))
        False
    """
    digest = hashlib.sha256(f"{seed}/{'.'.join(path)}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def forked_rng() -> Iterator[None]:
    """Leave torch's global generators as they were before the block."""
    with torch.random.fork_rng(devices=_cuda_devices()):
        yield


@contextmanager
def seeded(seed: int, path: Path) -> Iterator[None]:
    """Draw from the generator of one place while the block runs."""
    with forked_rng():
        torch.default_generator.manual_seed(derived_seed(seed, path))
        if _cuda_devices():
            torch.cuda.manual_seed_all(derived_seed(seed, path))
        yield


def _cuda_devices() -> list[int]:
    """Return the CUDA devices in use; asking must not initialise CUDA."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def _owns_tensors(module: Any) -> bool:
    """Tell whether an ``__init__`` made tensors already, outside of layers."""
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _construct_seeded(module: Any, seed: int) -> None:
    """Construct again, so that tensors made by an ``__init__`` come from the seed as well."""
    with seeded(seed, ()):
        reconstruct(module)
