"""Construction: its order, the call that is recorded, who is under construction, and the registry of classes."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import itertools
import pickle
import pydoc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ArgumentError, ConfigurationError
from replayml.core.hooks import after_init, stateful
from replayml.core.meta import (
    CONSTRUCT,
    QUIET,
    ExtendedConstructorMeta,
    Frame,
    capture,
    entered,
    not_top_level,
    quiet,
    registered_classes,
    scope,
)
from replayml.core.tape import CallRecord
from replayml.layers.containers import LayerList
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module

NAMES = ("a", "b", "c")
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.tuples(st.integers()))


# The order of construction ----------------------------------------------------------------------------------------


class Log(list[Any]):
    """A list that is handed on as it is, as any object is that is no plain container."""


class Steps(Module):
    """Notes what it knows of itself at each step of its construction."""

    seen: list[tuple[str, dict[str, Any]]]

    def __new__(cls, log: list[Any], width: int = 1) -> Steps:
        """Note the step."""
        log.append(("new", scope() is None))
        return super().__new__(cls)

    def __pre_init__(self, *args: Any, **kwargs: Any) -> None:
        """Note the step."""
        log = args[0]
        known = self._actual_init_args == {"args": args, "kwargs": kwargs}
        empty = not self._config_tape and not self._is_calling_stateful_method and not list(self.children())
        log.append(("pre_init", known and empty and not self.is_constructing, sorted(set(vars(self)) & {"x", "layer"})))

    def __init__(self, log: list[Any], width: int = 1) -> None:
        top = scope()
        assert top is not None
        log.append(("init", top.kind is CONSTRUCT and top.by is self and self.is_constructing, width))
        self.x = width
        self.finish(log, "hook")
        self.layer = Layer(nn.Linear, width, width)

    @after_init
    def finish(self, log: list[Any], word: str) -> None:
        """Note the step."""
        log.append((word, self.layer.in_features == self.x))

    def __post_init__(self) -> None:
        """Note the step."""
        self._actual_init_args["args"][0].append(("post_init", not self.is_constructing))


def test_construction_takes_its_steps_in_order() -> None:
    """A construction is ``__new__``, the record, ``__pre_init__``, ``__init__``, the hooks, ``__post_init__``."""
    log = Log()
    steps = Steps(log, width=3)
    assert log == [
        ("new", True),
        ("pre_init", True, []),
        ("init", True, 3),
        ("hook", True),
        ("post_init", True),
    ]
    assert scope() is None
    assert not steps.is_constructing


def test_a_reconstruction_starts_after_pre_init_again() -> None:
    """Constructing again keeps the object and its record, and finds no child, attribute or hook of the last run."""
    log = Log()
    steps = Steps(log)
    del log[:]
    same = steps.configure(width=2)
    assert same is steps
    assert log == [("pre_init", True, []), ("init", True, 2), ("hook", True), ("post_init", True)]
    assert steps._actual_init_args == {"args": (log,), "kwargs": {}}


# What is recorded -------------------------------------------------------------------------------------------------


def passing_on(init: Callable[..., None]) -> Callable[..., None]:
    """A decorator as users write them."""

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)

    return wrapped


class Mixin:
    """A mixin that takes part in the chain with arguments of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mixed = True


class TorchMixin(nn.Module):
    """A mixin that is a torch module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mixed = True


class Plain(Module):
    """Calls no ``super().__init__``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.got = (args, kwargs)


class Polite(Module):
    """Calls ``super().__init__``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.got = (args, kwargs)


class Parent(Module):
    """Takes other arguments than its children give."""

    def __init__(self, size: int = 0, *, name: str = "") -> None:
        super().__init__()
        self.size, self.name = size, name
        self.layer = Layer(nn.Linear, 2, 2)


class Child(Parent):
    """Passes other arguments on than it got."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(len(args), name="from the child")
        self.got = (args, kwargs)


class Late(Child):
    """Calls its parent last."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.early = True
        super().__init__(*args, extra=1, **kwargs)
        self.got = (args, kwargs)


class Decorated(Child):
    """Has a decorated ``__init__``, twice."""

    @passing_on
    @passing_on
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(args, kwargs)
        self.got = (args, kwargs)


class MixedFirst(Mixin, Polite):
    """A mixin before the module."""


class TorchMixedFirst(TorchMixin, Plain):
    """A torch mixin before the module."""


class MixedLast(Polite, TorchMixin):
    """A mixin behind the module."""


class Inherited(Decorated):
    """Has no ``__init__`` of its own."""


SHAPES = [Plain, Polite, Child, Late, Decorated, MixedFirst, TorchMixedFirst, MixedLast, Inherited]


@given(
    cls=st.sampled_from(SHAPES),
    args=st.lists(VALUES, max_size=3).map(tuple),
    kwargs=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
)
def test_the_arguments_recorded_are_those_of_the_outermost_call(
    cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Whatever mixins, decorators and parents pass on, the record and the copy have what the caller gave."""
    module = cls(*args, **kwargs)
    assert module._actual_init_args == {"args": args, "kwargs": kwargs}
    assert module.got == (args, kwargs)
    again = module.new()
    assert type(again) is cls
    assert again._actual_init_args == {"args": args, "kwargs": kwargs}
    assert again.got == (args, kwargs)
    assert [name for name, _ in again.named_modules()] == [name for name, _ in module.named_modules()]


@pytest.mark.parametrize("cls", SHAPES)
def test_any_inheritance_shape_builds_and_runs_one_init(cls: Any) -> None:
    """Each shape is built, and a construction runs ``__init__`` once, with or without ``super().__init__()``."""
    runs = []

    class Counted(cls):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            runs.append(args)
            super().__init__(*args, **kwargs)

    built = Counted(1).build()
    assert runs == [(1,)]
    assert built._has_built


def test_recording_copies_no_tensor_and_no_module() -> None:
    """The recorded arguments are the very tensors and modules that were given; an ``__init__`` gets what was given."""
    tensor, layer, names = torch.zeros(3), Layer(nn.ReLU), ["a"]
    module = Plain(tensor, layer, names=names)
    args, kwargs = module._actual_init_args["args"], module._actual_init_args["kwargs"]
    assert args[0] is tensor
    assert args[1] is layer
    assert kwargs["names"] == names
    assert module.got[1]["names"] is names


class Using(Module):
    """One whose ``__init__`` uses up its list and fills its dict."""

    def __init__(self, sizes: Any, table: Any = None, fail: bool = False) -> None:
        self.first = sizes.pop(0) if sizes else None
        self.rest = sizes
        if table is not None:
            table["seen"] = [*table.get("seen", ()), self.first]
        self.table = copy.deepcopy(table)
        if fail:
            raise ValueError("refused")

    @stateful
    def note(self, values: Any) -> None:
        """Keep a part of what is given, and use it up."""
        self.noted = list(values)
        values.clear()


@given(
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.sampled_from("xyz"), st.lists(st.integers())),
    st.lists(st.integers()),
)
def test_what_is_done_to_an_argument_later_is_not_in_the_record(sizes: Any, table: Any, values: Any) -> None:
    """Lists and dicts are recorded as they were when they were given, whoever changes them afterwards."""
    module = Using(sizes, table)
    module.note(values)
    expected = module.first, list(module.rest), copy.deepcopy(module.table), module.noted
    sizes.append("later")
    for inner in table.values():
        inner.append("later")
    values.append("later")
    for other in (module.new(), module.new().new(), pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert (other.first, other.rest, other.table, other.noted) == expected
    assert module.rest is sizes
    module.configure(fail=False)
    assert (module.first, module.rest, module.table) == expected[:3]


def test_a_list_that_was_configured_is_not_the_users_any_more() -> None:
    """What is done to a list after `configure` took it does not reach the module."""
    module, sizes = Using([1]), [5, 6]
    module.configure(sizes=sizes)
    sizes.append(7)
    module.configure(table={})
    assert (module.first, module.rest) == (module.new().first, module.new().rest) == (5, [6])
    assert module.explain("", "sizes").value == [5, 6]


@given(st.lists(st.integers(), min_size=1))
def test_a_constructor_that_fails_leaves_its_lists_as_they_were(sizes: list[int]) -> None:
    """The lists and dicts that were given to a failing ``__init__`` have the content that they had."""
    given_sizes, table = list(sizes), {"seen": [0]}
    with pytest.raises(ValueError, match="refused"):
        Using(given_sizes, table, fail=True)
    assert (given_sizes, table) == (sizes, {"seen": [0]})


@given(st.lists(st.integers(), max_size=4), st.sampled_from([iter, enumerate, zip, "generator"]))
def test_what_can_be_read_once_is_recorded_as_a_list(numbers: list[int], given_as: Any) -> None:
    """An iterator as an argument is read once, and the record and the copy have what it yields."""

    def make() -> Any:
        return (number for number in numbers) if given_as == "generator" else given_as(numbers)

    module = Plain(make())
    assert module.got == ((list(make()),), {})
    assert module.new().got == ((list(make()),), {})


def nests(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return containers of leaves, nested."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
        ),
        max_leaves=6,
    )


def modules_in(value: Any) -> list[Any]:
    """Return the modules in a nest, in order."""
    if isinstance(value, (list, tuple)):
        return [module for item in value for module in modules_in(item)]
    if isinstance(value, dict):
        return [module for item in value.values() for module in modules_in(item)]
    return [value] if isinstance(value, (Module, CallRecord)) else []


@given(nests(VALUES))
def test_capturing_a_value_without_modules_gives_the_value_itself(value: Any) -> None:
    """Data in a call is kept as it was given, not copied."""
    assert capture(value) is value


@given(nests(st.one_of(st.integers(), st.sampled_from(["linear", "relu"]))))
def test_capturing_replaces_each_module_by_its_record(shape: Any) -> None:
    """A module anywhere in lists, tuples and dicts stands as its record; the given containers stay as they were."""
    pool = {"linear": Layer(nn.Linear, 2, 2), "relu": Layer(nn.ReLU)}

    def filled(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(filled(item) for item in value)
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return pool.get(value, value) if isinstance(value, str) else value

    value = filled(shape)
    before = copy.copy(value) if isinstance(value, (list, dict)) else value
    captured = capture(value)
    assert type(captured) is (CallRecord if isinstance(value, Module) else type(value))
    assert [record.owner for record in modules_in(captured)] == modules_in(value)
    assert all(type(record) is CallRecord for record in modules_in(captured))
    assert value is before or value == before


# Who is under construction ----------------------------------------------------------------------------------------


class Interrupt(BaseException):
    """Raised like a KeyboardInterrupt."""


@given(
    kinds=st.lists(st.sampled_from(["construct", "quiet", "fresh"]), max_size=6),
    error=st.sampled_from([None, ValueError, Interrupt]),
)
def test_leaving_a_step_restores_the_one_before(kinds: list[str], error: type[BaseException] | None) -> None:
    """After any nest of steps, left by an exception of any kind or not, each level sees what it saw before."""
    module = Layer(nn.ReLU)

    def descend(rest: list[str]) -> None:
        before = scope()
        if not rest:
            if error is not None:
                raise error
            return
        blocks: dict[str, Callable[[], entered]] = {
            "construct": lambda: not_top_level(module),
            "quiet": quiet,
            "fresh": lambda: entered(Frame(CONSTRUCT, module), fresh=True),
        }
        try:
            with blocks[rest[0]]():
                top = scope()
                assert top is not None
                assert top is not before
                assert top.kind is (QUIET if rest[0] == "quiet" else CONSTRUCT)
                descend(rest[1:])
        finally:
            assert scope() is before

    if error is None:
        descend(kinds)
    else:
        with pytest.raises(error):
            descend(kinds)
    assert scope() is None


class Chain(Module):
    """A module in a module, so deep, which may raise before or after its child is made."""

    def __init__(self, depth: int, raising: int = -1, early: bool = False, error: type[BaseException] = ValueError):
        if depth == raising and early:
            raise error("stop")
        if depth:
            self.inner = Chain(depth - 1, raising, early, error)
        if depth == raising:
            raise error("stop")


@given(
    depth=st.integers(0, 4),
    raising=st.integers(0, 4),
    early=st.booleans(),
    error=st.sampled_from([KeyError, Interrupt]),
)
def test_after_a_failed_construction_the_next_one_is_as_if_nothing_had_happened(
    depth: int, raising: int, early: bool, error: type[BaseException]
) -> None:
    """An exception in any ``__init__`` leaves nobody under construction, and the next module is a root of its own."""
    if raising <= depth:
        with pytest.raises(error, match="stop"):
            Chain(depth, raising, early, error)
    assert scope() is None
    fresh = Chain(depth)
    assert fresh.tags == [()]
    assert fresh._record.maker is None
    fresh.set("x", 1)
    assert [entry.method for entry in fresh.tape] == ["set"]


def test_a_module_knows_who_made_it() -> None:
    """What an ``__init__`` makes has that module as its maker; what the user makes has none."""
    given_layer = Layer(nn.ReLU)

    class Outer(Module):
        def __init__(self, layer: Any) -> None:
            self.layer = layer
            self.own = LayerList(Layer(nn.Tanh))

    outer = Outer(given_layer)
    assert given_layer._record.maker is None
    assert outer.own._record.maker is outer
    assert outer.own[0]._record.maker is outer


# Signatures -------------------------------------------------------------------------------------------------------

PLAIN = pydoc._PlainTextDoc()  # type: ignore[attr-defined]


@st.composite
def parameter_lists(draw: st.DrawFn) -> str:
    """Return the text of a random parameter list, without self."""
    names = draw(st.lists(st.sampled_from(("a", "b", "c", "d")), unique=True, max_size=4))
    bounds = sorted(draw(st.tuples(*[st.integers(0, len(names))] * 2)))
    first_default = draw(st.integers(0, bounds[1]))
    parts = [name if i < first_default else f"{name}: int = {i}" for i, name in enumerate(names[: bounds[1]])]
    if bounds[0]:
        parts.insert(bounds[0], "/")
    keyword_only = [f"{name}=None" if draw(st.booleans()) else f"{name}: 'str'" for name in names[bounds[1] :]]
    if draw(st.booleans()):
        parts.append("*args")
    elif keyword_only:
        parts.append("*")
    parts += keyword_only
    if draw(st.booleans()):
        parts.append("**kwargs")
    return ", ".join(parts)


@given(parameter_lists())
def test_the_signature_of_a_class_is_that_of_the_users_init(parameters: str) -> None:
    """``inspect.signature`` and ``help`` show what they would show for a plain class with the same ``__init__``."""
    names: dict[str, Any] = {"Module": Module}
    for base in ("object", "Module"):
        text = f"def __init__(self{', ' if parameters else ''}{parameters}) -> None:\n        'What it takes.'"
        exec(f"class Made({base}):\n    {text}\n", names)
        names[base] = names.pop("Made")
    plain, ours = names["object"], names["Module"]
    assert inspect.signature(ours) == inspect.signature(plain)
    calls = [pydoc.render_doc(cls, renderer=PLAIN).splitlines()[3] for cls in (ours, plain)]
    assert calls[0] == calls[1]
    assert calls[0].startswith(" |  Made(")


def test_help_shows_the_text_of_the_users_init() -> None:
    """``help`` on the ``__init__`` shows its own parameters and text; no wrapper stands in front of it."""

    class Documented(Module):
        def __init__(self, width: int = 3) -> None:
            """Take the width in pixels."""

    text = pydoc.render_doc(Documented.__init__, renderer=PLAIN)
    assert "__init__(self, width: 'int' = 3)" in text
    assert "Take the width in pixels." in text
    assert inspect.getsource(Documented.__init__).strip().startswith("def __init__(self, width")


# The registry -----------------------------------------------------------------------------------------------------


def test_every_class_enters_the_registry_under_its_qualified_name() -> None:
    """A class is found by module and qualified name, for as long as it exists; a later one of that name replaces it."""

    def make() -> type:
        class Local(Module):
            pass

        return Local

    first = make()
    name = f"{first.__module__}.{first.__qualname__}"
    assert registered_classes()[name] is first
    second = make()
    assert registered_classes()[name] is second
    del first, second
    gc.collect()
    assert name not in registered_classes()
    assert registered_classes()["replayml.module.module.Module"] is Module


def test_the_registry_that_is_given_out_is_a_copy() -> None:
    """Changing the mapping that `registered_classes` returns registers nothing."""
    registered_classes()["made.Up"] = Module  # type: ignore[index]
    assert "made.Up" not in registered_classes()


def test_a_module_that_waits_to_be_constructed_again_adds_no_class() -> None:
    """The stand-in class of a child that its maker configures is in no registry under the child's name."""

    class Inner(Module):
        def __init__(self, width: int = 1) -> None:
            self.width = width

    class Outer(Module):
        def __init__(self) -> None:
            self.inner = Inner()
            self.inner.configure(width=5)

    outer = Outer()
    assert type(outer.inner) is Inner
    assert registered_classes()[f"{Inner.__module__}.{Inner.__qualname__}"] is Inner


# The shortcut for checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Plain, Module, Layer, External])
def test_only_an_application_takes_the_checkpoint_shortcut(cls: Any) -> None:
    """The private checkpoint arguments of a class without checkpoints are refused before anything is made."""
    with pytest.raises(
        TypeError, match=r"is no replayml\.Application; only those are loaded from a Lightning checkpoint"
    ):
        cls(__from_ckpt_application=b"anything", __build_args=(), __build_kwargs={})
    assert scope() is None


def test_the_metaclass_is_that_of_every_module() -> None:
    """Modules, layers and containers are instances of classes that the metaclass made, and of torch's."""
    modules: list[Module] = [Plain(), Layer(nn.ReLU), LayerList(), External(dict)]
    for module in modules:
        assert type(type(module)) is ExtendedConstructorMeta
        assert isinstance(module, nn.Module)


def test_a_recorded_method_is_not_called_during_construction() -> None:
    """What an ``__init__`` calls on itself is no recorded call: the flag is down and the tape is empty."""

    class Counter(Module):
        def __init__(self) -> None:
            self.count = 0
            self.flags = [self._is_calling_stateful_method]
            self.add(2)

        @stateful
        def add(self, number: int) -> None:
            self.flags.append(self._is_calling_stateful_method)
            self.count += number

    counter = Counter()
    assert counter.flags == [False, False]
    counter.add(3)
    assert counter.flags == [False, False, True]
    assert [str(entry) for entry in counter.tape] == ["model.add(3)"]
    assert counter.new().count == 5


READ_ONCE: dict[str, Callable[[], Any]] = {
    "generator": lambda: (number for number in [1, 2]),
    "reversed": lambda: reversed([1, 2]),
    "chain": lambda: itertools.chain([1], [2]),
    "range": lambda: iter(range(2)),
    "values": lambda: iter({1: 2}.values()),
    "items": lambda: {1: 2}.items(),
}


@pytest.mark.parametrize("how", ["positional", "keyword", "configure"])
@pytest.mark.parametrize("kind", READ_ONCE)
def test_what_can_be_read_once_is_recorded_however_it_is_given(kind: str, how: str) -> None:
    """An iterator or a dict view among the arguments is there again for every copy."""

    class Keeping(Module):
        def __init__(self, values: Any) -> None:
            self.values = list(values)

    make = READ_ONCE[kind]
    if how == "positional":
        model = Keeping(make())
    elif how == "keyword":
        model = Keeping(values=make())
    else:
        model = Keeping([0]).configure(values=make())
    assert model.values == list(make()) == model.new().values


def test_arguments_may_be_called_cls_and_self() -> None:
    """Names that replayml's own methods use for their first parameter are free for the user's."""

    class Named(Module):
        def __init__(self, cls: int = 1) -> None:
            self.x = cls

    assert Named(cls=2).x == 2
    assert Named().configure(cls=3).new().x == 3


def test_an_unknown_keyword_is_told_with_the_nearest_name() -> None:
    """Also when the ``__init__`` hands on what it does not know to that of the base."""

    class Base(Module):
        def __init__(self, width: int = 8) -> None:
            self.width = width

    class Derived(Base):
        def __init__(self, depth: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.depth = depth

    for cls, args in ((Base, ()), (Derived, (3,))):
        with pytest.raises(ArgumentError, match=r"takes no 'widht'\. Did you mean 'width'\?"):
            cls(*args, widht=6)
    model: Any = Derived(3)
    assert model.configurables == {"depth", "width"}
    assert model.configure(width=6).width == 6


@pytest.mark.parametrize("name", ["build", "new", "configure"])
def test_methods_that_recording_needs_are_not_hidden_by_attributes(name: str) -> None:
    """An ``__init__``, or the user, that assigns to such a name is told to choose another one."""

    class Hiding(Module):
        def __init__(self, hidden: str = "") -> None:
            if hidden:
                setattr(self, hidden, 3)

    with pytest.raises(
        ConfigurationError, match=rf"{name}\(\) is a method of every replayml module.*Choose another name"
    ):
        Hiding(name)
    model = Hiding()
    with pytest.raises(ConfigurationError, match="Choose another name"):
        setattr(model, name, Layer(nn.ReLU))
    assert len(model.new().tape) == 0
