"""Sealed files whose seal is whole and whose content is anything: a model file, or a RecipeError."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml.recipe.files.manifest import FileNote, Manifest
from replayml.recipe.files.reading import read_model_file, verify
from replayml.recipe.files.sums import Sums, digest_of

START = b'{"__metadata__":{"replayml.seal":"'


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a model file."""
    path = tmp_path_factory.mktemp("files") / "model.replayml"
    replayml.Sequential(replayml.Layer(nn.Linear, 2, 3), replayml.Layer(nn.BatchNorm1d, 3)).build().save(path)
    return path.read_bytes()


def parts(data: bytes) -> tuple[Any, bytes]:
    """Return the header of a file, and the bytes of its tensors."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def sealed(header: Any, tensors: bytes) -> bytes:
    """Return a file with a header that is sealed, whatever it says."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    whole = len(text).to_bytes(8, "little") + text
    place = 8 + len(START)
    seal = hashlib.sha256(whole[:place] + b"0" * 64 + whole[place + 64 :]).hexdigest()
    return whole[:place] + seal.encode() + whole[place + 64 :] + tensors


def test_a_file_that_is_sealed_again_opens(content: bytes, tmp_path: Path) -> None:
    """The tests below change a file that is otherwise whole."""
    (tmp_path / "again.replayml").write_bytes(sealed(*parts(content)))
    verify(tmp_path / "again.replayml")
    assert (tmp_path / "again.replayml").read_bytes() == content


def _entry(header: Any, **change: Any) -> None:
    header["0.weight"] = {**header["0.weight"], **change}


def _state(header: Any, **change: Any) -> None:
    metadata = header["__metadata__"]
    state = {**json.loads(metadata["replayml.state"]), **change}
    metadata["replayml.state"] = json.dumps({key: value for key, value in state.items() if value is not ...})


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a type that is none": (lambda header: _entry(header, dtype="OBJ"), "bad-weights.*'0.weight' is no tensor"),
    "a negative size": (lambda header: _entry(header, shape=[-3, -2]), "bad-weights.*is no tensor"),
    "a size that is no number": (lambda header: _entry(header, shape=[3, True]), "bad-weights.*is no tensor"),
    "another size": (lambda header: _entry(header, shape=[3, 3]), "bad-weights.*does not fill"),
    "a size beyond all bounds": (lambda header: _entry(header, shape=[2**47, 2**47]), "bad-weights.*does not fill"),
    "bytes of another tensor": (lambda header: _entry(header, data_offsets=[0, 24]), "bad-weights.*overlaps|gap"),
    "bytes beyond the end": (lambda header: _entry(header, data_offsets=[8000, 8024]), "bad-weights.*does not fill"),
    "bytes that go backwards": (lambda header: _entry(header, data_offsets=[32, 8]), "bad-weights.*does not fill"),
    "one more key": (lambda header: _entry(header, more=1), "bad-weights.*is no tensor"),
    "a tensor that is a list": (lambda header: header.update({"0.weight": []}), "bad-weights.*is no tensor"),
    "a tensor less": (lambda header: header.pop("0.weight"), "bad-weights.*gap"),
    "no metadata": (lambda header: header["__metadata__"].pop("replayml.sums"), "bad-weights.*digests"),
    "no recipe": (lambda header: header["__metadata__"].pop("replayml.recipe"), "bad-weights.*not that of a model"),
    "no state": (lambda header: header["__metadata__"].pop("replayml.state"), "bad-weights.*not that of a model"),
    "more metadata": (lambda header: header["__metadata__"].update(x="y"), "bad-weights.*not that of a model"),
    "metadata that are no text": (lambda header: header["__metadata__"].update(x=1), "bad-weights.*no texts"),
    "views that are none": (lambda header: header["__metadata__"].update({"replayml.views": '{"a":1}'}), "bad-weights"),
    "a view of another type": (
        lambda header: header["__metadata__"].update({"replayml.views": '{"0.weight":"complex128"}'}),
        "bad-weights.*no tensor of type complex128",
    ),
    "a state that is no JSON": (
        lambda header: header["__metadata__"].update({"replayml.state": "{"}),
        "not-json",
    ),
    "another recipe": (lambda header: _state(header, recipe="0" * 64), "bad-weights.*recipe is that of another"),
    "a newer state": (lambda header: _state(header, version=99), "newer-version.*Install a newer"),
    "a state with a key less": (lambda header: _state(header, sizes=...), "bad-weights.*not readable"),
    "a state with a key more": (lambda header: _state(header, more=1), "bad-weights.*not readable"),
    "a default type that is none": (lambda header: _state(header, dtype="torch.int8"), "bad-weights.*not readable"),
    "modes that are no modes": (lambda header: _state(header, modes={"": 1}), "bad-weights.*not readable"),
    "a tie to nothing": (lambda header: _state(header, ties={"0.more": "0.less"}), "bad-weights.*tied"),
    "sizes that are none": (lambda header: _state(header, sizes="7"), "bad-build-arguments"),
    "sizes of nothing": (lambda header: _state(header, sizes='[[["9"],{"in_features":1}]]'), "bad-build-arguments"),
    "a size that no input tells": (
        lambda header: _state(header, sizes='[[["0"],{"bias":false}]]'),
        "bad-build-arguments.*takes 'bias'",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_sealed_lie_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    """A header that somebody wrote and sealed is refused with what is wrong, before a tensor is made."""
    change, message = CHANGES[name]
    header, tensors = parts(content)
    change(header)
    (tmp_path / "model.replayml").write_bytes(sealed(header, tensors))
    with pytest.raises(replayml.RecipeError, match=f"(?s){message}"):
        replayml.load(tmp_path / "model.replayml")


def test_weights_of_another_model_are_refused(content: bytes, tmp_path: Path) -> None:
    """A file that says the truth of its tensors, which are not those of its recipe, raises a CheckpointError."""
    header, tensors = parts(content)
    header["0.more"] = header.pop("0.weight")
    (tmp_path / "model.replayml").write_bytes(sealed(header, tensors))
    with pytest.raises(replayml.CheckpointError, match=r"missing: 0 \(weight\); unexpected: 0 \(more\)"):
        replayml.load(tmp_path / "model.replayml")
    header, tensors = parts(content)
    _entry(header, dtype="I32")
    (tmp_path / "model.replayml").write_bytes(sealed(header, tensors))
    with pytest.raises(replayml.CheckpointError, match=r"of another type: 0.weight: torch.int32 in the file"):
        replayml.load(tmp_path / "model.replayml")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_any_header_opens_or_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever value stands anywhere in a sealed header, the file loads or raises one of our two errors."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "any.replayml"
    if not (folder / "whole.replayml").exists():
        replayml.Sequential(replayml.Layer(nn.Linear, 2, 3)).build().save(folder / "whole.replayml")
    header, tensors = parts((folder / "whole.replayml").read_bytes())
    metadata, entry = header["__metadata__"], header["0.weight"]
    state = json.loads(metadata["replayml.state"])
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from([header, metadata, entry, state]))
        keys = [key for key in place if key != "replayml.seal"]
        place[data.draw(st.sampled_from([*keys, "new"]))] = data.draw(values)
    if isinstance(metadata.get("replayml.state"), str):
        metadata["replayml.state"] = json.dumps(state)
    path.write_bytes(sealed(header, tensors))
    with suppress(replayml.RecipeError, replayml.CheckpointError):
        replayml.load(path)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any bytes, also behind the first bytes of a model file, are refused with a RecipeError."""
    path = tmp_path_factory.getbasetemp() / "bytes.replayml"
    for start in (b"", (64).to_bytes(8, "little") + START):
        path.write_bytes(start + data)
        with pytest.raises(replayml.RecipeError):
            read_model_file(path)


@given(st.binary(max_size=9000), st.integers(0, 2**32))
def test_sums_do_not_depend_on_the_pieces(data: bytes, seed: int) -> None:
    """The digest of bytes that come in pieces is that of the whole, and that of a changed word is another."""
    generator = torch.Generator().manual_seed(seed)
    written: list[bytes] = []
    sums = Sums(lambda piece: written.append(bytes(piece)))
    rest = memoryview(data)
    while len(rest):
        count = int(torch.randint(1, 5000, (), generator=generator))
        sums.add(rest[:count])
        rest = rest[count:]
    assert sums.finish() == (digest_of(memoryview(data)), hashlib.sha256(data).hexdigest())
    assert b"".join(written) == data
    if data:
        place = seed % len(data)
        changed = data[:place] + bytes([data[place] ^ (1 + seed % 255)]) + data[place + 1 :]
        assert digest_of(memoryview(changed)) != digest_of(memoryview(data))


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """A manifest that names bytes which are no text, with their right digest, is refused by all that reads."""
    data = b"\xff\xfe{}"
    note = FileNote("recipe-0123456789abcdef.json", len(data), hashlib.sha256(data).hexdigest())
    (tmp_path / note.name).write_bytes(data)
    (tmp_path / "manifest.json").write_bytes(Manifest(note, None, "").to_bytes())
    for read in (replayml.load, replayml.inspect, verify):
        with pytest.raises(replayml.RecipeError, match=r"not-utf8.*byte 0 is not UTF-8.*Nothing was imported"):
            read(tmp_path)


def test_names_of_a_file_are_shown_cut(content: bytes, tmp_path: Path) -> None:
    """A message shows few names of a file, as ASCII and cut, however many and whatever they are."""
    header, tensors = parts(content)
    end = len(tensors)
    names = ["\x1b[2J" + "x" * 500, *(f"0.n{number}" for number in range(500))]
    header.update({name: {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for name in names})
    (tmp_path / "many.replayml").write_bytes(sealed(header, tensors))
    with pytest.raises(replayml.CheckpointError, match=r"unexpected: .*and 490 more") as caught:
        replayml.load(tmp_path / "many.replayml")
    text = str(caught.value)
    assert len(text) < 1000
    assert text.isascii()
    assert text.isprintable()
