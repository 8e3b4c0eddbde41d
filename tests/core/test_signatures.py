"""What a wrapped class takes: reading it, binding arguments to it, calling it with them."""

import functools
import inspect
import itertools
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchmetrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ArgumentError
from replayml.core.signatures import bind, call_arguments, missing, signature_of

NAMES = ("a", "b", "c", "d", "e", "f")
NUMBER = itertools.count()


def define(source: str, **names: Any) -> dict[str, Any]:
    """Run a source that `inspect` and `linecache` can find again, as they find that of a notebook cell."""
    file = f"<signature test {next(NUMBER)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), names)
    return names


@st.composite
def headers(draw: st.DrawFn, names: tuple[str, ...] = NAMES, variadic: tuple[str, str] = ("args", "kwargs")) -> str:
    """The text of a random parameter list, without self."""
    listed = draw(st.lists(st.sampled_from(names), unique=True, max_size=5))
    bounds = sorted(draw(st.tuples(*[st.integers(0, len(listed))] * 2)))
    first_default = draw(st.integers(0, bounds[1]))
    parts = [name if i < first_default else f"{name}='default {name}'" for i, name in enumerate(listed[: bounds[1]])]
    if bounds[0]:
        parts.insert(bounds[0], "/")
    keyword_only = [f"{n}='default {n}'" if draw(st.booleans()) else n for n in listed[bounds[1] :]]
    if draw(st.booleans()):
        parts.append(f"*{variadic[0]}")
    elif keyword_only:
        parts.append("*")
    parts += keyword_only
    if draw(st.booleans()):
        parts.append(f"**{variadic[1]}")
    return ", ".join(parts)


CALLS = st.tuples(
    st.lists(st.integers(), max_size=7).map(tuple),
    st.dictionaries(st.sampled_from((*NAMES, "unknown")), st.integers(), max_size=5),
)


def made_as(form: str, header: str) -> Any:
    """A callable with this parameter list whose result is what it received."""
    sep = ", " if header else ""
    if form == "function":
        return define(f"def made({header}):\n    return locals()\n")["made"]
    if form == "init":
        return define(f"class Made:\n    def __init__(self{sep}{header}):\n        vars(self).update(locals())\n")[
            "Made"
        ]
    body = "return object.__new__(type('Got', (), locals()))"
    return define(f"class Made:\n    def __new__(cls{sep}{header}):\n        {body}\n")["Made"]


def received(result: Any) -> dict[str, Any]:
    """What a callable of `made_as` received."""
    found = result if isinstance(result, dict) else vars(result) or vars(type(result))
    return {name: value for name, value in found.items() if name in (*NAMES, "args", "kwargs", "rest", "others")}


def call(target: Callable[..., Any], named: dict[str, Any], surplus: tuple[Any, ...]) -> Any:
    """Call a callable with bound arguments."""
    args, kwargs = call_arguments(target, named, surplus)
    return target(*args, **kwargs)


def hidden_by_name(target: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Say whether a keyword for ``**kwargs`` has the name of a positional-only parameter."""
    signature = signature_of(target)
    return signature.accepts_kwargs and any(name in signature.positional_only for name in kwargs)


@settings(deadline=None)
@given(form=st.sampled_from(["function", "init", "new"]), header=headers(), given_call=CALLS)
def test_binding_then_calling_equals_calling(
    form: str, header: str, given_call: tuple[tuple[Any, ...], dict[str, Any]]
) -> None:
    """A callable receives the same values through bind and call_arguments as directly, and refuses the same calls."""
    target, (args, kwargs) = made_as(form, header), given_call
    assume(not hidden_by_name(target, kwargs))
    try:
        inspect.signature(target).bind_partial(*args, **kwargs)
    except TypeError:
        with pytest.raises(ArgumentError, match=r"It takes|Give it"):
            bind(target, args, kwargs)
        return
    named, surplus = bind(target, args, kwargs)
    if missing(target, named):
        with pytest.raises(TypeError, match=r"missing|needs a value"):
            call(target, named, surplus)
        return
    assert received(call(target, named, surplus)) == received(target(*args, **kwargs))


@settings(deadline=None)
@given(header=headers(), given_call=CALLS)
def test_missing_lists_what_python_misses(header: str, given_call: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """Nothing is missing exactly where a call that is legal so far is a whole one."""
    target, (args, kwargs) = made_as("function", header), given_call
    assume(not hidden_by_name(target, kwargs))
    try:
        inspect.signature(target).bind_partial(*args, **kwargs)
    except TypeError:
        return
    try:
        inspect.signature(target).bind(*args, **kwargs)
        whole = True
    except TypeError:
        whole = False
    assert (missing(target, bind(target, args, kwargs)[0]) == []) is whole


FORWARDS = st.tuples(
    st.sampled_from([(), ("1",), ("1", "2")]),
    st.booleans(),
    st.dictionaries(st.sampled_from(NAMES[:4]), st.just("3"), max_size=1),
    st.booleans(),
)


@settings(deadline=None)
@given(
    base=headers(NAMES[:4]),
    own=headers(NAMES[2:], ("rest", "others")),
    forward=FORWARDS,
    given_call=CALLS,
)
def test_following_super_refuses_nothing_legal(
    base: str,
    own: str,
    forward: tuple[tuple[str, ...], bool, dict[str, str], bool],
    given_call: tuple[tuple[Any, ...], dict[str, Any]],
) -> None:
    """Where an __init__ hands its arguments on, every call that works works through bind, with equal values."""
    leading, by_position, keywords, by_keyword = forward
    given_on = [*leading, *(["*rest"] if by_position and "*rest" in own else [])]
    given_on += [f"{name}={value}" for name, value in keywords.items()]
    given_on += ["**others"] if by_keyword and "**others" in own else []
    source = "\n".join(
        [
            "class Base:",
            f"    def __init__(self{', ' if base else ''}{base}):",
            "        vars(self).update({'base ' + k: v for k, v in locals().items() if k != 'self'})",
            "class Made(Base):",
            f"    def __init__(self{', ' if own else ''}{own}):",
            f"        super().__init__({', '.join(given_on)})",
            *[f"        self.{name} = {name}" for name in signature_of(made_as("function", own)).names],
            "",
        ]
    )
    made, (args, kwargs) = define(source)["Made"], given_call
    assume(not hidden_by_name(made, kwargs))
    try:
        directly = vars(made(*args, **kwargs))
    except TypeError:
        return
    named, surplus = bind(made, args, kwargs)
    assert missing(made, named) == []
    assert vars(call(made, named, surplus)) == directly


def test_subclass_that_hands_all_on_takes_what_its_base_takes() -> None:
    """A subclass of a layer with (*args, **kwargs) is configurable by the names of the layer and its own."""

    class Scaled(nn.Linear):
        def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.scale = scale

    class Wide(Scaled):
        def __init__(self, width: int, **kwargs: Any) -> None:
            super().__init__(width, 2 * width, **kwargs)

    assert signature_of(Scaled).positional == signature_of(nn.Linear).positional
    assert signature_of(Scaled).names == (*signature_of(nn.Linear).names, "scale")
    assert signature_of(Wide).names == ("width", "bias", "device", "dtype", "scale")
    assert signature_of(Wide).positional == ("width",)
    with pytest.raises(ArgumentError, match=r"Scaled takes no 'sale'\. Did you mean 'scale'\?"):
        bind(Scaled, (3, 4), {"sale": 2.0})


def test_super_follows_the_order_of_the_subclass() -> None:
    """A mixin that hands its arguments on takes what stands behind it in the class at hand."""

    class Mixin:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    class Left(Mixin, nn.Linear):
        pass

    class Right(Mixin, nn.Conv1d):
        pass

    assert signature_of(Left).names == signature_of(nn.Linear).names
    assert signature_of(Right).names == signature_of(nn.Conv1d).names
    assert signature_of(Mixin).names == ()
    assert not signature_of(Mixin).accepts_kwargs


class Changes(nn.Linear):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("bias", False)
        super().__init__(*args, **kwargs)


class Chooses(nn.Linear):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args:
            super().__init__(3, 4)
            return
        super().__init__(*args, **kwargs)


class Wrapped(nn.Linear):
    def _init(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    __init__ = functools.partialmethod(_init)


@pytest.mark.parametrize("cls", [Changes, Chooses, Wrapped])
def test_what_cannot_be_followed_accepts_anything(cls: type) -> None:
    """An __init__ that does something else with its variadic arguments is taken to accept anything."""
    signature = signature_of(cls)
    assert (signature.names, signature.accepts_args, signature.accepts_kwargs) == ((), True, True)
    assert bind(cls, (3,), {"unheard_of": 4}) == ({"unheard_of": 4}, (3,))


FORWARDING = """
class Base:
    def __init__(self, size): ...
class Made(Base):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
"""


def test_an_init_without_its_own_source_accepts_anything() -> None:
    """Where the source is missing, or no longer the one that was compiled, nothing is concluded from it."""
    assert signature_of(define(FORWARDING)["Made"]).names == ("size",)
    names: dict[str, Any] = {}
    exec(FORWARDING, names)
    assert signature_of(names["Made"]).names == ()
    for edited in ("\n\n" + FORWARDING, FORWARDING.replace("*args", "*rest"), FORWARDING.replace("(*", "(((*")):
        made = define(FORWARDING)["Made"]
        file = made.__init__.__code__.co_filename
        linecache.cache[file] = (len(edited), None, edited.splitlines(keepends=True), file)
        assert signature_of(made).names == ()
        assert bind(made, (3,), {"size": 4}) == ({"size": 4}, (3,))


def torch_like_classes() -> list[type]:
    """Every public class of torch.nn, torch.optim, its schedulers and torchmetrics."""
    modules = (nn, torch.optim, torch.optim.lr_scheduler, torchmetrics)
    public = [value for module in modules for name, value in vars(module).items() if not name.startswith("_")]
    return sorted(
        {value for value in public if isinstance(value, type)}, key=lambda cls: (cls.__module__, cls.__name__)
    )


@pytest.mark.parametrize("cls", torch_like_classes(), ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")
def test_reads_every_class_of_torch(cls: type) -> None:
    """Every torch class is read, with the parameters that Python knows and those that it hands on."""
    signature = signature_of(cls)
    assert set(signature.positional) | signature.keywords == set(signature.names)
    assert set(signature.names) >= signature.required
    try:
        listed = inspect.signature(cls).parameters.values()
    except ValueError:
        assert (signature.names, signature.accepts_args, signature.accepts_kwargs) == ((), True, True)
        return
    named = tuple(parameter.name for parameter in listed if parameter.kind not in (2, 4))
    assert set(signature.names) >= set(named)
    if named and not signature.accepts_kwargs:
        assert signature.names == named


@pytest.mark.parametrize(
    "cls", [nn.Sigmoid, nn.Tanh, nn.Softsign, nn.LogSigmoid, nn.Softmax2d, nn.Tanhshrink, nn.Module]
)
def test_layers_without_arguments_refuse_them(cls: type) -> None:
    """A layer that inherits the catch-all constructor of nn.Module takes no arguments, as torch does at run time."""
    cls()
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        cls(3)
    with pytest.raises(
        ArgumentError, match=r"takes at most 0 .* got 1; the first one too many is 3\. It takes no argu"
    ):
        bind(cls, (3,), {})
    with pytest.raises(ArgumentError, match=r"takes no 'dim'\. It takes no arguments\."):
        bind(cls, (), {"dim": 3})


def test_cooperative_module_takes_what_stands_behind_it() -> None:
    """A class that asks nn.Module to call super().__init__ takes the arguments of its other base."""

    class Sized:
        def __init__(self, size: int) -> None:
            self.size = size

    class Both(nn.Module, Sized):
        call_super_init = True

    assert Both(size=3).size == 3
    assert signature_of(Both).names == ("size",)


def test_recurrent_layers_show_their_parameters() -> None:
    """RNN, LSTM and GRU take what torch documents for them, and a call by name makes the same layer."""
    common = ("input_size", "hidden_size", "num_layers")
    rest = ("bias", "batch_first", "dropout", "bidirectional")
    assert signature_of(nn.RNN).positional == (*common, "nonlinearity", *rest)
    assert signature_of(nn.GRU).positional == (*common, *rest)
    assert signature_of(nn.LSTM).positional == (*common, *rest, "proj_size", "device", "dtype")
    assert signature_of(nn.RNN).required == {"input_size", "hidden_size"}
    for cls, arguments in ((nn.RNN, (3, 4, 2, "relu", False)), (nn.GRU, (3, 4, 2, False)), (nn.LSTM, (3, 4, 2, False))):
        args, kwargs = call_arguments(cls, *bind(cls, arguments, {"bidirectional": True}))
        assert args == ()
        assert repr(cls(**kwargs)) == repr(cls(*arguments, bidirectional=True))
    with pytest.raises(ArgumentError, match="GRU takes no 'proj_size'"):
        bind(nn.GRU, (3, 4), {"proj_size": 2})


def test_subclass_of_a_recurrent_layer_takes_the_same() -> None:
    """A subclass of a recurrent layer without a constructor of its own takes what the layer takes."""

    class Memory(nn.LSTM):
        pass

    assert signature_of(Memory).names == signature_of(nn.LSTM).names


def test_sequential_takes_any_number() -> None:
    """Positional arguments for *args are surplus and come back by position."""
    layers = (nn.ReLU(), nn.Tanh())
    assert bind(nn.Sequential, layers, {}) == ({}, layers)
    assert call_arguments(nn.Sequential, {}, layers) == (layers, {})
    with pytest.raises(ArgumentError, match=r"Sequential takes no 'first'\. It takes: \*args"):
        bind(nn.Sequential, (), {"first": layers[0]})


def test_deprecated_class_shows_its_constructor() -> None:
    """A variadic __new__ put before a class does not hide its __init__."""

    class Old:
        def __new__(cls, *args: Any, **kwargs: Any) -> "Old":
            return super().__new__(cls)

        def __init__(self, size: int) -> None:
            self.size = size

    assert signature_of(Old).names == ("size",)
    assert signature_of(nn.NLLLoss2d).names == ("weight", "size_average", "ignore_index", "reduce", "reduction")


def test_the_more_derived_of_new_and_init_decides() -> None:
    """Where __new__ and __init__ both name parameters, those of the subclass count."""

    class Created:
        def __new__(cls, size: int, *rest: Any) -> "Created":
            return super().__new__(cls)

    class Initialised(Created):
        def __init__(self, size: int, name: str) -> None:
            self.name = name

    class Recreated(Initialised):
        def __new__(cls, width: int) -> Any:
            return super().__new__(cls, width)

    assert signature_of(Created).names == ("size",)
    assert signature_of(Initialised).names == ("size", "name")
    assert signature_of(Recreated).names == ("width",)


def test_declared_signature_counts_until_a_subclass_has_its_own() -> None:
    """A __signature__ is believed for the class that declares it, not for a subclass with its own constructor."""

    class Meta(type):
        @property
        def __signature__(cls) -> inspect.Signature:
            return inspect.signature(lambda shown: shown)

    class FromMeta(metaclass=Meta):
        def __init__(self, hidden: int) -> None: ...

    class Declares:
        __signature__ = inspect.signature(lambda shown: shown)

        def __init__(self, hidden: int) -> None: ...

    class Inherits(Declares): ...

    class Redefines(Declares):
        def __init__(self, own: int) -> None: ...

    assert signature_of(FromMeta).names == ("shown",)
    assert signature_of(Declares).names == ("shown",)
    assert signature_of(Inherits).names == ("shown",)
    assert signature_of(Redefines).names == ("own",)


def test_metaclass_call_counts_where_it_names_parameters() -> None:
    """A metaclass whose __call__ names parameters decides; one that passes everything through does not."""

    class Strict(type):
        def __call__(cls, size: int) -> Any:
            return super().__call__()

    class Through(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    class MadeByStrict(metaclass=Strict): ...

    class MadeByThrough(metaclass=Through):
        def __init__(self, width: int) -> None: ...

    assert signature_of(MadeByStrict).names == ("size",)
    assert signature_of(MadeByThrough).names == ("width",)


@pytest.mark.parametrize("cls", [dict, int, list, torch.Tensor, Exception, max, torch.Generator])
def test_what_is_written_in_c_without_signature_accepts_anything(cls: Callable[..., Any]) -> None:
    """A callable that does not tell what it takes is not restricted."""
    assert bind(cls, (1, 2), {"key": 3}) == ({"key": 3}, (1, 2))
    assert call_arguments(cls, {"key": 3}, (1, 2)) == ((1, 2), {"key": 3})


def test_callables_that_are_no_classes() -> None:
    """Functions, partials and unhashable callables are read like classes."""

    @dataclass
    class Equal:
        scale: int

        def __call__(self, value: int) -> int:
            return self.scale * value

    half = functools.partial(nn.Linear, 3, bias=False)
    assert bind(half, (4,), {}) == ({"out_features": 4}, ())
    assert call_arguments(half, {"out_features": 4}) == ((), {"out_features": 4})
    assert signature_of(nn.functional.relu).names == ("input", "inplace")
    assert signature_of(Equal(2)).names == ("value",)
    with pytest.raises(ArgumentError, match=r"the partial takes no 'in_feature'\. .* It takes: out_features, bias"):
        bind(half, (), {"in_feature": 3})


def test_unknown_keyword_is_named_with_the_nearest() -> None:
    """An unknown keyword is refused with the nearest name and all names."""
    with pytest.raises(
        ArgumentError, match=r"Conv2d takes no 'kernal_size'\. Did you mean 'kernel_size'\? It takes: in_ch"
    ):
        bind(nn.Conv2d, (3, 8), {"kernal_size": 3})
    with pytest.raises(ArgumentError, match=r"Linear takes no 'padding'\. It takes: in_features"):
        call_arguments(nn.Linear, {"in_features": 3, "padding": 1})


def test_too_many_or_double_arguments_are_named() -> None:
    """A surplus argument and one given twice are shown with their values."""
    with pytest.raises(ArgumentError, match=r"Dropout takes at most 2 .* got 3; the first one too many is 'x'"):
        bind(nn.Dropout, (0.5, True, "x"), {})
    with pytest.raises(
        ArgumentError, match=r"Linear got 'out_features' twice: 4 as positional argument 2 and 5 by keyword"
    ):
        bind(nn.Linear, (3, 4), {"out_features": 5})
    with pytest.raises(ArgumentError, match=r"Linear takes no further positional arguments and got \(9,\)"):
        call_arguments(nn.Linear, {}, (9,))


def by_position(first: int, second: int = 2, /, third: int = 3, *rest: int, **others: int) -> tuple[Any, ...]:
    """A function with a parameter of each kind."""
    return first, second, third, rest, others


def test_positional_only_parameters_go_by_position() -> None:
    """A positional-only parameter is refused by keyword, and defaults fill the places before one that is given."""
    with pytest.raises(
        ArgumentError, match=r"takes 'first' by position only, not by keyword\. Give it as positional argument 1"
    ):
        bind(by_position, (), {"first": 1})
    with pytest.raises(ArgumentError, match=r"takes 'second' by position only"):
        bind(by_position, (1,), {"second": 3})
    assert call_arguments(by_position, {"first": 1, "third": 5}) == ((1,), {"third": 5})
    assert call_arguments(by_position, {"first": 1}, (7,)) == ((1, 2, 3, 7), {})
    with pytest.raises(
        ArgumentError, match=r"by_position needs a value for 'first': it has no default.* Set 'first' first"
    ):
        call_arguments(by_position, {"second": 1})


def test_absent_arguments_are_missing_and_none_is_a_value() -> None:
    """Only a required parameter without argument is missing; None counts as an argument."""
    assert missing(nn.Linear, {}) == ["in_features", "out_features"]
    assert missing(nn.Linear, {"in_features": None}) == ["out_features"]
    assert missing(nn.ReLU, {}) == []


def test_the_record_cannot_be_changed() -> None:
    """What is shared between all layers of a class is immutable."""
    signature = signature_of(nn.Linear)
    assert signature_of(nn.Linear) is signature
    with pytest.raises(TypeError, match="does not support item assignment"):
        signature.parameters["x"] = None  # type: ignore[index]
