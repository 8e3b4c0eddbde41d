"""The metaclass: it records the call that makes a module, and knows who is being constructed right now.

Invariants:
    * The arguments recorded are those of the outermost call, whatever ``__init__`` chains pass on.
    * "Who is being constructed" is an immutable tuple in one ``ContextVar``: threads and asyncio tasks do not see
      each other, and every exit restores it, one by an exception included.
    * A constructor that raises leaves nothing behind: what it did to its arguments is undone.
    * Recording copies no tensor and no module.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from torch import nn

from replayml.core import tags
from replayml.core.arguments import ATOMS, keep, note_content, read_once
from replayml.core.config import Edit, next_serial
from replayml.core.deferral import construct, forget, is_stand_in
from replayml.core.journal import note, refill
from replayml.core.record import Forecast, Line, Record
from replayml.core.signatures import bind, signature_of
from replayml.core.tape import CallRecord, PlainRecord, Where, caller
from replayml.core.tree import forget_remnants

__all__ = [
    "ExtendedConstructorMeta",
    "Frame",
    "not_top_level",
    "registered_classes",
    "scope",
    "unregistered",
    "watched",
]

T = TypeVar("T")

CONSTRUCT, CALL, QUIET, REPLAY = "construct", "call", "quiet", "replay"

_scope: ContextVar[tuple[Frame, ...]] = ContextVar("replayml_scope", default=())


_keeps_out: ContextVar[bool] = ContextVar("replayml_keeps_out", default=False)
_watcher: ContextVar[Callable[[Any], None] | None] = ContextVar("replayml_watcher", default=None)


@contextmanager
def unregistered() -> Iterator[None]:
    """Keep classes that are made while the block runs, copies in a pickle for instance, out of the class registry."""
    token = _keeps_out.set(True)
    try:
        yield
    finally:
        _keeps_out.reset(token)


@contextmanager
def watched(watcher: Callable[[Any], None]) -> Iterator[None]:
    """Show every module that is about to be constructed to a function, while the block runs."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class Frame:
    """One step of what replayml is doing right now.

    Attributes:
        kind: ``construct`` (an ``__init__`` runs), ``call`` (a recorded method runs), ``quiet`` (nothing is
            recorded: a forward pass, a build) or ``replay`` (a tape is replayed: the user's level again).
        module: The module that the step is about.
        by: The innermost module under construction, or None for the user.
        edit: The innermost edit that is being carried out, or None.
        where: The line to record instead of the caller's.
        during: The serial of the user's call that is being carried out, or 0.
        again: Whether an edit is made again, after its target was constructed again.
        roots: The roots of the module when a call on it began, which may construct it again, as another object.
    """

    __slots__ = ("again", "by", "during", "edit", "kind", "module", "roots", "where")

    def __init__(
        self,
        kind: str,
        module: Any,
        by: Any = None,
        edit: Edit | None = None,
        where: Where | None = None,
        during: int = 0,
        again: bool = False,
        roots: Sequence[Any] = (),
    ) -> None:
        self.again = again
        self.kind = kind
        self.module = module
        self.roots = roots
        self.by = by
        self.edit = edit
        self.where = where
        self.during = during


def scope() -> Frame | None:
    """Return the innermost step, or None at the user's level."""
    frames = _scope.get()
    return frames[-1] if frames else None


class entered:
    """Be inside a step while the block runs. With ``fresh`` the outer steps are out of sight."""

    __slots__ = ("_frame", "_fresh", "_token")

    def __init__(self, frame: Frame, fresh: bool = False) -> None:
        self._frame = frame
        self._fresh = fresh

    def __enter__(self) -> None:
        outer = () if self._fresh else _scope.get()
        self._token: Token[tuple[Frame, ...]] = _scope.set((*outer, self._frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _scope.reset(self._token)


def not_top_level(module: Any) -> entered:
    """Return the block inside which ``module`` is the one under construction."""
    return entered(Frame(CONSTRUCT, module, by=module))


def quiet() -> entered:
    """Return the block inside which nothing is recorded."""
    return entered(Frame(QUIET, None))


class ExtendedConstructorMeta(type):
    """The metaclass of `replayml.Module`."""

    _shows_its_init = True  # its `__signature__` is that of the `__init__`, which may hand on `**kwargs`
    _classes: ClassVar[weakref.WeakValueDictionary[str, type]] = weakref.WeakValueDictionary()

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(name, bases, namespace, **kwargs)
        if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
            own = [attribute for attribute, value in namespace.items() if isinstance(value, property)]
            mixins = [a for base in bases for a, value in vars(base).items() if isinstance(value, property)]
            # TorchScript would compile our properties along with a model that never reads them
            cls.__jit_unused_properties__ = [*getattr(cls, "__jit_unused_properties__", ()), *own, *mixins]
        if not is_stand_in(cls) and not _keeps_out.get():
            ExtendedConstructorMeta._classes[f"{cls.__module__}.{cls.__qualname__}"] = cls

    def __call__(cls: type[T], /, *args: Any, **kwargs: Any) -> T:
        """Construct a module and record the call."""
        if "__from_ckpt_application" in kwargs:
            return cls._from_checkpoint_call(kwargs)  # type: ignore[attr-defined,no-any-return]
        args, kwargs = read_once(args, kwargs)
        if kwargs:
            _check_keywords(cls, args, kwargs)
        top = scope()
        frame = sys._getframe(1)
        line = (cls, frame.f_code, frame.f_lineno)
        module: T = construct(lambda: _constructed(cls, args, kwargs, top, line))
        return module

    @property
    def __signature__(cls) -> inspect.Signature:
        """The signature of the user's ``__init__``, which ``inspect``, ``help()`` and editors show."""
        init = inspect.getattr_static(cls, "__init__")
        signature = inspect.signature(init)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


def _constructed(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], top: Frame | None, line: Line) -> Any:
    """Return a new module, recorded and constructed."""
    forecast = None if top is None or top.by is None else _forecast(line, top.by._record)
    module: Any = None if forecast is None else _again(forecast, top.by)  # type: ignore[union-attr]
    links = [] if module is None else module._record.links
    if module is None:
        module = cls.__new__(cls, *args, **kwargs)
    _record(module, cls, args, kwargs, top)
    module._record.links = links
    watch = _watcher.get()
    if watch is not None:
        watch(module)
    if top is not None and top.by is not None:
        _note_creation(module, top.by, line, forecast)
    module._init_torch()
    cls.__pre_init__(module, *module._record.args, **module._record.kwargs)
    module.__construct__()
    return module


def _record(
    module: Any,
    cls: type,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    top: Frame | None,
) -> None:
    """Give a new module its record."""
    record = Record()
    args, kwargs, record.kept = keep(args, kwargs)
    note_content(record.kept)
    record.args = args
    record.kwargs = kwargs
    record.call = CallRecord(
        cls,
        capture(args) if args else args,
        capture(kwargs) if kwargs else kwargs,
        [],
        top.where if top is not None and top.kind is REPLAY else caller(),
        module,
    )
    record.children = {}
    record.constructed_at = next_serial()
    module.__dict__["_record"] = record


def _note_creation(module: Any, by: Any, line: Line, forecast: Forecast | None) -> None:
    """Note that the ``__init__`` of ``by`` made a module, and where it will stand if all is as the last time."""
    record: Record = module._record
    record.maker = record.first_maker = by
    record.line = line
    maker: Record = by._record
    if maker.creations is None or maker.made_at is None:
        maker.creations, maker.made_at = [], {}
    maker.creations.append(module)
    maker.made_at[line] = maker.made_at.get(line, 0) + 1
    if forecast is not None:
        record.expected = (by, forecast.path)
        record.forecast = forecast.below


def _forecast(line: Line, maker: Record) -> Forecast | None:
    """Return where the module stood that the same line of its maker made, as often before, in the last run."""
    if maker.forecast is None:
        return None
    number = 0 if maker.made_at is None else maker.made_at.get(line, 0)
    of_line = maker.forecast.get(line, ())
    return of_line[number] if number < len(of_line) else None


def _has_own_new(cls: Any) -> bool:
    return cls.__new__ is not object.__new__


def _again(forecast: Forecast, by: Any) -> Any:
    """Return the object of the last time, empty but for its record, if it was not put anywhere else since."""
    module = forecast.module
    record: Record = module.__dict__["_record"]
    if record.gone is None or record.built or _has_own_new(record.call.cls):
        return None
    forget_remnants(module, by)
    forget(module)
    note(refill, module.__dict__, dict(module.__dict__))
    module.__dict__.clear()
    module.__dict__["_record"] = record
    return module


def _check_keywords(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise, with the nearest name, when the ``__init__`` of a class does not take some keyword."""
    signature = signature_of(cls)
    if not signature.accepts_kwargs and not kwargs.keys() <= signature.keywords:
        bind(cls, args, kwargs)


def capture(value: Any) -> Any:
    """Return a value with every unbuilt replayml module in it replaced by its `CallRecord`.

    A plain module with such ones inside becomes a `PlainRecord`. Values without such a module come back as they are;
    nothing else is copied.
    """
    kind = type(value)
    if kind in ATOMS:
        return value
    if isinstance(kind, ExtendedConstructorMeta):
        record = value.__dict__["_record"]
        return value if record.built else record.call
    if kind is tuple or kind is list:
        if ATOMS.issuperset(map(type, value)):
            return value
        new = [capture(item) for item in value]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else kind(new)
    if kind is dict:
        items = {key: capture(item) for key, item in value.items()}
        return value if all(items[key] is item for key, item in value.items()) else items
    if isinstance(value, nn.Module):
        inside = tuple((below, below._record.call) for _, below in tags.unbuilt_inside(value))
        return PlainRecord(value, inside) if inside else value
    return value


def registered_classes() -> Mapping[str, type]:
    """Return every class made by the metaclass, by its qualified name.

    Example:
        >>> import replayml
        >>> registered_classes()["replayml.layers.layer.Layer"] is replayml.Layer
        True
    """
    return dict(ExtendedConstructorMeta._classes)
