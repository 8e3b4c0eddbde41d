"""Documents of every version of the format that was ever written."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from replayml.core.errors import RecipeError
from replayml.core.tape import CallRecord, TapeEntry, TreeRef, Where
from replayml.layers.initializers import Kaiming
from replayml.recipe import Recipe
from replayml.recipe.format import VERSION
from tests.recipe.samples import TRUST, Net, Options, Setup, Versioned, assert_same, helper


def version_1() -> CallRecord:
    """Return the model that the kept document of version 1 stands for."""
    layer = CallRecord(nn.Linear, (2, 3), {"bias": False})
    tape = [TapeEntry(("0",), "adjust", (TreeRef(("1",), "weight"), layer), {"rate": 0.5}, Where("train.py", 7))]
    args = (layer, nn.GELU, torch.tanh, (1, {2.5, "x"}), {"b": [None, True], "a": slice(1, None)}, Options(0.1, ["t"]))
    return CallRecord(Net, args, {"width": 4, "w": torch.tensor([1.5, -2.0])}, tape, Where("net.py", 3))


def version_2() -> CallRecord:
    """Return the model that the kept document of version 2 stands for, the pickled function left out."""
    setup = Setup.model_validate({"learningRate": 0.5, "inner": {"sizes": [3]}})
    tape = [TapeEntry((), "adjust", (Kaiming(nn.Linear, bias=0.5), TreeRef(("a",))), {}, Where("train.py", 9))]
    args = (setup, [setup], CallRecord(Versioned, (), {"width": 3}, [], Where("net.py", 4)))
    return CallRecord(Net, args, {"depth": 2}, tape, Where("net.py", 5))


KEPT: dict[int, tuple[Callable[[], CallRecord], str]] = {
    1: (version_1, "6d463242be1dc1091c0fdf23f4b2c39eabae657429e2280043f7fa9594daaa89"),
    2: (version_2, "7bb92dfbc90d2eb22c247861b0e163144266a7180c28a890350d25b14ad73a7d"),
}


def kept(version: int) -> bytes:
    """Return the document of a version, as an earlier replayml wrote it."""
    return Path(__file__).with_name(f"version_{version}.json").read_bytes()


@pytest.mark.parametrize("version", KEPT)
def test_documents_of_every_version_are_read_for_ever(version: int) -> None:
    """A document that an earlier replayml wrote gives the model that it gave then, and the same fingerprint."""
    make, fingerprint = KEPT[version]
    recipe = Recipe.from_json(kept(version))
    record = recipe.record(TRUST, allow_pickle=True)
    if version == 2:
        opened = record.kwargs.pop("width")
        assert (opened.func, opened.args) == (helper, (7,))
    assert_same(record, make())
    assert recipe.fingerprint == fingerprint


def test_there_is_a_document_of_every_version() -> None:
    """Who raises the version keeps a document of the new one."""
    assert sorted(KEPT) == list(range(1, VERSION + 1))


def test_an_old_document_is_written_again_in_the_present_version() -> None:
    """What was read is of the present version, and equals what is written of the same model today."""
    recipe = Recipe.from_json(kept(1))
    assert json.loads(recipe.to_json())["version"] == VERSION
    assert recipe == Recipe.of(version_1())


def changed(version: int, /, **model: Any) -> str:
    """Return a small document of a version."""
    call = {"$call": "tests.recipe.samples.Net", "args": [], "kwargs": {}, **model}
    return json.dumps({"format": "replayml.recipe", "version": version, "packages": {}, "model": call})


NEWS: list[tuple[str, str, dict[str, Any]]] = [
    ("unknown-tag", "model.args[0]", {"args": [{"$opaque": ["gAR9lC4="], "type": "a"}]}),
    ("unknown-tag", "model.kwargs.a", {"kwargs": {"a": {"$pydantic": "a.B", "fields": {}, "set": []}}}),
    ("unknown-key", "model", {"version": 1}),
]


@pytest.mark.parametrize(("code", "place", "model"), NEWS)
def test_a_document_holds_what_its_version_knew(code: str, place: str, model: dict[str, Any]) -> None:
    """What came with version 2 is refused in version 1, and read in version 2."""
    with pytest.raises(RecipeError, match=rf"^\[{code}\] at .*in (a call of )?version 1") as caught:
        Recipe.from_json(changed(1, **model))
    assert caught.value.where == place
    assert Recipe.from_json(changed(2, **model)).names
    assert Recipe.from_json(changed(1)).record().cls is Net


def test_a_newer_version_is_refused() -> None:
    """A file of the future is never guessed at."""
    with pytest.raises(RecipeError, match=rf"newer-version.*has version {VERSION + 1}; this replayml reads up to"):
        Recipe.from_json(changed(VERSION + 1))


def written_by_hand() -> str:
    """Return the document of the present version; run once when the version is raised, and then kept."""
    record = version_2()
    record.kwargs["width"] = functools.partial(helper, 7)
    return json.dumps(json.loads(Recipe.of(record, allow_pickle=True).to_json()), indent=1)
