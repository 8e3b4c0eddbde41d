"""What is in a model file, shown without following it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

import replayml
from replayml.core.errors import RecipeError
from replayml.core.tape import CallRecord, TapeEntry, Where
from replayml.recipe import Limits, Recipe
from replayml.recipe.views.inspection import NameNote
from tests.recipe.samples import MONEY, TRUST, Mode, Money, Net, Options, helper, records

ROOT = Path(__file__).parents[2]


def sample() -> Recipe:
    """Return a recipe that has some of everything."""
    layer = CallRecord(nn.Linear, (2, 3), {"bias": False}, [], Where("net.py", 9))
    inner = CallRecord(Net, (layer,), {}, [TapeEntry(("0",), "adjust", (1,))])
    args = (inner, [layer, {"a": Options(0.5)}], functools.partial(helper, 1), torch.ones(2, 3), Mode.FAST, nn.GELU)
    tape = [TapeEntry(("a", "0"), "adjust", (CallRecord(nn.ReLU),), {"rate": 0.5}, Where("train.py", 7))]
    record = CallRecord(Net, args, {"width": 4, "odd name": (1, None)}, tape, Where("net.py", 3))
    return Recipe.of(record, allow_pickle=True)


REPORT = """\
model in text, format 2, {size} bytes, fingerprint {fingerprint}
written with python {python}, replayml {replayml}, torch {torch}
structure
  Net(Net, [<the same as object 0>, {{'a': Options(...)}}], <pickle of functools.partial>, tensor(float32, 2x3), \
Mode.FAST, GELU, odd name=tuple(1, None), width=4)  (net.py:3)
  ├─ Net(Linear)
  │    0: model[0].adjust(1)
  │  └─ Linear(2, 3, bias=False)  (net.py:9)
  └─ ReLU()
tape
  0: model.a[0].adjust(ReLU, rate=0.5)  (train.py:7)
names: 2 of 6 cannot be used now
  tests.recipe.samples.Mode     enum  ! the class 'tests.recipe.samples.Mode' is not known to this program, or not \
trusted. The nearest name that is: 'tests.recipe.samples.Net'. If it is a replayml module, import the module that \
defines it; anything else that you trust is handed in as an object: trust=[...].
  tests.recipe.samples.Net      call
  tests.recipe.samples.Options  dataclass
  torch.nn.GELU                 class
  torch.nn.Linear               call
  torch.nn.ReLU                 call
pickled values: 1, which run code when they are opened (allow_pickle=True)
  model.args[2]: functools.partial, {pickle} bytes
4 calls, 2 tape entries, {values} values, 1 tensor
Nothing was imported, called or unpickled."""


def test_the_report_shows_everything() -> None:
    """Structure, tape with lines, names with what they are for, pickles, counts and versions."""
    recipe = sample()
    found = replayml.inspect(recipe, trust=[Options])
    text = str(found)
    values = {
        "size": len(recipe.to_json()),
        "fingerprint": recipe.fingerprint[:12],
        "pickle": found.blobs[0].bytes,
        "values": found.counts["value"],
    }
    expected = REPORT.format(**values, **recipe.packages)
    # the nearest name to one that is not trusted depends on which classes other tests have made
    lines = [line for line in text.split("\n") if "samples.Mode " not in line]
    assert lines == [line for line in expected.replace("2 of 6", "1 of 6").split("\n") if "samples.Mode " not in line]
    assert "tests.recipe.samples.Mode     enum  ! the class 'tests.recipe.samples.Mode' is not known" in text


def test_an_inspection_is_data() -> None:
    """Every part can be read, and `to_dict` gives plain data that JSON can hold."""
    found = replayml.inspect(sample())
    assert (found.source, found.form, found.version, found.is_trusted) == ("text", "text", 2, False)
    assert found.structure.name == "tests.recipe.samples.Net"
    assert [call.place for call in found.structure.calls] == ["model.args[0]", "model.tape[0].args[0]"]
    assert found.tape[0].where == Where("train.py", 7)
    assert [note.name for note in found.names if not note.is_trusted] == [
        "tests.recipe.samples.Mode",
        "tests.recipe.samples.Options",
    ]
    assert found.blobs[0].place == "model.args[2]"
    assert {key: found.counts[key] for key in ("call", "tape entry", "tensor")} == {
        "call": 4,
        "tape entry": 2,
        "tensor": 1,
    }
    data = json.loads(json.dumps(found.to_dict()))
    assert data["structure"]["calls"][0]["calls"][0]["where"] == "net.py:9"
    assert data["trusted"] is False
    assert data["names"][0]["kinds"] == ["enum"]
    assert data["weights"] is None


@given(records())
def test_whatever_can_be_written_can_be_shown(record: CallRecord) -> None:
    """Any recipe is shown, and its names and trust are those that reading it finds."""
    recipe = Recipe.of(record, codecs=[MONEY])
    found = replayml.inspect(recipe.to_json(), trust=TRUST)
    assert str(found)
    assert json.dumps(found.to_dict())
    assert tuple(note.name for note in found.names) == recipe.names
    assert found.is_trusted
    recipe.record(TRUST)


def test_trust_and_rename_are_those_of_loading() -> None:
    """What loading would be given decides what is shown as usable."""
    recipe = Recipe.of(CallRecord(Net, (Money(1), helper)), codecs=[MONEY])
    notes = replayml.inspect(recipe).names
    assert {note.name: note.is_trusted for note in notes}["tests.recipe.samples.Net"]
    assert not {note.name: note.is_trusted for note in notes}["tests.recipe.samples.helper"]
    assert replayml.inspect(recipe, trust=[MONEY, helper]).is_trusted
    moved = recipe.to_json().replace("tests.recipe.samples", "old.pkg")
    assert not replayml.inspect(moved, trust=[MONEY, helper]).is_trusted
    assert replayml.inspect(moved, trust=[MONEY, helper], rename={"old.pkg": "tests.recipe.samples"}).is_trusted


def test_what_a_file_gives_is_escaped_and_cut() -> None:
    """Names and texts of a file reach the terminal without control characters and in short."""
    hostile = "\x1b[31m" + "a" * 3000
    call = {"$call": hostile, "args": [hostile, {"$class": hostile}], "kwargs": {hostile: 1}, "where": [hostile, 1]}
    call["tape"] = [{"$entry": hostile, "args": [], "kwargs": {}, "tags": [hostile, "\N{SUPERSCRIPT TWO}"]}]
    packages = {"\x1b]0;": "\x07"}
    text = json.dumps({"format": "replayml.recipe", "version": 2, "packages": packages, "model": call})
    report = str(replayml.inspect(text))
    assert report.replace("\n", "").isprintable()
    assert report.replace("├", "").replace("└", "").replace("─", "").isascii()
    assert max(map(len, report.split("\n"))) < 600


def test_a_large_report_is_cut() -> None:
    """A model of thousands of layers is shown in part, with how much there is."""
    recipe = Recipe.of(CallRecord(Net, ([CallRecord(nn.ReLU) for _ in range(3000)],)))
    report = str(replayml.inspect(recipe))
    assert "... and 2801 more" in report
    assert "3001 calls" in report
    assert report.count("\n") < 300


def test_what_is_no_recipe_is_refused() -> None:
    """A text that loading would refuse for its form is refused here, with the same code; limits can be set."""
    cases: list[tuple[str | bytes, str]] = [
        ("", "not-json"),
        ("{}", "wrong-format"),
        ("[1]", "wrong-format"),
        (b"PK\x03\x04", "foreign-format"),
    ]
    for text, code in cases:
        with pytest.raises(RecipeError, match=rf"^\[{code}\]"):
            replayml.inspect(text)
    with pytest.raises(RecipeError, match="too-large"):
        replayml.inspect(sample().to_json(), limits=Limits(size=100))


# Files --------------------------------------------------------------------------------------------------------------


def test_a_file_with_a_recipe_is_shown(tmp_path: Path) -> None:
    """A path, as text or as an object, to the text of a recipe."""
    path = tmp_path / "net.json"
    path.write_text(sample().to_json())
    for source in (path, str(path)):
        found = replayml.inspect(source)
        assert (found.source, found.form, found.fingerprint) == (str(path), "text", sample().fingerprint)
    with pytest.raises(FileNotFoundError):
        replayml.inspect(tmp_path / "gone.json")


@pytest.mark.parametrize("name", ["net.replayml", "folder"])
def test_a_model_file_is_shown_with_its_weights(tmp_path: Path, name: str) -> None:
    """Of a saved model the numbers, types and shapes of its weights are shown; no tensor is read."""
    model: Any = replayml.MultiLayerPerceptron(4, [8], 2).build()
    model.save(tmp_path / name)
    found = replayml.inspect(tmp_path / name)
    assert found.form == ("file" if name.endswith("l") else "folder")
    assert found.weights is not None
    assert (found.weights.tensors, found.weights.parameters, found.weights.bytes) == (4, 58, 232)
    assert found.weights.shapes["blocks.0.layer.weight"] == (8, 4)
    assert "weights: 58 numbers, 232 bytes, in tensors: 4 float32" in str(found)
    assert found.to_dict()["weights"]["dtypes"] == {"float32": 4}
    assert found.fingerprint == model.recipe().fingerprint


def test_a_checkpoint_is_shown(tmp_path: Path) -> None:
    """The recipe in a Lightning checkpoint, and its weights."""
    app = replayml.Regressor(replayml.MultiLayerPerceptron(4, [8], 1)).build(torch.zeros(1, 4))
    app.save(tmp_path / "app.ckpt")
    found = replayml.inspect(tmp_path / "app.ckpt")
    assert (found.form, found.structure.name) == ("checkpoint", "replayml.training.regressor.Regressor")
    assert found.weights is not None
    assert found.weights.parameters == 49
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(RecipeError, match=r"no-recipe.*carries no recipe. Nothing was imported, called or unpickled"):
        replayml.inspect(tmp_path / "other.ckpt")
    torch.save({"hyper_parameters": print}, tmp_path / "evil.ckpt")
    with pytest.raises(RecipeError, match="unsafe-file"):
        replayml.inspect(tmp_path / "evil.ckpt")
    with pytest.raises(FileNotFoundError):
        replayml.inspect(tmp_path / "gone.ckpt")


def test_nothing_is_imported_for_a_name() -> None:
    """A name in a module that the program has not imported stays unknown, and is not imported to look."""
    program = """
import sys, json, replayml
replayml.inspect(replayml.Layer(int).recipe() if False else replayml.External(int).recipe())
call = {"$call": "antigravity.Net", "args": [{"$class": "this.Zen"}], "kwargs": {}}
before = set(sys.modules)
found = replayml.inspect(json.dumps({"format": "replayml.recipe", "version": 2, "packages": {}, "model": call}))
print(sorted(set(sys.modules) - before), [note.is_trusted for note in found.names])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] [False, False]"


def test_the_notes_are_values() -> None:
    """What is told about a name can be compared."""
    (note,) = replayml.inspect(Recipe.of(CallRecord(nn.ReLU))).names
    assert note == NameNote("torch.nn.ReLU", ("call",), 1, True, "")
