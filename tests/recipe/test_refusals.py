"""Hostile documents: each is refused with its code and its place, and its honest twin is read."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from replayml.core.errors import RecipeError
from replayml.core.tape import CallRecord
from replayml.recipe import Codec, Limits, Recipe
from replayml.recipe import format as recipe_format
from tests.recipe.samples import TRUST, Money, Net

NET = "tests.recipe.samples.Net"
SAMPLES = "tests.recipe.samples"


def document(*args: Any, kwargs: Any = None, tape: Any = None, **changes: Any) -> dict[str, Any]:
    """Return a document whose model is a call of Net."""
    call = {"$call": NET, "args": list(args), "kwargs": {} if kwargs is None else kwargs}
    if tape is not None:
        call["tape"] = tape
    return {"format": "replayml.recipe", "version": 1, "packages": {"torch": "2"}, "model": call, **changes}


def text(*args: Any, **changes: Any) -> str:
    """Return such a document as text."""
    return json.dumps(document(*args, **changes))


def entry(method: Any = "adjust", tags: Any = (), args: Any = (), **more: Any) -> dict[str, Any]:
    """Return the node of a tape entry."""
    return {"$entry": method, "tags": tags, "args": args, "kwargs": {}, **more}


def call(name: str = NET, args: Any = (), kwargs: Any = None, **more: Any) -> dict[str, Any]:
    """Return the node of a constructor call."""
    return {"$call": name, "args": args, "kwargs": kwargs or {}, **more}


def refusal(given: str | bytes, trust: tuple[object, ...] = TRUST, limits: Limits | None = None) -> RecipeError:
    """Return the refusal of a text, or of the record that it stands for."""
    with pytest.raises(RecipeError, match=r"^\[") as caught:
        Recipe.from_json(given, limits=limits or Limits()).record(trust)
    return caught.value


def read(given: str | bytes) -> CallRecord:
    """Return the record that a text stands for."""
    return Recipe.from_json(given).record(TRUST)


# The text -----------------------------------------------------------------------------------------------------------


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("recipe.json", text())
    return buffer.getvalue()


def _torch_save() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer)
    return buffer.getvalue()


HONEST = text(1)

TEXTS: dict[str, tuple[str, str | bytes]] = {
    "pickle": ("foreign-format", pickle.dumps({"a": 1})),
    "zip": ("foreign-format", _zip()),
    "torch": ("foreign-format", _torch_save()),
    "gzip": ("foreign-format", gzip.compress(HONEST.encode())),
    "hdf5": ("foreign-format", b"\x89HDF\r\n\x1a\n" + bytes(8)),
    "text pickle": ("not-json", pickle.dumps({"a": 1}, protocol=0)),
    "empty": ("not-json", b""),
    "python": ("not-json", "{'format': 'replayml.recipe'}"),
    "control character": ("not-json", '{"format": "a\nb"}'),
    "comment": ("trailing-bytes", HONEST + "// note"),
    "latin-1": ("not-utf8", text("é").encode().decode("unicode_escape").encode("latin-1")),
    "utf-16": ("not-utf8", HONEST.encode("utf-16")),
    "utf-16 without mark": ("not-json", HONEST.encode("utf-16-le")),
    "surrogate in str": ("not-utf8", '"\ud800"'),
    "byte order mark": ("byte-order-mark", b"\xef\xbb\xbf" + HONEST.encode()),
    "byte order mark in str": ("byte-order-mark", "\N{ZERO WIDTH NO-BREAK SPACE}" + HONEST),
    "trailing brace": ("trailing-bytes", HONEST + "}"),
    "trailing zero byte": ("trailing-bytes", HONEST.encode() + b"\0"),
    "second document": ("trailing-bytes", HONEST + "\n" + HONEST),
    "too deep": ("too-deep", "[" * 100_000),
    "too deep in the tail": ("too-deep", '{"a": "[[[", "b": ' + "[" * 70 + "]" * 70 + "}"),
    "too many values": ("too-many", "[" + "0," * 100_001),
    "too many arrays": ("too-many", "[]" * 100_001),
    "too large": ("too-large", HONEST + " " * (4 * 1024 * 1024)),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_is_no_strict_json_is_refused(case: str) -> None:
    """What is no UTF-8 JSON text of bounded size and depth is refused by what it is; nothing was unpickled."""
    code, given = TEXTS[case]
    error = refusal(given)
    assert error.code == code
    assert error.where == "text"
    assert "unpickled" in str(error)


def test_an_honest_twin_of_each_magic_is_read() -> None:
    """A string may start with the first bytes of a zip file or an HDF5 file."""
    assert read(text("PK\x03\x04")).args == ("PK\x03\x04",)


def test_the_honest_text_is_read() -> None:
    """The text that the hostile ones were made from is read, as text and as bytes, with white space around it."""
    assert read(HONEST).args == read(HONEST.encode()).args == read(f" \r\n\t{HONEST}\n").args == (1,)
    assert read(text('"[[[[' * 20)).args == ('"[[[[' * 20,)  # brackets in a string have no depth


# JSON values --------------------------------------------------------------------------------------------------------

VALUES: dict[str, tuple[str, str, str]] = {
    # what is hostile: its code, its JSON, the JSON of its honest twin
    "duplicate key": ("duplicate-key", '{"a": 1, "a": 1}', '{"a": 1, "b": 1}'),
    "duplicate key by escape": ("duplicate-key", '{"a": 1, "\\u0061": 1}', '{"a": 1, "\\u0062": 1}'),
    "duplicate tag": ("duplicate-key", '{"$tuple": [], "$tuple": [1]}', '{"$tuple": [1]}'),
    "NaN": ("bad-number", "NaN", '{"$float": "nan"}'),
    "Infinity": ("bad-number", "-Infinity", '{"$float": "-inf"}'),
    "overflow": ("bad-number", "1e999", "1e99"),
    "64 bits": ("integer-range", "9223372036854775808", "9223372036854775807"),
    "minus 64 bits": ("integer-range", "-9223372036854775809", "-9223372036854775808"),
    "many digits": ("integer-range", "9" * 5000, "9" * 18),
    "half of a pair": ("bad-string", '"\\ud800"', '"\\ud83d\\ude00"'),
    "half of a pair in a key": ("bad-string", '{"\\udc00": 1}', '{"\\ud83d\\ude00": 1}'),
    "long string": ("too-long", '"' + "a" * 65537 + '"', '"' + "a" * 65536 + '"'),
    "long string in bytes": ("too-long", '"' + "é" * 32769 + '"', '"' + "é" * 32768 + '"'),
    "long key": ("too-long", '{"' + "a" * 65537 + '": 1}', '{"' + "a" * 65536 + '": 1}'),
    "many values": ("too-many", json.dumps([{}] * 60_000 + [[0]] * 20_000), json.dumps([0] * 99_000)),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_json_value_that_is_not_strict_is_refused(case: str) -> None:
    """What the JSON of the standard library lets pass is refused, and its strict twin is read."""
    code, hostile, honest = VALUES[case]
    error = refusal(text("HERE").replace('"HERE"', hostile))
    assert error.code == code
    assert error.where in ("document", "model.args[0]")
    assert read(text("HERE").replace('"HERE"', honest)).cls is Net


# The document -------------------------------------------------------------------------------------------------------

DOCUMENTS: dict[str, tuple[str, str, Any, Any]] = {
    # what is hostile: its code, its place, its document, the document of its honest twin
    "no object": ("wrong-format", "document", [1], document()),
    "no format": ("wrong-format", "document", {"version": 1}, document()),
    "other format": ("wrong-format", "document", document(format="keras"), document()),
    "newer": ("newer-version", "document", document(version=3, news=1), document(version=2)),
    "version 0": ("bad-version", "document", document(version=0), document()),
    "version true": ("bad-version", "document", document(version=True), document()),
    "version 1.0": ("bad-version", "document", document(version=1.0), document()),
    "unknown key": ("unknown-key", "document", document(limits={"size": 1e9}), document()),
    "trust in the file": ("unknown-key", "document", document(trust=["os"]), document()),
    "no packages": ("missing-key", "document", {"format": "replayml.recipe", "version": 1, "model": 1}, document()),
    "bad packages": ("bad-value", "document", document(packages={"torch": 2}), document(packages={"torch": "2"})),
    "model is a list": ("bad-value", "model", document(model=[]), document()),
    "model is a tuple": ("bad-value", "model", document(model={"$tuple": []}), document()),
    "unknown key of a call": ("unknown-key", "model.args[0]", document(call(state=1)), document(call())),
    "missing key of a call": ("missing-key", "model.args[0]", document({"$call": NET, "args": []}), document(call())),
    "unknown tag": ("unknown-tag", "model.args[0]", document({"$pickle": "gASVAA=="}), document({"pickle": "gA"})),
    "two tags": ("unknown-tag", "model.args[0]", document({"$list": [], "$tuple": []}), document([], [])),
    "tag and key": ("unknown-key", "model.args[0]", document({"$tuple": [], "a": 1}), document({"$tuple": []})),
    "id alone": ("unknown-tag", "model.args[0]", document({"$id": 0}), document({})),
    "name is no text": ("bad-value", "model.args[0]", document({"$class": 1}), document({"$class": "builtins.int"})),
    "args are no list": ("bad-value", "model.args[0]", document(call(args={"a": 1})), document(call(args=[1]))),
    "kwargs are no object": ("bad-value", "model", document(kwargs=[1]), document(kwargs={"a": 1})),
    "tape is no list": ("bad-value", "model", document(tape={"a": 1}), document(tape=[entry()])),
    "tape is null": (
        "bad-value",
        "model.args[0]",
        document(call(tape=None)),
        document(call(tape=[entry()])),
    ),
    "where is null": ("bad-value", "model.args[0]", document(call(where=None)), document(call(where=["a.py", 1]))),
    "entry is no object": ("bad-value", "model.tape[0]", document(tape=[1]), document(tape=[entry()])),
    "tags are no list": ("bad-target", "model.tape[0]", document(tape=[entry(tags="a")]), document(tape=[entry()])),
    "where is text": (
        "bad-value",
        "model.tape[0]",
        document(tape=[entry(where="a:1")]),
        document(tape=[entry(where=["a", 1])]),
    ),
    "bad base64": ("bad-value", "model.args[0]", document({"$bytes": "a"}), document({"$bytes": "YQ=="})),
    "base64 with bits left": (
        "not-canonical",
        "model.args[0]",
        document({"$bytes": "YR=="}),
        document({"$bytes": "YQ=="}),
    ),
    "unknown float": ("bad-value", "model.args[0]", document({"$float": "1.5"}), document({"$float": "inf"})),
    "bits of a number": (
        "bad-value",
        "model.args[0]",
        document({"$float": "0" * 16}),
        document({"$float": "7ff8" + "1" * 12}),
    ),
    "complex of ints": (
        "bad-value",
        "model.args[0]",
        document({"$complex": [1, 2]}),
        document({"$complex": [1.0, 2.0]}),
    ),
    "slice of text": (
        "bad-value",
        "model.args[0]",
        document({"$slice": ["a", 1, 1]}),
        document({"$slice": [None, 1, 1]}),
    ),
    "range without step": (
        "bad-value",
        "model.args[0]",
        document({"$range": [0, 1, 0]}),
        document({"$range": [0, 1, 1]}),
    ),
    "ellipsis": ("bad-value", "model.args[0]", document({"$ellipsis": 1}), document({"$ellipsis": None})),
    "kind of path": (
        "bad-value",
        "model.args[0]",
        document({"$path": ["Popen", "a"]}),
        document({"$path": ["Path", "a"]}),
    ),
    "spelling of a path": (
        "not-canonical",
        "model.args[0]",
        document({"$path": ["Path", "a//b"]}),
        document({"$path": ["Path", "a/b"]}),
    ),
    "unknown dtype": ("bad-value", "model.args[0]", document({"$dtype": "load"}), document({"$dtype": "float32"})),
    "unknown layout": ("bad-value", "model.args[0]", document({"$layout": "load"}), document({"$layout": "strided"})),
    "unknown device": ("bad-value", "model.args[0]", document({"$device": "cuda:01"}), document({"$device": "cuda:1"})),
    "size of text": ("bad-value", "model.args[0]", document({"$size": ["a"]}), document({"$size": [1]})),
    "minus zero": ("not-canonical", "model.args[0]", document(-0.0), document({"$float": "-0.0"})),
    "bare list": ("not-canonical", "model.args[0]", document({"$list": []}), document([])),
    "bare dict": (
        "not-canonical",
        "model.args[0]",
        document({"$dict": [["a", 1], ["b", 1]]}),
        document({"$dict": [["b", 1], ["a", 1]]}),
    ),
    "bare kwargs": (
        "not-canonical",
        "model",
        document(kwargs={"$dict": [["a", 1]]}),
        document(kwargs={"$dict": [["b", 1], ["a", 1]]}),
    ),
    "no pairs": ("bad-value", "model.args[0]", document({"$dict": [[1]]}), document({"$dict": [[1, 2]]})),
    "unsorted set": ("not-canonical", "model.args[0]", document({"$set": [2, 1]}), document({"$set": [1, 2]})),
    "set with a list": (
        "bad-value",
        "model.args[0].$set[0]",
        document({"$set": [[1]]}),
        document({"$set": [{"$tuple": [1]}]}),
    ),
    "key is a dict": (
        "bad-value",
        "model.args[0].$dict[0][0]",
        document({"$dict": [[{}, 1]]}),
        document({"$dict": [[1, {}]]}),
    ),
    "key is a call": (
        "bad-value",
        "model.args[0].$dict[0][0]",
        document({"$dict": [[call(), 1]]}),
        document({"$dict": [[1, call()]]}),
    ),
    "equal elements": ("duplicate-key", "model.args[0]", document({"$set": [1, 1.0]}), document({"$set": [1, 2.0]})),
    "equal keys": (
        "duplicate-key",
        "model.args[0]",
        document({"$dict": [[1, 1], [True, 1]]}),
        document({"$dict": [[1, 1], [False, 1]]}),
    ),
    "call in a dataclass": (
        "bad-value",
        "model.args[0].fields.x",
        document({"$dataclass": f"{SAMPLES}.Point", "fields": {"x": call(), "y": 1}}),
        document({"$dataclass": f"{SAMPLES}.Point", "fields": {"x": 1, "y": 1}}),
    ),
    "reference to nothing": (
        "bad-reference",
        "model.args[0]",
        document({"$ref": 0}),
        document({"$list": [], "$id": 0}, {"$ref": 0}),
    ),
    "reference forwards": (
        "bad-reference",
        "model.args[0]",
        document({"$ref": 0}, {"$list": [], "$id": 0}),
        document([]),
    ),
    "reference to itself": (
        "bad-reference",
        "model.args[0].$list[0]",
        document({"$list": [{"$ref": 0}], "$id": 0}),
        document({"$list": [], "$id": 0}, {"$ref": 0}),
    ),
    "reference of text": (
        "bad-reference",
        "model.args[1]",
        document({"$list": [], "$id": 0}, {"$ref": "0"}),
        document([]),
    ),
    "numbers out of order": (
        "bad-reference",
        "model.args[0]",
        document({"$list": [], "$id": 1}, {"$ref": 1}),
        document([]),
    ),
    "number of a tuple": (
        "unknown-key",
        "model.args[0]",
        document({"$tuple": [], "$id": 0}, {"$ref": 0}),
        document([]),
    ),
    "number that nothing uses": ("not-canonical", "model", document({"$list": [], "$id": 0}), document([])),
    "tree outside of a tape": (
        "bad-reference",
        "model.args[0]",
        document({"$tree": [["a"], None]}),
        document(tape=[entry(args=[{"$tree": [["a"], None]}])]),
    ),
    "tree further out than there are models": (
        "bad-reference",
        "model.tape[0].args[0]",
        document(tape=[entry(args=[{"$tree": [["a"], None, True]}])]),
        document(tape=[entry(args=[call(tape=[entry(args=[{"$tree": [["a"], None, True]}])])])]),
    ),
    "tree that is one further out": (
        "bad-value",
        "model.tape[0].args[0].tape[0].args[0]",
        document(tape=[entry(args=[call(tape=[entry(args=[{"$tree": [["a"], None, 1]}])])])]),
        document(tape=[entry(args=[call(tape=[entry(args=[{"$tree": [["a"], None, True]}])])])]),
    ),
    "tree of a dunder": (
        "bad-target",
        "model.tape[0].args[0]",
        document(tape=[entry(args=[{"$tree": [["a"], "__class__"]}])]),
        document(tape=[entry(args=[{"$tree": [["a"], "weight"]}])]),
    ),
    "empty tape": ("not-canonical", "model", document(tape=[]), document()),
    "one combined flag": (
        "not-canonical",
        "model.args[0]",
        document({"$enum": f"{SAMPLES}.Access", "member": ["READ"]}),
        document({"$enum": f"{SAMPLES}.Access", "member": ["READ", "WRITE"]}),
    ),
    "tensor too short": (
        "bad-value",
        "model.args[0]",
        document(
            {"$tensor": {"data": "AAAA", "dtype": "float32", "shape": [1], "parameter": False, "requires_grad": False}}
        ),
        document(
            {
                "$tensor": {
                    "data": "AAAAAA==",
                    "dtype": "float32",
                    "shape": [1],
                    "parameter": False,
                    "requires_grad": False,
                }
            }
        ),
    ),
    "tensor of a huge shape": (
        "bad-value",
        "model.args[0]",
        document(
            {"$tensor": {"data": "", "dtype": "uint8", "shape": [0, 2**62], "parameter": False, "requires_grad": False}}
        ),
        document(
            {"$tensor": {"data": "", "dtype": "uint8", "shape": [0, 2], "parameter": False, "requires_grad": False}}
        ),
    ),
    "integers with a gradient": (
        "bad-value",
        "model.args[0]",
        document(
            {"$tensor": {"data": "AA==", "dtype": "uint8", "shape": [], "parameter": False, "requires_grad": True}}
        ),
        document(
            {"$tensor": {"data": "AA==", "dtype": "uint8", "shape": [], "parameter": True, "requires_grad": False}}
        ),
    ),
    "bool of 2": (
        "bad-value",
        "model.args[0]",
        document({"$array": {"data": "Ag==", "dtype": "bool", "shape": []}}),
        document({"$array": {"data": "AQ==", "dtype": "bool", "shape": []}}),
    ),
    "array of objects": (
        "bad-value",
        "model.args[0]",
        document({"$array": {"data": "AA==", "dtype": "object", "shape": []}}),
        document({"$array": {"data": "AA==", "dtype": "uint8", "shape": []}}),
    ),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_document_of_another_form_is_refused(case: str) -> None:
    """What is not of the one form of a recipe is refused with its code and its place; the right form is read."""
    code, place, hostile, honest = DOCUMENTS[case]
    error = refusal(json.dumps(hostile))
    assert (error.code, error.where) == (code, place)
    assert read(json.dumps(honest)).cls is Net


# What is named ------------------------------------------------------------------------------------------------------

NAMES: dict[str, tuple[str, Any, Any]] = {
    "a function of a module": ("untrusted-name", {"$function": "os.system"}, {"$function": "torch.relu"}),
    "a builtin": ("untrusted-name", {"$function": "builtins.eval"}, {"$class": "builtins.int"}),
    "through an alias": ("untrusted-name", {"$class": "torch.nn.parallel.distributed.os"}, {"$class": "torch.nn.ReLU"}),
    "an attribute of a class": (
        "untrusted-name",
        {"$function": "torch.nn.Linear.forward"},
        {"$class": "torch.nn.Linear"},
    ),
    "another path to a layer": (
        "untrusted-name",
        call("torch.nn.modules.linear.Linear", [1, 2]),
        call("torch.nn.Linear", [1, 2]),
    ),
    "DataParallel": ("untrusted-name", call("torch.nn.DataParallel", [call()]), call("torch.nn.Sequential", [call()])),
    "a module that is not imported": ("untrusted-name", call("antigravity.Net"), call(NET)),
    "a class that is not trusted": (
        "untrusted-name",
        {"$enum": "re.RegexFlag", "member": "A"},
        {"$enum": f"{SAMPLES}.Mode", "member": "FAST"},
    ),
    "a codec that is not there": (
        "untrusted-name",
        {"$codec": f"{SAMPLES}.Point", "data": 1},
        {"$codec": f"{SAMPLES}.Money", "data": {"cents": 1}},
    ),
    "an optimizer as a module": ("wrong-kind", call("torch.optim.SGD", [[]]), {"$class": "torch.optim.SGD"}),
    "a builtin as a module": ("wrong-kind", call("builtins.list"), {"$class": "builtins.list"}),
    "a function as a module": ("wrong-kind", call("torch.cat"), {"$function": "torch.cat"}),
    "a function as a class": ("wrong-kind", {"$class": "torch.cat"}, {"$function": "torch.cat"}),
    "a class as a function": ("wrong-kind", {"$function": "torch.nn.ReLU"}, {"$class": "torch.nn.ReLU"}),
    "a module as an enum": (
        "wrong-kind",
        {"$enum": NET, "member": "mro"},
        {"$enum": f"{SAMPLES}.Mode", "member": "FAST"},
    ),
    "a module as a dataclass": ("wrong-kind", {"$dataclass": NET, "fields": {}}, call(NET)),
    "a tuple as a named tuple": (
        "wrong-kind",
        {"$namedtuple": "builtins.tuple", "items": []},
        {"$namedtuple": f"{SAMPLES}.Pair", "items": [1, 2]},
    ),
    "an attribute as a member": (
        "bad-value",
        {"$enum": f"{SAMPLES}.Mode", "member": "mro"},
        {"$enum": f"{SAMPLES}.Mode", "member": "SLOW"},
    ),
    "members that cannot be combined": (
        "bad-value",
        {"$enum": f"{SAMPLES}.Mode", "member": ["FAST", "SLOW"]},
        {"$enum": f"{SAMPLES}.Access", "member": ["READ", "RUN"]},
    ),
    "an unknown field": (
        "bad-argument",
        {"$dataclass": f"{SAMPLES}.Point", "fields": {"x": 1, "y": 1, "__class__": 1}},
        {"$dataclass": f"{SAMPLES}.Point", "fields": {"x": 1, "y": 1}},
    ),
    "a missing field": (
        "bad-argument",
        {"$dataclass": f"{SAMPLES}.Point", "fields": {"x": 1}},
        {"$dataclass": f"{SAMPLES}.Point", "fields": {"x": 1, "y": 1}},
    ),
    "a dataclass without a hash in a set": (
        "bad-value",
        {"$set": [{"$dataclass": f"{SAMPLES}.Options", "fields": {"rate": 1.0, "tags": None}}]},
        {"$set": [{"$dataclass": f"{SAMPLES}.Point", "fields": {"x": 1, "y": 1}}]},
    ),
    "too few items": (
        "bad-argument",
        {"$namedtuple": f"{SAMPLES}.Pair", "items": [1]},
        {"$namedtuple": f"{SAMPLES}.Pair", "items": [1, 2]},
    ),
    "an unknown argument": (
        "bad-argument",
        call(f"{SAMPLES}.Narrow", [1], {"activatoin": 1}),
        call(f"{SAMPLES}.Narrow", [1], {"activation": 1}),
    ),
    "a missing argument": ("bad-argument", call(f"{SAMPLES}.Narrow"), call(f"{SAMPLES}.Narrow", [1])),
    "too many arguments": ("bad-argument", call("torch.nn.ReLU", [1, 2]), call("torch.nn.ReLU", [True])),
    "the way into a checkpoint": (
        "bad-argument",
        call(NET, [], {"__from_ckpt_application": 1, "__build_args": [], "__build_kwargs": {}}),
        call(NET, [], {"from_ckpt_application": 1}),
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_stands_for_what_is_trusted_and_fits(case: str) -> None:
    """A name outside the tables, or of the wrong kind, is refused before anything is made; its twin is read."""
    code, hostile, honest = NAMES[case]
    before = set(sys.modules)
    error = refusal(text(hostile))
    assert error.code == code
    assert error.where.startswith("model.args[0]")
    assert "Nothing was imported, called or unpickled." in str(error)
    assert set(sys.modules) == before
    assert read(text(honest)).cls is Net


METHODS = [
    "forward",
    "load_state_dict",
    "register_forward_hook",
    "plain_method",
    "answer",
    "seen",
    "_apply",
    "__init__",
    "__class__",
    "adjust ",
    "adjust.__func__",
    "ädjust",
    "adjust\n",
    "",
    "eval",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tags", [[], ["child"]])
def test_a_tape_calls_recorded_methods_only(method: str, tags: list[str]) -> None:
    """A method that carries no mark, a property, an attribute or no public ASCII identifier is refused."""
    error = refusal(text(tape=[entry(method, tags)]))
    assert (error.code, error.where) == ("bad-method", "model.tape[0]")
    assert read(text(tape=[entry("adjust", tags)])).tape[0].method == "adjust"


@pytest.mark.parametrize("tag", ["", "__class__", "__dict__", 1, None, ["a"]])
def test_a_tape_reaches_children_only(tag: Any) -> None:
    """A step of a target that is no text, or starts like an attribute of Python's own, is refused."""
    assert refusal(text(tape=[entry(tags=["a", tag])])).code == "bad-target"
    assert read(text(tape=[entry(tags=["a", "_b", "0"])])).tape[0].tags == ("a", "_b", "0")


def test_all_faults_are_told_at_once() -> None:
    """The refusal names every fault with its place: those of the form together, then those of the names together."""
    form = refusal(text({"$pickle": 1}, {"$float": "x"}, [{"$ref": 7}]))
    assert form.code == "unknown-tag"
    assert "[bad-value] at model.args[1]" in str(form)
    assert "[bad-reference] at model.args[2][0]" in str(form)
    names = refusal(text({"$class": "a.A"}, {"$class": "b.B"}, {"$class": "a.A"}, tape=[entry("forward")]))
    assert names.where == "model.args[0]"
    assert str(names).count("a.A") == 1
    assert "[untrusted-name] at model.args[1]: the class 'b.B'" in str(names)
    assert "[bad-method] at model.tape[0]" in str(names)


def test_nothing_is_made_when_a_name_is_refused() -> None:
    """The constructor of a trusted dataclass is not run in a document with an untrusted name."""
    made: list[int] = []
    point = {"$codec": f"{SAMPLES}.Money", "data": {"cents": 1}}
    error = refusal(text(point, {"$class": "a.A"}), trust=(_counting(made),))
    assert error.code == "untrusted-name"
    assert not made
    assert Recipe.from_json(text(point)).record([_counting(made)]).args
    assert made == [1]


def _counting(made: list[int]) -> Any:
    def decode(data: Any) -> Money:
        made.append(1)
        return Money(data["cents"])

    return Codec(Money, vars, decode)


def test_what_a_file_gives_is_shown_escaped_and_cut() -> None:
    """Control characters, long texts and other alphabets of a file do not reach the terminal as they are."""
    for hostile in ("\x1b[31mred\n", "я" * 3000, "a" * 3000):
        for node in ({"$class": hostile}, {hostile: 1, "$tuple": []}, {"$" + hostile: 1}, {"$dtype": hostile}):
            message = str(refusal(text(node)))
            assert message.isascii()
            assert "\x1b" not in message
            assert len(message) < 1500


def test_a_refusal_of_many_faults_stays_readable() -> None:
    """A document with thousands of faults is refused with the first of them and their number."""
    message = str(refusal(text(*({"$class": f"a.A{i}"} for i in range(5000)))))
    assert "4999 more:" in message
    assert "... and 4980 more." in message
    assert message.count("\n") < 30


def test_every_code_is_in_the_table_of_codes() -> None:
    """The codes that the package raises are those that the docstring of the format lists, and no others."""
    sources = "".join(path.read_text() for path in Path(recipe_format.__file__).parent.rglob("*.py"))
    raised = set(re.findall(r'(?:Flaw|Fault)\(\s*"([a-z0-9-]+)"', sources))
    table = str(recipe_format.__doc__).split("Codes of refusals", 1)[1].split("Invariants", 1)[0]
    listed = set(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+|\bcycle\b", table))
    assert raised == listed


LIMITS: dict[str, tuple[Limits, str, dict[str, Any], dict[str, Any]]] = {
    "size": (Limits(size=300), "too-large", document("a" * 300), document("a")),
    "depth": (Limits(depth=4), "too-deep", document([[]]), document([])),
    "values": (Limits(values=12), "too-many", document(*range(9)), document(1)),
    "calls": (Limits(calls=2), "too-many", document(call(), call()), document(call())),
    "entries": (Limits(entries=1), "too-many", document(tape=[entry(), entry()]), document(tape=[entry()])),
    "string": (Limits(string=30), "too-long", document("a" * 31), document("a" * 30)),
}


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_can_be_set_by_the_caller(name: str) -> None:
    """A document beyond a limit is refused, one within it is read, and the default limits read both."""
    limits, code, hostile, honest = LIMITS[name]
    assert refusal(json.dumps(hostile), limits=limits).code == code
    assert Recipe.from_json(json.dumps(honest), limits=limits).record().cls is Net
    assert read(json.dumps(hostile)).cls is Net


def test_the_default_limits_are_those_that_are_promised() -> None:
    """4 MiB, depth 64, 100 000 values, 10 000 calls, 10 000 entries, strings of 64 KiB."""
    limits = Limits()
    assert (limits.size, limits.depth, limits.values) == (4 * 2**20, 64, 100_000)
    assert (limits.calls, limits.entries, limits.string) == (10_000, 10_000, 2**16)
