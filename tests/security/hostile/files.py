"""Hostile model files, folders and checkpoints.

Most are made of an honest one, of which one thing is changed; seals and digests are made to fit again, since their
author would do so as well.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dill
import safetensors.torch
import torch
from torch import nn

import replayml
from tests.security.hostile.case import Case, Write
from tests.security.hostile.models import Small

__all__ = ["CASES"]

ZEROS = "0" * 64
MANIFEST = "manifest.json"


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hostile-was-here",)


def built() -> Any:
    """Return a built model with an inferred size."""
    return Small().build(torch.zeros(4, 5))


# Model files --------------------------------------------------------------------------------------------------------


def honest_file(folder: Path) -> Path:
    """Write an honest model file."""
    path = folder / "net.replayml"
    built().save(path)
    return path


@lru_cache(1)
def _parts() -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of an honest model file."""
    with TemporaryDirectory() as folder:
        data = honest_file(Path(folder)).read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def sealed(header: dict[str, Any] | str, data: bytes) -> bytes:
    """Return a file with a seal that fits its header."""
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    text += " " * (-(8 + len(text)) % 64)
    whole = bytearray(len(text).to_bytes(8, "little") + text.encode())
    start = whole.index(b'"replayml.seal":"') + len(b'"replayml.seal":"')
    whole[start : start + 64] = ZEROS.encode()
    whole[start : start + 64] = hashlib.sha256(whole).hexdigest().encode()
    return bytes(whole) + data


def header_case(name: str, code: str, change: Callable[[dict[str, Any]], Any], category: str = "safetensors") -> Case:
    """Return the case of a model file with another header, sealed again."""

    def write(folder: Path) -> Path:
        header, data = _parts()
        header = json.loads(json.dumps(header))
        changed = change(header)
        path = folder / "net.replayml"
        path.write_bytes(sealed(changed if isinstance(changed, (str, dict)) else header, data))
        return path

    return Case(category, name, code, write, honest_file, "load")


def bytes_case(name: str, code: str, change: Callable[[bytes], bytes], category: str = "safetensors") -> Case:
    """Return the case of a model file with other bytes."""

    def write(folder: Path) -> Path:
        path = honest_file(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return Case(category, name, code, write, honest_file, "load")


def _entry(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(changes)


def _drop(header: dict[str, Any]) -> None:
    del header["head.bias"]


def _metadata(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(header: dict[str, Any]) -> None:
        change(header["__metadata__"])

    return apply


def _recipe(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """Return a change of the recipe in a header; the digest of the recipe is made to fit."""

    def apply(header: dict[str, Any]) -> None:
        metadata = header["__metadata__"]
        document = json.loads(metadata["replayml.recipe"])
        change(document)
        text = json.dumps(document, separators=(",", ":"), sort_keys=True)
        metadata["replayml.recipe"] = text
        _set_state(metadata, recipe=hashlib.sha256(text.encode()).hexdigest())

    return apply


def _set_state(metadata: dict[str, Any], **values: Any) -> None:
    state = json.loads(metadata["replayml.state"]) | values
    metadata["replayml.state"] = json.dumps(state, separators=(",", ":"), sort_keys=True)


def _state(**values: Any) -> Callable[[dict[str, Any]], None]:
    return _metadata(lambda metadata: _set_state(metadata, **values))


def _flipped(at: Callable[[bytes], int]) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at(data)] ^= 4
        return bytes(changed)

    return flip


def _wide(document: dict[str, Any]) -> None:
    document["model"]["args"] = [10**9]


def _safetensors() -> Iterator[Case]:
    yield bytes_case("empty", "wrong-size", lambda _: b"")
    yield bytes_case("cut in the header", "wrong-size", lambda data: data[:200])
    yield bytes_case("cut in the tensors", "bad-weights", lambda data: data[:-4])
    yield bytes_case("a byte more", "wrong-size", lambda data: data + b"\0")
    yield bytes_case("a bit in the header", "changed-file", _flipped(lambda data: data.index(b"head.bias")))
    yield bytes_case("a bit in the tensors", "changed-file", _flipped(lambda data: len(data) - 3))
    yield bytes_case("a long header", "too-large", lambda data: (2**63 - 1).to_bytes(8, "little") + data[8:])
    yield bytes_case(
        "a header longer than the file", "wrong-size", lambda data: (2**20).to_bytes(8, "little") + data[8:]
    )
    yield bytes_case("a short header", "changed-file", lambda data: (100).to_bytes(8, "little") + data[8:])
    yield bytes_case("a pickle", "foreign-format", lambda _: pickle.dumps(Evil()))
    yield bytes_case("gzip", "foreign-format", lambda data: gzip.compress(data))
    yield bytes_case("hdf5", "foreign-format", lambda _: b"\x89HDF\r\n\x1a\n" + bytes(100))
    yield bytes_case("no recipe", "foreign-format", lambda _: safetensors.torch.save({"a": torch.ones(2)}))
    yield header_case("overlap", "bad-weights", lambda header: _entry("head.bias", data_offsets=[0, 8])(header))
    yield header_case("beyond the end", "bad-weights", _entry("head.bias", data_offsets=[10**9, 10**9 + 8]))
    yield header_case("before the start", "bad-weights", _entry("head.bias", data_offsets=[-8, 0]))
    yield header_case("offsets of text", "bad-weights", _entry("head.bias", data_offsets=["0", "8"]))
    yield header_case("an unknown type", "bad-weights", _entry("head.bias", dtype="object"))
    yield header_case("a shape that does not fit", "bad-weights", _entry("head.bias", shape=[2**40]))
    yield header_case("a shape beyond 64 bits", "bad-weights", _entry("head.bias", shape=[2**62, 2**62]))
    yield header_case("a negative shape", "bad-weights", _entry("head.bias", shape=[-2]))
    yield header_case("a key more", "bad-weights", _entry("head.bias", code="print()"))
    yield header_case("nested", "too-deep", _entry("head.bias", shape=[[[[[[1]]]]]]))
    yield header_case("no recipe in the header", "bad-weights", _metadata(lambda m: m.pop("replayml.recipe")))
    yield header_case("a key more in the header", "bad-weights", _metadata(lambda m: m.update(code="print()")))
    yield header_case(
        "a key twice",
        "duplicate-key",
        lambda header: json.dumps(header, separators=(",", ":"))[:-1] + ',"head.bias":1}',
    )
    yield header_case(
        "another recipe", "bad-weights", _metadata(lambda m: m.update({"replayml.recipe": m["replayml.recipe"] + " "}))
    )
    yield header_case(
        "an untrusted name", "untrusted-name", _recipe(lambda d: d["model"].update({"$call": "os.system"}))
    )
    yield header_case(
        "a pickle in the recipe",
        "opaque-value",
        _recipe(lambda d: d["model"]["args"].append({"$opaque": ["gAR9lC4="], "type": "int"})),
    )
    yield header_case("a huge model", "too-much-memory", _recipe(_wide))


def _shape() -> Iterator[Case]:
    def case(name: str, code: str, change: Callable[[dict[str, Any]], Any]) -> Case:
        return header_case(name, code, change, "shape")

    def reshaped(header: dict[str, Any]) -> None:
        header["head.weight"]["shape"] = [3, 2]

    def retyped(header: dict[str, Any]) -> None:
        header["head.bias"] |= {"dtype": "F16", "shape": [4]}

    def renamed(header: dict[str, Any]) -> None:
        header["head.other"] = header.pop("head.bias")

    yield case("another shape", "CheckpointError", reshaped)
    yield case("another type", "CheckpointError", retyped)
    yield case("another name", "CheckpointError", renamed)
    yield case("a weight less", "wrong-size", _drop)
    yield case("another model", "CheckpointError", _recipe(lambda d: d["model"]["args"].append(7)))
    yield case("a tie to nothing", "bad-weights", _state(ties={"x": "nothing"}))
    yield case("a tie over a weight", "bad-weights", _state(ties={"head.bias": "norm.bias"}))
    yield case("a tie too much", "CheckpointError", _state(ties={"x": "head.bias"}))
    yield case("a type that is none", "bad-weights", _state(dtype="torch.load"))
    yield case("sizes of text", "bad-build-arguments", _state(sizes="print()"))
    yield case("sizes of something else", "bad-build-arguments", _state(sizes='[[["nothing"], {"in_features": 4}]]'))
    yield case("a size that is none", "bad-build-arguments", _state(sizes='[[["hidden"], {"out_features": 4}]]'))
    yield case("a size of a dunder", "bad-build-arguments", _state(sizes='[[["hidden"], {"__class__": 4}]]'))
    yield case("a huge size", "too-much-memory", _state(sizes='[[["hidden"], {"in_features": 1000000000000000}]]'))


# Folders ------------------------------------------------------------------------------------------------------------


def honest_folder(folder: Path) -> Path:
    """Write an honest model folder."""
    path = folder / "net"
    built().save(path)
    return path


def honest_hub(folder: Path) -> Path:
    """Write an honest folder for the Hub."""
    path = folder / "net"
    built().save_pretrained(path)
    return path


def folder_case(name: str, code: str, change: Callable[[Path], Any], honest: Write = honest_folder) -> Case:
    """Return the case of a changed folder."""

    def write(folder: Path) -> Path:
        path = honest(folder)
        change(path)
        return path

    return Case("folder", name, code, write, honest, "load")


def manifest_case(name: str, code: str, change: Callable[[dict[str, Any]], Any]) -> Case:
    """Return the case of another manifest, sealed again."""

    def rewrite(path: Path) -> None:
        document = json.loads((path / MANIFEST).read_text())
        document.pop("seal")
        change(document)
        seal = hashlib.sha256(_spelled(document)).hexdigest()
        (path / MANIFEST).write_bytes(_spelled({**document, "seal": seal}))

    return folder_case(name, code, rewrite)


def _spelled(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _only(path: Path, *patterns: str) -> Path:
    (found,) = [file for pattern in patterns for file in path.glob(pattern)]
    return found


def _emptied(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def _replaced(path: Path) -> None:
    """Put a model of another shape in the place of the weights."""
    weights = _only(path, "model-*.safetensors")
    other = path.parent / "other"
    Small(7).build(torch.zeros(4, 5)).save(other)
    weights.write_bytes(_only(other, "model-*.safetensors").read_bytes())


def _link(target: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        recipe = _only(path, "recipe-*.json")
        recipe.unlink()
        recipe.symlink_to(target)

    return link


def _folders() -> Iterator[Case]:
    yield folder_case("empty", "not-a-model", _emptied)
    yield folder_case("no manifest", "not-a-model", lambda path: (path / MANIFEST).unlink())
    yield folder_case("a pipe as manifest", "not-regular", lambda path: _pipe(path / MANIFEST))
    yield folder_case("a pipe as recipe", "not-regular", lambda path: _pipe(_only(path, "recipe-*.json")))
    yield folder_case("a pipe as weights", "not-regular", lambda path: _pipe(_only(path, "model-*.safetensors")))
    yield folder_case("a device as recipe", "not-regular", _link("/dev/zero"))
    yield folder_case("no recipe", "missing-file", lambda path: _only(path, "recipe-*.json").unlink())
    yield folder_case("no weights", "missing-file", lambda path: _only(path, "model-*.safetensors").unlink())
    yield folder_case("weights of another model", "wrong-size", _replaced)
    yield folder_case(
        "a recipe of the same length",
        "changed-file",
        lambda path: _rewrite(_only(path, "recipe-*.json"), lambda data: data.replace(b"Small", b"Smell")),
    )
    yield folder_case("a large manifest", "too-large", lambda path: (path / MANIFEST).write_bytes(b"{" * 10**6))
    yield folder_case(
        "a bit in the manifest", "bad-manifest", lambda path: _rewrite(path / MANIFEST, _flipped(lambda data: 150))
    )
    yield manifest_case("a path upwards", "bad-manifest", lambda d: d["recipe"].update(name="../../../etc/passwd"))
    yield manifest_case("an absolute path", "bad-manifest", lambda d: d["recipe"].update(name="/etc/passwd"))
    yield manifest_case("a name of another kind", "bad-manifest", lambda d: d["weights"].update(name="model.pkl"))
    yield manifest_case("a key more", "bad-manifest", lambda d: d.update(code="print()"))
    yield manifest_case("a newer version", "newer-version", lambda d: d.update(version=2))
    yield manifest_case("another format", "not-a-model", lambda d: d.update(format="keras"))
    yield manifest_case("a size of text", "bad-manifest", lambda d: d["recipe"].update(size="1"))
    yield manifest_case("another digest", "changed-file", lambda d: d["recipe"].update(sha256=ZEROS))
    yield manifest_case("another seal", "changed-file", lambda d: d["weights"].update(seal=ZEROS))
    config = folder_case(
        "another config.json",
        "changed-file",
        lambda path: _rewrite(path / "config.json", lambda data: data.replace(b"Small", b"Smell")),
        honest_hub,
    )
    yield config
    yield folder_case(
        "a pickle beside config.json",
        "not-a-model",
        lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"),
        honest_hub,
    )


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


# Checkpoints --------------------------------------------------------------------------------------------------------


def honest_checkpoint(folder: Path) -> Path:
    """Write an honest checkpoint."""
    path = folder / "app.ckpt"
    replayml.Regressor(Small(), loss=nn.MSELoss()).build(torch.zeros(4, 5)).save(path)
    return path


def checkpoint_case(name: str, code: str, change: Callable[[dict[str, Any]], Any]) -> Case:
    """Return the case of a checkpoint with other contents."""

    def write(folder: Path) -> Path:
        path = honest_checkpoint(folder)
        content = torch.load(path, weights_only=True)
        changed = change(content)
        torch.save(changed if isinstance(changed, list) else content, path)
        return path

    return Case("checkpoint", name, code, write, honest_checkpoint, "checkpoint")


def archive_case(name: str, code: str, change: Callable[[Path], Any]) -> Case:
    """Return the case of a checkpoint with other bytes."""

    def write(folder: Path) -> Path:
        path = honest_checkpoint(folder)
        change(path)
        return path

    return Case("checkpoint", name, code, write, honest_checkpoint, "checkpoint")


RECIPE = "__from_ckpt_application"
KWARGS = "__build_kwargs"


def _parameters(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["hyper_parameters"].update(values)


def _in_recipe(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        parameters = content["hyper_parameters"]
        assert old in parameters[RECIPE]
        parameters[RECIPE] = parameters[RECIPE].replace(old, new)

    return change


def _no_recipe(content: dict[str, Any]) -> None:
    content["hyper_parameters"] = {"_instantiator": "os.system", "_class_path": "os.system", "hparams_name": "kwargs"}


def _reshaped(content: dict[str, Any]) -> None:
    content["state_dict"]["model.head.weight"] = torch.zeros(9, 9)


def _unrelated(content: dict[str, Any]) -> None:
    content["state_dict"] = {f"x{number}": torch.zeros(1) for number in range(9)}


def _packed(size: int) -> Callable[[Path], None]:
    def pack(path: Path) -> None:
        with zipfile.ZipFile(path) as source:
            parts = {part.filename: source.read(part) for part in source.infolist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for name, data in parts.items():
                target.writestr(name, data + bytes(size if name.endswith("data.pkl") else 0))

    return pack


def _legacy(path: Path) -> None:
    torch.save({"state_dict": {}, "evil": Evil()}, path, _use_new_zipfile_serialization=False)


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _checkpoints() -> Iterator[Case]:
    yield checkpoint_case("a command among the parameters", "unsafe-file", _parameters(evil=Evil()))
    yield checkpoint_case("a command in the weights", "unsafe-file", lambda c: c["state_dict"].update(evil=Evil()))
    yield checkpoint_case("a command in a callback", "unsafe-file", lambda c: c.update(callbacks={"a": Evil()}))
    yield checkpoint_case("a pickle as recipe", "not-text", _parameters(**{RECIPE: dill.dumps(Evil())}))
    yield checkpoint_case("a function as recipe", "unsafe-file", _parameters(**{RECIPE: print}))
    yield checkpoint_case("no recipe, but a name to call", "no-recipe", _no_recipe)
    yield checkpoint_case("a recipe that is none", "not-json", _parameters(**{RECIPE: "import os"}))
    yield checkpoint_case(
        "an untrusted name", "untrusted-name", _in_recipe("tests.security.hostile.models.Small", "os.system")
    )
    yield checkpoint_case("arguments for build", "bad-build-arguments", _parameters(__build_args=[torch.zeros(1)]))
    yield checkpoint_case("a device for build", "bad-build-arguments", _parameters(**{KWARGS: {"device": "cuda"}}))
    yield checkpoint_case("sizes of text", "bad-build-arguments", _parameters(**{KWARGS: {"sizes": "print()"}}))
    yield checkpoint_case("sizes of bytes", "bad-build-arguments", _parameters(**{KWARGS: {"sizes": b"[]"}}))
    huge = '[[["model", "hidden"], {"in_features": 1000000000000000}]]'
    yield checkpoint_case("a huge size", "too-much-memory", _parameters(**{KWARGS: {"sizes": huge}}))
    yield checkpoint_case("another shape", "CheckpointError", _reshaped)
    yield checkpoint_case("other weights", "CheckpointError", _unrelated)
    yield checkpoint_case("weights that are none", "CheckpointError", lambda c: c.update(state_dict=[1]))
    yield checkpoint_case("a list", "CheckpointError", lambda c: [c])
    yield archive_case("a pickle of old", "unsafe-file", _legacy)
    yield archive_case("a plain pickle", "unsafe-file", lambda path: path.write_bytes(pickle.dumps(Evil())))
    yield archive_case("cut", "unsafe-file", lambda path: _rewrite(path, lambda data: data[:-100]))
    yield archive_case("empty", "unsafe-file", lambda path: path.write_bytes(b""))
    yield archive_case("packed", "unsafe-file", _packed(0))
    yield archive_case("a bomb", "unsafe-file", _packed(300 * 2**20))
    yield archive_case("a pipe", "not-regular", _pipe)
    yield archive_case("a folder", "CheckpointError", _folder_instead)


CASES = [*_safetensors(), *_shape(), *_folders(), *_checkpoints()]
