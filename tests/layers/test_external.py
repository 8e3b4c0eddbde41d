"""`External`: arguments checked when they are given, kept by the names of the wrapped class, and passed on as given."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ArgumentError, BuildError, ConfigurationError
from replayml.layers.containers import LayerList
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module


class Pair(nn.Module):
    """A plain torch module with modules among its arguments."""

    def __init__(self, first: Any, *others: Any, table: Any = None) -> None:
        super().__init__()
        self.first = first
        self.others = nn.ModuleList(others)
        self.table = table

    def forward(self, x: torch.Tensor) -> Any:
        """Return the output of the first."""
        return self.first(x)


class Ratio:
    """A quotient of two whole numbers."""

    def __init__(self, numerator: int, denominator: int = 1) -> None:
        self.numerator, self.denominator, self.value = numerator, denominator, numerator / denominator


NAMES = ("a", "b", "c", "name", "args", "kwargs", "value")


@st.composite
def targets(draw: st.DrawFn, keywords: bool | None = None) -> Callable[..., Any]:
    """Return a function, or a class, with a random parameter list, whose result tells what it received."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    bounds = sorted(draw(st.tuples(*[st.integers(0, len(names))] * 2)))
    first_default = draw(st.integers(0, bounds[1]))
    parts = [name if i < first_default else f"{name}='default {name}'" for i, name in enumerate(names[: bounds[1]])]
    if bounds[0]:
        parts.insert(bounds[0], "/")
    keyword_only = [f"{n}='default {n}'" if draw(st.booleans()) else n for n in names[bounds[1] :]]
    if draw(st.booleans()):
        parts.append("*surplus")
    elif keyword_only:
        parts.append("*")
    parts += keyword_only
    if draw(st.booleans()) if keywords is None else keywords:
        parts.append("**options")
    header = ", ".join(parts)
    scope: dict[str, Any] = {}
    if draw(st.booleans()):
        exec(f"def made({header}):\n    return dict(locals())\n", scope)
        return scope["made"]  # type: ignore[no-any-return]
    text = f"class made:\n    def __init__(self{', ' if header else ''}{header}):\n        self.got = dict(locals())\n"
    exec(text, scope)
    return scope["made"]  # type: ignore[no-any-return]


ARGS = st.lists(st.integers(), max_size=4).map(tuple)
KWARGS = st.dictionaries(st.sampled_from((*NAMES, "extra")), st.integers(), max_size=3)


def received(result: Any) -> dict[str, Any]:
    """Return what a target received."""
    got = dict(result if isinstance(result, dict) else result.got)
    got.pop("self", None)
    return got


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a target by name."""
    return dict(inspect.signature(target).parameters)


def bound(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Return what Python binds these arguments to, or None when it refuses them; required ones may be left out."""
    hidden = {name for name, one in parameters(target).items() if one.kind is one.POSITIONAL_ONLY}
    assume(not hidden & set(kwargs))
    try:
        return dict(inspect.signature(target).bind_partial(*args, **kwargs).arguments)
    except TypeError:
        return None


def outcome(target: Callable[..., Any], given_arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a target receives that is given these arguments by name; None when it lacks one."""
    expected: dict[str, Any] = {}
    for name, parameter in parameters(target).items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            expected[name] = given_arguments.get(name, ())
        elif parameter.kind is parameter.VAR_KEYWORD:
            expected[name] = given_arguments.get(name, {})
        elif name in given_arguments or parameter.default is not parameter.empty:
            expected[name] = given_arguments.get(name, parameter.default)
        else:
            return None
    return expected


def check_outcome(external: Any, expected: dict[str, Any] | None) -> None:
    """Build, and a copy as well: the target receives what is expected, or the build names what it lacks."""
    for model in (external.new(), external):
        if expected is None:
            with pytest.raises(BuildError, match=r"lacks \w+.*\. Configure it"):
                model.create()
        else:
            assert received(model.create()) == expected


# Arguments --------------------------------------------------------------------------------------------------------


@given(target=targets(), args=ARGS, kwargs=KWARGS)
def test_arguments_are_checked_when_they_are_given_and_passed_on_as_given(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """What Python would refuse is refused at once; all else is what the class receives, whatever its parameters are."""
    expected = bound(target, args, kwargs)
    if expected is None:
        with pytest.raises(ArgumentError, match=r"It takes|Give it once"):
            External(target, *args, **kwargs)
        return
    check_outcome(External(target, *args, **kwargs), outcome(target, expected))


@given(target=targets(), args=ARGS, kwargs=KWARGS, settings=KWARGS, one_by_one=st.booleans())
def test_what_is_configured_takes_the_place_of_what_was_given(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    settings: dict[str, Any],
    one_by_one: bool,
) -> None:
    """Every name but ``*args`` is a setting, a positional-only one too; one that the class does not take is refused."""
    arguments = bound(target, args, kwargs)
    assume(arguments is not None and settings)
    assert arguments is not None
    external: Any = External(target, *args, **kwargs)
    names = {name for name, one in parameters(target).items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    options = next((name for name, one in parameters(target).items() if one.kind is one.VAR_KEYWORD), None)
    assert external.configurables == {*names, "classtype"}
    unknown = set(settings) - names
    if unknown and options is None:
        with pytest.raises(ConfigurationError, match=r"takes no '\w+'\..* It takes: "):
            external.configure(**settings)
        assert len(external.tape) == 0
        check_outcome(external, outcome(target, arguments))
        return
    if one_by_one:
        for name, value in settings.items():
            external.configure(name, value)
    else:
        external.configure(**settings)
    expected = {**arguments, **{name: value for name, value in settings.items() if name in names}}
    if options is not None:
        expected[options] = {**arguments.get(options, {}), **{name: settings[name] for name in unknown}}
    check_outcome(external, outcome(target, expected))


@given(old=targets(), new=targets(keywords=False), args=ARGS, kwargs=KWARGS, more=KWARGS)
def test_another_class_gets_the_arguments_that_it_takes(
    old: Callable[..., Any],
    new: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    more: dict[str, Any],
) -> None:
    """``configure(cls, ...)`` keeps the arguments that the new class has by name, and drops the others."""
    before, added = bound(old, args, kwargs), bound(new, (), more)
    assume(before is not None)
    assert before is not None
    external: Any = External(old, *args, **kwargs)
    if added is None:
        with pytest.raises(ArgumentError, match=r"It takes|Give it once"):
            external.configure(new, **more)
        assert external.classtype is old
        return
    external.configure(new, **more)
    assert external.classtype is new
    kept = {**before, **before.get("options", {})}
    kept = {name: value for name, value in kept.items() if name in parameters(new)}
    check_outcome(external, outcome(new, {**kept, **added}))


def test_an_argument_that_the_class_does_not_take_is_refused_with_the_nearest_name() -> None:
    """The error names the class, the argument, the likely one, all others, and the line for what was configured."""
    with pytest.raises(ArgumentError, match=r"Ratio takes no 'numertor'\. Did you mean 'numerator'\? It takes: num"):
        External(Ratio, numertor=1)
    external: Any = LayerList([External(Ratio, 1)])
    with pytest.raises(
        ConfigurationError,
        match=r"Ratio at '0' takes no 'nom'\..* It takes: numerator, denominator\. \(made at .*\.py:",
    ):
        external[0].configure(nom=2)
    with pytest.raises(ArgumentError, match="Ratio got 'numerator' twice: 1 as positional argument 1 and 2 by keyword"):
        External(Ratio, 1, numerator=2)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (3, "External wraps a class, not 3"),
        ("nn.Linear", "External wraps a class, not 'nn.Linear'"),
        (nn.ReLU(), r"External wraps a class, not ReLU\(\)\. Give its class: ReLU"),
    ],
)
def test_only_something_that_can_be_called_is_wrapped(thing: Any, message: str) -> None:
    """An object in the place of a class is refused at once, when it is made and when it is configured."""
    with pytest.raises(ArgumentError, match=message):
        External(thing)
    with pytest.raises((ArgumentError, ConfigurationError), match=re.escape(repr(thing))):
        External(dict).configure(thing)


def test_the_class_must_be_given() -> None:
    """Without a class the error shows how it is given."""
    with pytest.raises(ArgumentError, match=r"External\(\) lacks the class: External\(nn\.Linear, 8, 8\)"):
        External()  # type: ignore[call-arg]


@pytest.mark.parametrize("how", [lambda e, cls: e.configure(cls), lambda e, cls: e.configure("classtype", cls)])
def test_the_class_is_a_setting_called_classtype(how: Any) -> None:
    """The class is read as ``classtype`` and set by position, by that name, or by assignment."""
    external: Any = External(Pair, Layer(nn.ReLU))
    assert external.classtype is Pair
    how(external, Ratio)
    classes = [external.classtype]
    external.configure(classtype=Pair)
    classes.append(external.new().classtype)
    external.classtype = nn.Identity
    classes.append(external.new().classtype)
    assert classes == [Ratio, Pair, nn.Identity]
    assert type(external.build()) is nn.Identity


def test_a_builtin_without_a_signature_takes_anything() -> None:
    """What has no signature is not checked; it gets the arguments as they were given."""
    assert External(range, 2, 5).build() == range(2, 5)
    assert External(max, 3, 7).build() == 7


# Reading ----------------------------------------------------------------------------------------------------------


@given(target=targets(keywords=False), args=ARGS, kwargs=KWARGS)
def test_arguments_and_defaults_are_read_as_attributes(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """``kwargs`` has what was given, by name; an attribute also has the default of the class."""
    arguments = bound(target, args, kwargs)
    assume(arguments is not None)
    assert arguments is not None
    external: Any = External(target, *args, **kwargs)
    surplus = arguments.pop("surplus", ())
    assert external.kwargs == arguments
    for name, parameter in parameters(target).items():
        if name in ("args", "kwargs", "surplus"):
            continue
        if name in arguments:
            assert getattr(external, name) == arguments[name]
        elif parameter.default is not parameter.empty:
            assert getattr(external, name) == parameter.default
        else:
            with pytest.raises(AttributeError, match=name):
                getattr(external, name)
    values = [*(repr(value) for value in surplus), *(f"{name}={value!r}" for name, value in external.kwargs.items())]
    assert repr(external) == f"External({', '.join(['made', *values])})"


def test_assigning_an_argument_configures_it() -> None:
    """``external.name = value`` for an argument is a call of ``configure``; another name is an attribute."""
    external: Any = External(Ratio, 1, 2)
    external.denominator = 5
    external.note = "x"
    assert [entry.method for entry in external.tape] == ["configure", "set"]
    assert external.new().kwargs == {"numerator": 1, "denominator": 5}
    assert external.new().note == "x"
    assert external.set("numerator", 3).build().value == 3 / 5


# Modules among the arguments --------------------------------------------------------------------------------------


def test_unbuilt_modules_among_the_arguments_are_configured_copied_and_built() -> None:
    """A module given to an external is its child: configured in its place, copied with it, built before it."""
    external: Any = External(Pair, Layer(nn.Linear, 1, 1), Layer(nn.ReLU), table={"x": [Layer(nn.Tanh)]})
    external.first.configure(out_features=3)
    external.configure("first", bias=False)
    external[..., "0"].configure(nn.GELU)
    copy = external.new()
    assert copy.first is not external.first
    for model in (copy, external):
        built = model.build()
        assert type(built) is Pair
        assert (built.first.out_features, built.first.bias) == (3, None)
        assert type(built.others[0]) is nn.GELU
        assert type(built.table["x"][0]) is nn.Tanh


def test_a_module_that_takes_the_place_of_an_argument_is_the_child_then() -> None:
    """After ``configure(first=module)`` the new module has the place and the old one is a root again."""
    old, new = Layer(nn.ReLU), Layer(nn.Tanh)
    external: Any = External(Pair, old)
    external.configure(first=new)
    assert external.first is new
    assert (old.tags, new.tags) == ([()], [("first",)])
    assert type(external.build().first) is nn.Tanh


# Building ---------------------------------------------------------------------------------------------------------


def test_building_returns_the_object_and_leaves_it_in_the_place_of_the_external() -> None:
    """``build`` of an external gives the object; in a tree it stands where the external stood, at each place."""

    class Net(Module):
        def __init__(self) -> None:
            self.inner = External(Pair, Layer(nn.ReLU))
            self.same = self.inner

    model: Any = Net()
    created = model.create()
    assert isinstance(model.inner, External)
    assert type(created.inner) is Pair
    assert created.inner is created.same
    assert type(created.inner.first) is nn.ReLU
    assert type(model.inner.build()) is Pair


def test_an_object_that_is_no_module_is_an_attribute_of_the_built_model() -> None:
    """What an external makes need be no torch module; it stands under its name and has no part in the weights."""
    model: Any = Module().set("ratio", External(Ratio, 1, 2)).set("layer", Layer(nn.Linear, 1, 1))
    built = model.create()
    assert built.ratio.value == 0.5
    assert list(built.state_dict()) == ["layer.weight", "layer.bias"]
    assert [name for name, _ in built.named_children()] == ["layer"]


def test_the_object_gets_what_was_put_on_the_external() -> None:
    """Attributes, torch's hooks and the mode go over to the object that is made."""
    external: Any = External(Pair, Layer(nn.Identity)).eval()
    external.note = "kept"
    external.register_forward_hook(lambda module, inputs, output: output + 1)
    built = external.build()
    assert built.note == "kept"
    assert not built.training
    assert torch.equal(built(torch.zeros(2)), torch.ones(2))


def test_an_error_of_the_class_keeps_its_type_and_gains_its_place() -> None:
    """What the wrapped class raises is raised, with the path, and the lines that made and set it."""
    model: Any = Module().set("ratio", External(Ratio, 1, 2))
    model.ratio.configure(denominator=0)
    with pytest.raises(ZeroDivisionError) as caught:
        model.build()
    (note,) = caught.value.__notes__
    assert "while building model.ratio" in note
    assert "'denominator' was set to 0 at" in note
    assert note.count("test_external.py:") == 2
    model.ratio.configure(denominator=4)
    assert model.build().ratio.value == 0.25


class Classed:
    """A class with an argument of its own that is called like that of `External`."""

    def __init__(self, classtype: Any, name: str = "n") -> None:
        self.got = (classtype, name)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda: External(Classed, 1).configure(name="q"), (1, "q")),
        (lambda: External(Classed, 1).configure(classtype=5), (5, "n")),
        (lambda: External(Classed, 1).configure("classtype", 5), (5, "n")),
        (lambda: External(Classed, classtype=1).configure("name", "q"), (1, "q")),
        (lambda: External(dict, a=1).configure(Classed, 3, name="q"), (3, "q")),
    ],
)
def test_a_class_keeps_its_own_argument_classtype(make: Callable[[], Any], got: Any) -> None:
    """The setting of the class and the class's own argument of that name are two things."""
    assert make().build().got == make().new().build().got == got


class Open(nn.Module):
    """A class that takes any keyword."""

    def __init__(self, /, **options: Any) -> None:
        super().__init__()
        self.options = options


@pytest.mark.parametrize("name", ["cls", "self", "module"])
def test_any_keyword_reaches_a_class_that_takes_any(name: str) -> None:
    """No name of ours is in the way of one of the wrapped class."""
    assert Layer(Open, **{name: 1}).build().options == {name: 1}
    assert Layer(Open).configure(**{name: 1}).build().options == {name: 1}
    assert Layer(Open).configure(name, 1).new().build().options == {name: 1}


def test_the_surplus_arguments_of_a_swapped_class_are_copied_with_a_part() -> None:
    """``sub.new()`` keeps the ``*args`` that came with another class."""
    model: Any = Module()
    model.part = External(dict)
    model.part.configure(max, 3, 4)
    assert model.part.new().build() == model.new().part.build() == 4
