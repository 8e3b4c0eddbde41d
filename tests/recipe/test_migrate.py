"""Classes that changed since a recipe was written: other names, other versions, other arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml.core.errors import ArgumentError, RecipeError
from replayml.core.tape import CallRecord, TapeEntry
from replayml.recipe import Codec, Recipe
from replayml.recipe.migrate import Renames
from tests.recipe.samples import MONEY, TRUST, Mode, Money, Narrow, Net, Options, Pair, helper

HERE = "tests.recipe.samples"


def moved(recipe: Recipe, old: str = HERE, new: str = "old.pkg") -> Recipe:
    """Return a recipe as a program would have written it in which a module had another name."""
    return Recipe.from_json(recipe.to_json().replace(old, new))


# Names --------------------------------------------------------------------------------------------------------------


def test_a_recipe_of_a_package_that_moved_is_read_with_rename() -> None:
    """Every name of a module that moved is found under its new name: classes, functions, enums, dataclasses, codecs."""
    record = CallRecord(
        Net, (Mode.FAST, helper, Options(0.5), Pair(1, 2), Money(3), Net), {}, [TapeEntry((), "adjust")]
    )
    recipe = Recipe.of(record, codecs=[MONEY])
    old = moved(recipe)
    with pytest.raises(RecipeError, match=r"untrusted-name.*old\.pkg\.Net"):
        old.record(TRUST)
    read = old.record(TRUST, rename={"old.pkg": HERE})
    assert Recipe.of(read, codecs=[MONEY]) == recipe


def test_one_class_is_renamed_by_its_whole_name() -> None:
    """A whole name renames one class; the longest name that fits counts, and others stay."""
    text = Recipe.of(CallRecord(Net, (CallRecord(Narrow, (1,)),))).to_json()
    old = Recipe.from_json(text.replace(f"{HERE}.Narrow", f"{HERE}.Slim").replace(f'"{HERE}.Net"', '"far.away.Net"'))
    record = old.record(rename={f"{HERE}.Slim": f"{HERE}.Narrow", "far.away": HERE, "far": "nowhere"})
    assert (record.cls, record.args[0].cls) == (Net, Narrow)


def test_a_name_that_looks_alike_is_not_renamed() -> None:
    """A prefix ends at a dot, and a new name is not renamed again."""
    renames = Renames({"old": "older", "older": "oldest"})
    assert [renames.of(name) for name in ("old", "old.A", "older.A", "olden.A", "x.old.A")] == [
        "older",
        "older.A",
        "oldest.A",
        "olden.A",
        "x.old.A",
    ]


@given(st.dictionaries(st.text("ab.", min_size=1, max_size=4), st.text("xy", min_size=1, max_size=3), max_size=3))
def test_a_rename_changes_the_beginning_of_a_name_only(rename: dict[str, str]) -> None:
    """What follows the old name is kept, letter by letter; a name that no old one begins stays as it is."""
    rename = {old: new for old, new in rename.items() if not old.endswith(".")}
    for name in ("a", "a.b", "ab.a", "b.b.b"):
        renamed = Renames(rename).of(name)
        fits = [old for old in rename if name == old or name.startswith(f"{old}.")]
        longest = max(fits, key=len, default=None)
        assert renamed == (name if longest is None else rename[longest] + name[len(longest) :])


def test_what_a_new_name_leads_to_must_be_trusted_like_any_other() -> None:
    """A rename leads to no function of a module, and to nothing that the program did not import or trust."""
    old = moved(Recipe.of(CallRecord(Net, (helper,))))
    with pytest.raises(RecipeError, match=r"untrusted-name.*os\.system"):
        old.record(TRUST, rename={"old.pkg": HERE, "old.pkg.helper": "os.system"})
    with pytest.raises(RecipeError, match="wrong-kind"):
        old.record(TRUST, rename={"old.pkg": HERE, "old.pkg.helper": "torch.nn.ReLU"})


@pytest.mark.parametrize("rename", [[("a", "b")], {"a": 1}, {1: "a"}, {"": "a"}, {"a.": "b."}, "a=b", {"a": ""}])
def test_rename_takes_names(rename: Any) -> None:
    """Anything else than a dict of names is an error that shows what belongs there."""
    with pytest.raises(ArgumentError, match=r'rename= takes a dict of old names and new ones, such as \{"old'):
        Recipe.of(CallRecord(Net)).record(rename=rename)


def test_a_class_that_moved_is_suggested() -> None:
    """The refusal of a name whose last part is known under another module shows the rename to hand in."""
    text = Recipe.of(CallRecord(nn.ReLU)).to_json().replace("torch.nn.ReLU", "torch.n.ReLU")
    with pytest.raises(RecipeError, match=r"If it has moved there: rename=\{'torch\.n\.ReLU': 'torch\.nn\.ReLU'\}"):
        Recipe.from_json(text).record()


def test_a_class_of_a_script_is_told_to_be_one() -> None:
    """The refusal of a class that stood in a script says so, with the rename that loads it; what it says works."""
    text = Recipe.of(CallRecord(Narrow, (1,))).to_json().replace(HERE, "__main__")
    with pytest.raises(RecipeError, match=r"'__main__\.Narrow' is not known .* It stood in a script") as caught:
        Recipe.from_json(text).record()
    assert "rename={'__main__.Narrow': 'MODULE.Narrow'}." in str(caught.value)
    assert "Move it to a module that both programs import, and save again" in str(caught.value)
    assert Recipe.from_json(text).record(rename={"__main__.Narrow": f"{HERE}.Narrow"}).cls is Narrow
    assert Recipe.from_json(text).record(rename={"__main__": HERE}).cls is Narrow


def test_a_model_of_a_moved_package_works() -> None:
    """`Recipe.model` takes the same, and the model is as before."""
    recipe = replayml.MultiLayerPerceptron(4, [8], 2).configure(out_features=3).recipe()
    old = moved(recipe, "replayml.blocks.components", "deeper.blocks")
    model = old.model(rename={"deeper.blocks": "replayml.blocks.components"})
    assert model.build()(torch.zeros(1, 4)).shape == (1, 3)


# Versions of classes ------------------------------------------------------------------------------------------------


class Grown(replayml.Module):
    """Version 0 took ``width``, version 1 ``size``, version 2 takes ``hidden`` and the class of the activation."""

    __recipe_version__ = 2

    def __init__(self, hidden: int, activation: Any = nn.ReLU) -> None:
        super().__init__()
        self.hidden = replayml.Layer(nn.Linear, 4, hidden)
        self.activation = activation if isinstance(activation, nn.Module) else replayml.Layer(activation)

    @classmethod
    def migrate_recipe(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        """Return arguments of this version."""
        kwargs = data["kwargs"]
        if version < 1 and "width" in kwargs:
            kwargs["size"] = kwargs.pop("width")
        if "size" in kwargs:
            kwargs["hidden"] = kwargs.pop("size")
        if kwargs.get("activation") == "gelu":
            kwargs["activation"] = replayml.Layer(nn.GELU)
        return data


GROWN = f"{Grown.__module__}.Grown"


def document(args: Any = (), kwargs: Any = None, name: str = GROWN, **more: Any) -> str:
    """Return a recipe of one call."""
    call = {
        "$call": name,
        "args": args,
        "kwargs": kwargs or {},
        **{key: part for key, part in more.items() if part != []},
    }
    return json.dumps({"format": "replayml.recipe", "version": 2, "packages": {}, "model": call})


def test_the_version_of_a_class_stands_beside_its_call() -> None:
    """A class with a version is written with it; one without, or with 0, is written as before."""
    node = json.loads(Grown(3).recipe().to_json())["model"]
    assert node["version"] == 2
    assert "version" not in json.loads(Recipe.of(CallRecord(Net)).to_json())["model"]
    assert Recipe.of(Recipe.from_json(document([3], version=2)).record()) == Grown(3).recipe()


@pytest.mark.parametrize(
    ("more", "kwargs"),
    [({}, {"width": 5}), ({}, {"size": 5}), ({"version": 1}, {"size": 5}), ({"version": 2}, {"hidden": 5})],
)
def test_old_arguments_are_changed_by_the_class(more: dict[str, Any], kwargs: dict[str, int]) -> None:
    """Each old version of a class gives the model of today."""
    recipe = Recipe.from_json(document(kwargs=kwargs, **more))
    assert recipe.record().kwargs == {"hidden": 5}
    assert recipe.model().hidden.out_features == 5


def test_a_migration_may_make_modules() -> None:
    """A module that `migrate_recipe` makes is recorded like one that stood in the recipe."""
    record = Recipe.from_json(document(kwargs={"width": 5, "activation": "gelu"})).record()
    assert isinstance(record.kwargs["activation"], CallRecord)
    model = Recipe.from_json(document(kwargs={"width": 5, "activation": "gelu"})).model()
    assert isinstance(model.build().activation, nn.GELU)


def test_a_migration_gets_plain_values_and_records() -> None:
    """Arguments come as they were given: positional in a list, a class as a class, a module as its record."""
    seen: list[Any] = []

    class Watching(Grown):
        @classmethod
        def migrate_recipe(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
            seen.append((data, version))
            return {"args": [7], "kwargs": {}}

    name = f"{Watching.__module__}.{Watching.__qualname__}"
    layer = {"$call": "torch.nn.ReLU", "args": [], "kwargs": {}}
    record = Recipe.from_json(document([1, layer], {"a": {"$class": "torch.nn.ReLU"}}, name, version=1)).record()
    ((data, version),) = seen
    assert (data["args"][0], data["args"][1].cls, data["kwargs"], version) == (1, nn.ReLU, {"a": nn.ReLU}, 1)
    assert (record.args, record.kwargs) == ((7,), {})


def test_a_recipe_of_a_newer_class_is_refused() -> None:
    """What a later version of a class wrote is never guessed at."""
    with pytest.raises(RecipeError, match=r"newer-version.*version 3 of .*Grown; this program has version 2"):
        Recipe.from_json(document([3], version=3)).record()
    with pytest.raises(RecipeError, match=r"newer-version.*version 1 of .*Narrow; this program has version 0"):
        Recipe.from_json(document([3], name=f"{HERE}.Narrow", version=1)).record()


def test_a_class_without_a_way_is_refused() -> None:
    """A class that raised its version and has no `migrate_recipe`, or none that is a classmethod, says so."""

    class Stuck(Narrow):
        __recipe_version__ = 1

        def migrate_recipe(self, data: Any, version: int) -> Any:
            return data

    with pytest.raises(RecipeError, match=r"bad-version.*no way from one to the other.*classmethod migrate_recipe"):
        Recipe.from_json(document([1], name=f"{Stuck.__module__}.{Stuck.__qualname__}")).record()


@pytest.mark.parametrize("version", [True, -1, "1", 1.0, None])
def test_a_version_is_an_integer(version: Any) -> None:
    """A class with another kind of version is refused at saving, and so is its recipe at opening."""

    class Wrong(Narrow):
        __recipe_version__ = version

    with pytest.raises(RecipeError, match=r"bad-version.*__recipe_version__ of .*Wrong is an integer from 0"):
        Wrong(1).recipe()
    with pytest.raises(RecipeError, match="bad-version"):
        Recipe.from_json(document([1], name=f"{Wrong.__module__}.{Wrong.__qualname__}")).record()


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.5, None])
def test_the_version_in_a_file_is_an_integer_from_1(version: Any) -> None:
    """Another spelling is refused."""
    with pytest.raises(RecipeError, match=r"bad-value.*the version of a class is an integer from 1"):
        Recipe.from_json(document([1], version=version))


def test_no_argument_is_dropped() -> None:
    """What the class no longer takes is an error with the nearest name, after a migration as well as without one."""
    with pytest.raises(RecipeError, match=r"bad-argument.*Grown takes no 'hiden'. Did you mean 'hidden'\? It takes"):
        Recipe.from_json(document(kwargs={"hiden": 1}, version=2)).record()
    with pytest.raises(RecipeError, match=r"bad-argument.*Grown takes no 'hiden'. Did you mean 'hidden'\?"):
        Recipe.from_json(document(kwargs={"hidden": 1, "hiden": 1})).record()
    with pytest.raises(RecipeError, match=r"bad-argument.*cannot be called like this: missing a required argument"):
        Recipe.from_json(document()).record()


def results() -> Iterator[Any]:
    """Yield what is no result of a migration."""
    yield from (None, [], {}, {"args": []}, {"args": [], "kwargs": {}, "tape": []}, {"args": 1, "kwargs": {}})


@pytest.mark.parametrize("result", [*results()], ids=repr)
def test_a_migration_returns_arguments(result: Any) -> None:
    """Anything else than the two parts is refused."""

    class Odd(Narrow):
        __recipe_version__ = 1

        @classmethod
        def migrate_recipe(cls, data: Any, version: int) -> Any:
            return result

    with pytest.raises(RecipeError, match=r'bad-argument.*migrate_recipe returns \{"args": \[\.\.\.\], "kwargs"'):
        Recipe.from_json(document([1], name=f"{Odd.__module__}.{Odd.__qualname__}")).record()


def test_an_error_of_a_migration_keeps_its_type_and_gains_its_place() -> None:
    """The user's own error comes through, with a note that says which call it was."""

    class Broken(Narrow):
        __recipe_version__ = 1

        @classmethod
        def migrate_recipe(cls, data: Any, version: int) -> Any:
            raise LookupError("no such width")

    with pytest.raises(LookupError, match="no such width") as caught:
        Recipe.from_json(document([1], name=f"{Broken.__module__}.{Broken.__qualname__}")).record()
    assert "migrate_recipe changed the arguments of version 0 at model" in caught.value.__notes__[0]


def test_nothing_is_migrated_before_every_name_was_found() -> None:
    """A document with an untrusted name runs no code of a class."""
    ran: list[int] = []

    class Counting(Narrow):
        __recipe_version__ = 1

        @classmethod
        def migrate_recipe(cls, data: Any, version: int) -> Any:
            ran.append(version)
            return data

    name = f"{Counting.__module__}.{Counting.__qualname__}"
    with pytest.raises(RecipeError, match="untrusted-name"):
        Recipe.from_json(document([{"$class": "a.B"}], name=name)).record()
    assert not ran
    Recipe.from_json(document([1], name=name)).record()
    assert ran == [0]


def test_an_argument_that_a_wrapped_class_no_longer_takes_is_an_error() -> None:
    """What a `Layer` or a tape entry gives to a class that has changed is refused with the nearest name."""
    text = replayml.Layer(nn.Linear, 2, out_features=3).recipe().to_json()
    with pytest.raises(ArgumentError, match=r"Linear takes no 'out_feature'. Did you mean 'out_features'\?"):
        Recipe.from_json(text.replace("out_features", "out_feature")).model()
    text = replayml.Layer(nn.Linear, 2, 3).configure(out_features=4).recipe().to_json()
    with pytest.raises(replayml.ReplayError, match=r"Linear takes no 'out_feature'. Did you mean 'out_features'\?"):
        Recipe.from_json(text.replace("out_features", "out_feature")).model()


def test_a_codec_is_renamed_like_the_type_that_it_is_for() -> None:
    """A codec of a type that has moved is found by the new name of the type."""
    recipe = moved(Recipe.of(CallRecord(nn.Dropout, (Money(2),)), codecs=[MONEY]))
    other = Codec(Money, MONEY.encode, lambda data: Money(data["cents"] * 10))
    assert recipe.record([other], rename={"old.pkg": HERE}).args[0].cents == 20


# What was configured ------------------------------------------------------------------------------------------------


class Holder(replayml.Module):
    """Makes modules that have changed, under a name, in a list, and as what a layer wraps."""

    def __init__(self, given: Any = None) -> None:
        super().__init__()
        self.inner = Grown(3)
        self.items = replayml.LayerList(Grown(3), Grown(3))
        self.wrapped = replayml.Layer(Scale)
        self.given = Grown(3) if given is None else given


class Scale(nn.Module):
    """A torch layer of the user's, which took ``gain`` in version 0."""

    __recipe_version__ = 1

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    @classmethod
    def migrate_recipe(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        """Return arguments of this version."""
        data["kwargs"]["factor"] = data["kwargs"].pop("gain")
        return data


def entry(*args: Any, tags: tuple[str, ...] = (), **kwargs: Any) -> dict[str, Any]:
    """Return a call of ``configure`` as a recipe holds it."""
    return {"$entry": "configure", "tags": [*tags], "args": [*args], "kwargs": kwargs}


@pytest.mark.parametrize("call", [entry(width=5), entry("width", 5), entry(size=5), entry("size", 5)])
def test_what_was_configured_is_changed_like_arguments(call: dict[str, Any]) -> None:
    """An old name that `configure` got, as a keyword or as the name and the value, is changed by the class."""
    old = "size" if "size" in str(call) else "width"
    for args, kwargs in (([3], {}), ([], {old: 3})):
        recipe = Recipe.from_json(document(args, kwargs, tape=[call]))
        assert recipe.record().tape == [TapeEntry((), "configure", (), {"hidden": 5})]
        model = recipe.model()
        assert model.hidden.out_features == 5
        assert model.recipe() == Grown(*(args or ()), **({} if args else {"hidden": 3})).configure(hidden=5).recipe()


def test_a_call_that_nothing_changes_stays_as_it_is() -> None:
    """Values, names of children, paths and calls of other methods are not touched, and objects stay the same."""
    tape = [entry("activation", {"$class": "torch.nn.GELU"}), entry("hidden", 5), entry("hidden", bias=False)]
    recipe = Recipe.from_json(document([3], version=1, tape=[*tape, {**tape[1], "$entry": "set"}]))
    assert [(made.method, made.args, made.kwargs) for made in recipe.record().tape] == [
        ("configure", ("activation", nn.GELU), {}),
        ("configure", ("hidden", 5), {}),
        ("configure", ("hidden",), {"bias": False}),
        ("set", ("hidden", 5), {}),
    ]


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (entry("inner", width=5), "inner"),
        (entry("inner", "size", 5), "inner"),
        (entry(width=5, tags=("inner",)), "inner"),
        (entry("width", 5, tags=("inner",)), "inner"),
        (entry(width=5, tags=("items", "1")), "items.1"),
        (entry("items", 1, width=5), "items.1"),
        (entry("items", -1, "width", 5), "items.1"),
        (entry("items", [1], size=5), "items.1"),
        (entry("items", {"$slice": [1, None, None]}, size=5), "items.1"),
        (entry("items", width=5), "items.0"),
        (entry(1, width=5, tags=("items",)), "items.1"),
        (entry("width", 5, tags=("given",)), "given"),
    ],
    ids=str,
)
def test_what_was_configured_below_is_changed_by_the_class_that_stands_there(call: dict[str, Any], path: str) -> None:
    """A module that an ``__init__`` makes is configured by its old names too, whichever way the path was given."""
    model = Recipe.from_json(document(name=f"{Holder.__module__}.Holder", tape=[call])).model()
    widths = {name: module.hidden.out_features for name, module in model.named_modules() if type(module) is Grown}
    assert widths[path] == 5
    assert sorted(widths.values()) == ([3, 3, 3, 5] if path != "items.0" else [3, 3, 5, 5])
    again = Recipe.from_json(model.recipe().to_json())
    assert not any(f'"{old}"' in again.to_json() for old in ("width", "size"))
    assert again.model().recipe() == model.recipe()


def test_what_a_layer_wraps_is_changed_too() -> None:
    """A class of the user's in a `Layer` gets its old arguments: those of the constructor, and those configured."""
    name, layer = "replayml.layers.layer.Layer", {"$class": f"{Scale.__module__}.Scale"}
    for args, kwargs, tape in (
        ([layer], {"gain": 2.0}, []),
        ([layer], {}, [entry(gain=2.0)]),
        ([layer], {"factor": 1.0}, [entry("gain", 2.0)]),
        ([{"$class": "torch.nn.ReLU"}], {}, [entry(layer, gain=2.0)]),
    ):
        assert Recipe.from_json(document(args, kwargs, name, tape=tape)).model(trust=[Scale]).build().factor == 2
    held = document(name=f"{Holder.__module__}.Holder", tape=[entry("wrapped", gain=2.0)])
    assert Recipe.from_json(held).model().wrapped.factor == 2


def test_an_old_name_that_no_version_knows_is_an_error() -> None:
    """What the class has no way for is refused when the tape is replayed, with the nearest name."""
    for call in (entry(hiden=5), entry("inner", hiden=5)):
        name = GROWN if not call["args"] else f"{Holder.__module__}.Holder"
        with pytest.raises(replayml.ReplayError, match=r"tape entry 0.*no setting 'hiden'. Did you mean 'hidden'\?"):
            Recipe.from_json(document([3] if name == GROWN else [], name=name, tape=[call])).model()


class Reduced(replayml.Module):
    """Version 0 took a rate and a flag, which is the activation now, and something that is of no use any more."""

    __recipe_version__ = 1

    def __init__(self, activation: Any = nn.Tanh, bias: bool = True, sizes: Any = ()) -> None:
        super().__init__()
        self.act = replayml.Layer(activation)
        self.line = replayml.Layer(nn.Linear, 2, 2, bias=bias)
        self.sizes = sizes

    @classmethod
    def migrate_recipe(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        """Return arguments of this version; without a flag there was no bias."""
        kwargs = data["kwargs"]
        kwargs.pop("rate", None)
        kwargs.setdefault("bias", False)
        if kwargs.pop("relu", False):
            kwargs["activation"] = nn.ReLU
        if "sizes" in kwargs:
            kwargs["sizes"].append(0)
        return data


REDUCED = f"{Reduced.__module__}.Reduced"


@given(
    st.lists(
        st.tuples(st.sampled_from(["relu", "bias", "rate"]), st.booleans()) | st.just(("act", nn.ELU)), max_size=6
    ),
    st.dictionaries(st.sampled_from(["relu", "bias", "rate"]), st.booleans()),
)
def test_calls_one_by_one_give_what_they_give_at_once(calls: list[tuple[str, Any]], given: dict[str, bool]) -> None:
    """For any old calls: what is in force is what the class makes of all that was in force in the old version."""
    is_class = {"act": {"$class": "torch.nn.ELU"}}
    tape = [entry(**{name: is_class.get(name, value)}) for name, value in calls]
    model = Recipe.from_json(document((), given, REDUCED, tape=tape)).model()
    old = {**given, **{name: value for name, value in calls if name != "act"}}
    activation: type[nn.Module] = nn.ReLU if old.get("relu") else nn.Tanh
    if any(name == "act" for name, _ in calls):
        activation = nn.ELU
    assert (model.act.classtype, model.line.bias) == (activation, old.get("bias", False))


def test_a_call_that_is_of_no_use_any_more_is_left_out() -> None:
    """What the class takes away without a replacement is not on the tape of the model."""
    for call in (entry(rate=1), entry("rate", 1)):
        assert not Recipe.from_json(document(name=REDUCED, tape=[call, call])).model().tape
    model = Recipe.from_json(document(name=REDUCED, tape=[entry(rate=1, bias=True)])).model()
    assert model.line.bias
    assert [dict(made.kwargs) for made in model.tape] == [{"bias": True}]


def test_lists_are_changed_once() -> None:
    """A migration may change the lists that it gets, however often the class is asked."""
    recipe = Recipe.from_json(
        document((), {"sizes": [1]}, REDUCED, tape=[entry(bias=True), entry(sizes=[2]), entry(relu=True)])
    )
    record = recipe.record()
    assert record.kwargs["sizes"] == [1, 0]
    assert [dict(made.kwargs) for made in record.tape] == [{"bias": True}, {"sizes": [2, 0]}, {"activation": nn.ReLU}]


def test_an_argument_that_cannot_be_taken_back_is_refused() -> None:
    """A call after which the class would be without an argument that it needs is refused, with its place."""

    class Bare(Narrow):
        __recipe_version__ = 1

        @classmethod
        def migrate_recipe(cls, data: Any, version: int) -> Any:
            if data["kwargs"].pop("is_empty", False):
                del data["kwargs"]["width"]
            return data

    name = f"{Bare.__module__}.{Bare.__qualname__}"
    with pytest.raises(RecipeError, match=r"bad-argument\] at model\.tape\[0\].*leaves out 'width', which it needs"):
        Recipe.from_json(document((), {"width": 1}, name, tape=[entry(is_empty=True)])).record()


def test_an_error_of_a_migration_of_a_call_names_the_call() -> None:
    """The user's own error comes through, with a note that says which call on the tape it was."""

    class Picky(Narrow):
        __recipe_version__ = 1

        @classmethod
        def migrate_recipe(cls, data: Any, version: int) -> Any:
            if data["kwargs"].get("width", 1) < 0:
                raise ArithmeticError("negative")
            return data

    name = f"{Picky.__module__}.{Picky.__qualname__}"
    with pytest.raises(ArithmeticError, match="negative") as caught:
        Recipe.from_json(document([1], name=name, tape=[entry(width=-1)])).record()
    assert "version 0 at model.tape[0]" in caught.value.__notes__[0]
