"""Single values: what is written, what is refused at writing, and what each refusal says."""

from __future__ import annotations

import functools
import json
import math
from collections import OrderedDict, defaultdict
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from torch import nn

import replayml
from replayml.core.errors import RecipeError
from replayml.core.tape import CallRecord, TapeEntry
from replayml.recipe import Codec, Limits, Recipe
from replayml.recipe.values.tensors import DATA_LEAVES, little_endian
from tests.recipe.samples import (
    MONEY,
    TRUST,
    Access,
    Mode,
    Money,
    Net,
    Options,
    Pair,
    Point,
    Setup,
    assert_same,
    helper,
)


def written(value: Any) -> Any:
    """Return the node of a value."""
    return json.loads(Recipe.of(CallRecord(Net, (value,)), codecs=[MONEY]).to_json())["model"]["args"][0]


def again(value: Any) -> Any:
    """Return a value that was written and read."""
    return Recipe.of(CallRecord(Net, (value,)), codecs=[MONEY]).record(TRUST).args[0]


NODES: list[tuple[Any, Any]] = [
    (1, 1),
    (1.0, 1.0),
    (True, True),
    (-0.0, {"$float": "-0.0"}),
    (math.nan, {"$float": "nan"}),
    (1 - 2j, {"$complex": [1.0, -2.0]}),
    (b"\x00\xff", {"$bytes": "AP8="}),
    ((1, [2]), {"$tuple": [1, [2]]}),
    ({"a": 1, "b": 2}, {"a": 1, "b": 2}),
    ({"b": 1, "a": 2}, {"$dict": [["b", 1], ["a", 2]]}),
    ({"$call": 1}, {"$dict": [["$call", 1]]}),
    ({1: "a"}, {"$dict": [[1, "a"]]}),
    ({}, {}),
    (OrderedDict(a=1), {"$ordered": [["a", 1]]}),
    ({3, 1}, {"$set": [1, 3]}),
    (frozenset("ba"), {"$frozenset": ["a", "b"]}),
    (..., {"$ellipsis": None}),
    (slice(None, 2), {"$slice": [None, 2, None]}),
    (range(3), {"$range": [0, 3, 1]}),
    (torch.float16, {"$dtype": "float16"}),
    (torch.device("cuda", 3), {"$device": "cuda:3"}),
    (torch.Size([1, 2]), {"$size": [1, 2]}),
    (torch.channels_last, {"$memory_format": "channels_last"}),
    (torch.strided, {"$layout": "strided"}),
    (nn.GELU, {"$class": "torch.nn.GELU"}),
    (torch.optim.lr_scheduler.StepLR, {"$class": "torch.optim.lr_scheduler.StepLR"}),
    (replayml.Layer, {"$class": "replayml.layers.layer.Layer"}),
    (nn.functional.gelu, {"$function": "torch.nn.functional.gelu"}),
    (helper, {"$function": "tests.recipe.samples.helper"}),
    (Mode.SLOW, {"$enum": "tests.recipe.samples.Mode", "member": "SLOW"}),
    (Access.READ | Access.RUN, {"$enum": "tests.recipe.samples.Access", "member": ["READ", "RUN"]}),
    (Point(1, 2), {"$dataclass": "tests.recipe.samples.Point", "fields": {"x": 1, "y": 2}}),
    (Pair(1, 2), {"$namedtuple": "tests.recipe.samples.Pair", "items": [1, 2]}),
    (Money(5), {"$codec": "tests.recipe.samples.Money", "data": {"cents": 5}}),
]


@pytest.mark.parametrize(("value", "node"), NODES, ids=range(len(NODES)))
def test_a_value_is_written_in_its_one_form(value: Any, node: Any) -> None:
    """Each kind of value has the node that the format says, and is read back from it."""
    assert written(value) == node
    assert_same(again(value), value)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "meta", "xpu", "hpu", "xla", "mtia"])
def test_every_device_of_the_format_exists_in_torch(device: str) -> None:
    """The kinds of device that a recipe may hold are kinds that torch knows, present in the machine or not."""
    assert again(torch.device(device)) == torch.device(device)
    assert again(torch.device(device, 99)) == torch.device(device, 99)


# Tensors and arrays -------------------------------------------------------------------------------------------------

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (2, 3)], ids=str)
def test_a_small_tensor_comes_back_bit_by_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Dtype, shape and the bits of the values are kept, for tensors without elements and without dimensions too."""
    tensor = torch.rand(shape).mul(8).to(dtype)
    assert_same(again(tensor), tensor)


@pytest.mark.parametrize(
    "name", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64", "complex64", "complex128"]
)
def test_arrays_and_numpy_numbers_come_back_bit_by_bit(name: str) -> None:
    """NumPy arrays of the usual dtypes, and the numbers in them, are kept."""
    for array in (np.arange(6).reshape(2, 3).astype(name), np.zeros((0, 2), name), np.ones((), name)):
        assert_same(again(array), array)
        assert again(array).flags.writeable
    assert_same(again(np.ones(1, name)[0]), np.ones(1, name)[0])


def test_a_parameter_stays_a_parameter() -> None:
    """`nn.Parameter` and ``requires_grad`` are kept."""
    frozen = again(nn.Parameter(torch.ones(2), requires_grad=False))
    assert isinstance(frozen, nn.Parameter)
    assert not frozen.requires_grad
    assert again(torch.ones(1, requires_grad=True)).requires_grad


def test_views_and_strides_are_written_by_their_values() -> None:
    """A transposed or conjugated tensor, and a transposed array, come back as contiguous ones of equal values."""
    matrix = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(again(matrix.t()), matrix.t())
    assert torch.equal(again(torch.tensor([1j]).conj()), torch.tensor([-1j]))
    assert np.array_equal(again(np.arange(6).reshape(2, 3).T), np.arange(6).reshape(2, 3).T)


def test_tensors_are_real_inside_a_meta_device_context() -> None:
    """A tensor of a recipe that is read where new tensors are on the meta device holds its values all the same."""
    recipe = Recipe.of(CallRecord(Net, (torch.tensor([1.0, 2.0]), nn.Parameter(torch.ones(1)))))
    with torch.device("meta"):
        tensor, parameter = recipe.record().args
    assert tensor.tolist() == [1.0, 2.0]
    assert parameter.device.type == "cpu"


def test_numbers_are_little_endian_on_every_machine() -> None:
    """A big-endian machine swaps the bytes of each number when it writes and when it reads."""
    data = np.array([1, 256], ">u4").tobytes()
    assert little_endian(data, 4, order="big") == np.array([1, 256], "<u4").tobytes()
    assert little_endian(little_endian(data, 4, order="big"), 4, order="big") == data
    assert little_endian(data, 1, order="big") == data


def test_what_fits_is_written_and_one_byte_more_is_not() -> None:
    """Bytes, tensors and arrays of 48 KiB are written; larger ones are refused, and told what else there is."""
    for whole in (bytes(49152), torch.zeros(49152, dtype=torch.uint8), np.zeros(12288, "f4")):
        assert again(whole) is not None
    for large in (bytes(49153), torch.zeros(49153, dtype=torch.uint8), np.zeros(12289, "f4")):
        with pytest.raises(RecipeError, match=r"large-data.*model\.args\[0\].*__init__"):
            written(large)


def test_a_tensor_that_is_more_than_its_values_is_refused() -> None:
    """A gradient, a graph, hooks, attributes, another device or layout are not dropped but refused."""
    hooked: Any = torch.ones(1, requires_grad=True)
    with_grad, named = torch.ones(1, requires_grad=True), torch.ones(1)
    with_grad.grad = torch.ones(1)
    hooked.register_hook(lambda grad: grad)
    named.note = 1  # type: ignore[attr-defined]
    for tensor, reason in [
        (with_grad, "holds a gradient"),
        (hooked, "has hooks"),
        (named, r"attributes of its own \(note\)"),
        (torch.ones(1, requires_grad=True) * 2, "graph of gradients"),
        (torch.ones(1, device="meta"), "move it to the CPU"),
        (torch.eye(2).to_sparse(), "make it strided"),
    ]:
        with pytest.raises(RecipeError, match=rf"no-data-form.*model\.args\[0\].*{reason}"):
            written(tensor)


def test_tensors_that_share_memory_are_refused() -> None:
    """Two views of one memory would come back apart, so they are refused; one tensor twice is not."""
    base = torch.arange(4.0)
    with pytest.raises(RecipeError, match=r"shared-memory.*model\.args\[0\]\[1\].*model\.args\[0\]\[0\].*clone"):
        written([base[:2], base[2:]])
    with pytest.raises(RecipeError, match="shared-memory"):
        written([base, base.view(2, 2)])
    assert again([base, base[:2].clone(), base])[0].tolist() == base.tolist()


# Refusals of values -------------------------------------------------------------------------------------------------


class Plain:
    """Has no data form."""


@dataclass
class Doubling:
    """Makes something else of its own field."""

    size: int

    def __post_init__(self) -> None:
        self.size *= 2


@dataclass
class WithInitVar:
    seed: InitVar[int]
    size: int = field(init=False, default=0)


class Number(int):
    """A subclass is not what it derives from."""


def _local_function() -> Any:
    return lambda: None


class _Local:
    @staticmethod
    def make() -> tuple[type, Any]:
        class Inner:
            pass

        def inner() -> None:
            pass

        return Inner, inner


REFUSED: list[tuple[Any, str, str]] = [
    (Plain(), "no-data-form", r"Plain has no data form. Three ways out: name a function .*codecs=\[Codec"),
    (object(), "no-data-form", "builtins.object has no data form"),
    (Number(1), "no-data-form", "Number has no data form"),
    (defaultdict(list), "no-data-form", "defaultdict has no data form"),
    (bytearray(1), "no-data-form", "bytearray"),
    (functools.partial(helper, 1), "no-data-form", "functools.partial"),
    ([].append, "no-data-form", "builtin_function_or_method"),
    (Net(1).plain_method, "no-data-form", "builtins.method"),
    (json, "no-data-form", "builtins.module"),
    (list[int], "no-data-form", "GenericAlias"),
    (torch.Generator(), "no-data-form", "Generator"),
    (lambda: None, "no-name", r"<lambda> has no name by which it can be found again.*codecs=\["),
    (_local_function(), "no-name", "<lambda>"),
    (_Local.make()[0], "no-name", r"<locals>\.Inner"),
    (_Local.make()[1], "no-name", r"<locals>\.inner"),
    (Doubling(1), "no-data-form", "another 'size'"),
    (WithInitVar(1), "no-data-form", "cannot be made from its fields"),
    (slice("a", "b"), "no-data-form", "a slice of str"),
    (np.array([object()]), "no-data-form", "array of object"),
    (np.array([1], ">i4"), "no-data-form", "array of >i4"),
    (np.datetime64("2020-01-01"), "no-data-form", "datetime64"),
    (2**63, "integer-range", "9223372036854775808 does not fit"),
    (range(2**64), "integer-range", "does not fit"),
    ("a" * 65537, "too-long", "a string of 65537 bytes"),
    ("\ud800", "bad-string", "half of a surrogate pair"),
    ({Net: Plain()}, "no-data-form", "Plain"),
    ({torch.ones(1)}, "no-data-form", "cannot be a key or stand in a set"),
    ({CallRecord(Net): 1}, "no-data-form", "cannot be a key or stand in a set"),
    (Pair(CallRecord(Net), 1), "no-data-form", "not inside of other values"),
    (Options(CallRecord(Net)), "no-data-form", "not inside of other values"),  # type: ignore[arg-type]
    (OrderedDict(a=[CallRecord(Net)]), "no-data-form", "not inside of other values"),
]


@pytest.mark.parametrize(("value", "code", "message"), REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_a_value_without_a_data_form_is_refused(value: Any, code: str, message: str) -> None:
    """Nothing is dropped or guessed: the refusal has a code and the reason, and names the path."""
    place = r"model\.args\[1\]\.deep\[0\]"
    with pytest.raises(RecipeError, match=rf"(?s)^\[{code}\] at {place}.*{message}"):
        Recipe.of(CallRecord(Net, (1, {"deep": [value]})))


def test_the_path_leads_through_calls_keywords_and_tapes() -> None:
    """The place of a refusal is the path in the model."""
    inner = CallRecord(Net, (), {"width": [Plain()]})
    with pytest.raises(RecipeError, match=r"at model\.args\[0\]\.kwargs\.width\[0\]:"):
        Recipe.of(CallRecord(Net, (inner,)))
    with pytest.raises(RecipeError, match=r"at model\.tape\[0\]\.kwargs\['a b'\]\.args\[0\]:"):
        Recipe.of(CallRecord(Net, tape=[TapeEntry((), "adjust", (), {"a b": CallRecord(Net, (Plain(),))})]))


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (TapeEntry((), "plain_method"), "bad-method"),
        (TapeEntry((), "_apply"), "bad-method"),
        (TapeEntry(("a",), "load_state_dict"), "bad-method"),
        (TapeEntry(("__class__",), "adjust"), "bad-target"),
        (TapeEntry(("",), "adjust"), "bad-target"),
        (TapeEntry((), "adjust", (), {"__x": 1}), "bad-argument"),
    ],
)
def test_a_tape_that_could_not_be_read_is_not_written(entry: TapeEntry, code: str) -> None:
    """The rules for methods, targets and keywords hold for writing too."""
    with pytest.raises(RecipeError, match=rf"\[{code}\] at model\.tape\[0\]"):
        Recipe.of(CallRecord(Net, tape=[entry]))


def test_a_cycle_is_refused() -> None:
    """A list, a dict or a call that contains itself is refused with the place of the second meeting."""
    items: list[Any] = []
    items.append({"again": items})
    with pytest.raises(RecipeError, match=r"\[cycle\] at model\.args\[0\]\[0\]\.again: this builtins\.list contains"):
        Recipe.of(CallRecord(Net, (items,)))
    record = CallRecord(Net)
    record.tape.append(TapeEntry((), "adjust", (record,)))
    with pytest.raises(RecipeError, match=r"\[cycle\] at model\.tape\[0\]\.args\[0\]"):
        Recipe.of(record)


# Codecs and dataclasses ---------------------------------------------------------------------------------------------


def test_a_codec_may_hold_what_a_recipe_holds() -> None:
    """What a codec gives may itself need a codec; one object of its type in two places stays one."""
    outer = Codec(Plain, lambda plain: {"money": Money(3)}, lambda data: data["money"])
    plain = Plain()
    recipe = Recipe.of(CallRecord(Net, (plain, plain)), codecs=[outer, MONEY])
    one, other = recipe.record([outer, MONEY]).args
    assert one is other
    assert one == Money(3)


def test_an_error_in_the_code_of_the_user_keeps_its_type_and_gains_its_place() -> None:
    """What ``encode``, ``decode`` or a constructor raises is not wrapped; a note tells where it happened."""

    def fail(value: Any) -> Any:
        raise KeyError("no such unit")

    broken = Codec(Money, fail, fail)
    with pytest.raises(KeyError) as caught:
        Recipe.of(CallRecord(Net, ([Money(1)],)), codecs=[broken])
    assert "model.args[0][0]" in caught.value.__notes__[0]
    with pytest.raises(KeyError) as caught:
        Recipe.of(CallRecord(Net, ([Money(1)],)), codecs=[MONEY]).record([broken])
    assert "model.args[0][0]" in caught.value.__notes__[0]


def test_a_codec_for_a_local_type_works() -> None:
    """A codec gives a data form to a type that has no name of its own."""

    class Local:
        pass

    codec = Codec(Local, lambda local: None, lambda data: Local())
    assert type(Recipe.of(CallRecord(Net, (Local(),)), codecs=[codec]).record([codec]).args[0]) is Local


def test_a_limit_can_be_raised_for_writing() -> None:
    """The limits of `Recipe.of` are a keyword, as those of reading are."""
    record = CallRecord(Net, ("a" * 70_000,))
    limits = Limits(string=80_000)
    text = Recipe.of(record, limits=limits).to_json()
    assert Recipe.from_json(text, limits=limits).record().args == record.args


def test_every_leaf_of_data_is_told_from_its_equals() -> None:
    """Tensors and arrays are objects with an identity; NumPy numbers are not."""
    assert {leaf.tag: leaf.has_identity for leaf in DATA_LEAVES} == {"$tensor": True, "$array": True, "$scalar": False}


# pydantic models ----------------------------------------------------------------------------------------------------


class Listed(pydantic.RootModel[list[int]]):
    """A model of one value."""


class Open(pydantic.BaseModel):
    """Takes more than its fields."""

    model_config = pydantic.ConfigDict(extra="allow")
    kind: Mode = Mode.FAST


class Hidden(pydantic.BaseModel):
    """Holds something that its fields do not tell."""

    size: int = 1
    _count: int = pydantic.PrivateAttr(default=0)


class Lengthening(pydantic.BaseModel):
    """Makes something else of its own fields."""

    text: str

    @pydantic.field_validator("text")
    @classmethod
    def longer(cls, text: str) -> str:
        return text + "!"


MODELS: list[Any] = [
    Setup.model_validate({}),
    Setup.model_validate({"learningRate": 0.5, "sizes": [1, 2], "inner": {"sizes": []}}),
    Listed([1, 2]),
    Open(),
    Open.model_validate({"kind": Mode.SLOW, "more": [1, {"deep": 2}]}),
    Hidden(size=3),
]


@pytest.mark.parametrize("value", MODELS, ids=repr)
def test_a_pydantic_model_comes_back(value: Any) -> None:
    """Fields, those beyond the declared ones, and which of them were given are kept; names are those of the class."""
    recipe = Recipe.of(CallRecord(Net, (value, [value])))
    record = Recipe.from_json(recipe.to_json()).record([*TRUST, Listed, Open, Hidden])
    assert record.args[0] == value
    assert record.args[0].model_fields_set == value.model_fields_set
    assert record.args[0] is record.args[1][0]
    assert Recipe.of(record) == recipe


def test_a_pydantic_model_is_written_by_its_fields() -> None:
    """The node holds every field by its name in the class, and the names of those that were given."""
    node = written(Setup.model_validate({"learningRate": 0.5}))
    assert node == {
        "$pydantic": "tests.recipe.samples.Setup",
        "fields": {"inner": None, "rate": 0.5, "sizes": []},
        "set": ["rate"],
    }


def test_a_pydantic_model_that_does_not_remake_itself_is_refused() -> None:
    """Private values, and validators that change what they have made, would be lost."""
    hidden = Hidden()
    hidden._count = 5
    with pytest.raises(RecipeError, match=r"Hidden made from the fields of this one has another '_count'.*Three ways"):
        written(hidden)
    with pytest.raises(RecipeError, match="Lengthening made from the fields of this one has another 'text'"):
        written(Lengthening(text="a"))
    with pytest.raises(RecipeError, match=r"Setup cannot be made from its fields \(ValidationError"):
        written(Setup.model_construct(rate=-1.0))


def _pydantic(**node: Any) -> str:
    whole = {"$pydantic": "tests.recipe.samples.Setup", "fields": {"rate": 0.5}, "set": ["rate"]} | node
    call = {"$call": "tests.recipe.samples.Net", "args": [whole], "kwargs": {}}
    return json.dumps({"format": "replayml.recipe", "version": 2, "packages": {}, "model": call})


@pytest.mark.parametrize(
    ("node", "code", "message"),
    [
        ({"fields": []}, "bad-value", "fields are an object"),
        ({"set": ["sizes"]}, "bad-value", "'set' is a list of names of fields"),
        ({"set": "rate"}, "bad-value", "'set' is a list of names of fields"),
        ({"set": ["rate", "rate"]}, "not-canonical", "in sorted order, each once"),
        ({"fields": {"rate": 0.5, "rat": 1}}, "bad-argument", "Setup has no field 'rat'"),
        ({"fields": {"rate": -1.0}}, "bad-argument", "Setup refuses its fields: '1 validation error"),
        ({"fields": {"rate": "fast"}}, "bad-argument", "Setup refuses its fields"),
        ({"$pydantic": "tests.recipe.samples.Options"}, "wrong-kind", "is not a pydantic model"),
        ({"$pydantic": "pydantic.BaseModel"}, "untrusted-name", "not known to this program, or not trusted"),
    ],
)
def test_fields_that_a_pydantic_model_does_not_take_are_refused(node: Any, code: str, message: str) -> None:
    """A file that gives other fields, or values that the model's validation refuses, is refused with its place."""
    with pytest.raises(RecipeError, match=rf"(?s)^\[{code}\] at model\.args\[0\].*{message}"):
        Recipe.from_json(_pydantic(**node)).record(TRUST)
    assert Recipe.from_json(_pydantic()).record(TRUST).args == (Setup.model_validate({"learningRate": 0.5}),)
