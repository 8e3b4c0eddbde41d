"""Hostile recipes: what they name, what they call, how they are spelled, and what would come of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.recipe import test_refusals as refusals
from tests.security.hostile.case import Case, text_case

__all__ = ["CASES"]

MODELS = "tests.security.hostile.models"


def _parser() -> Iterator[Case]:
    for name, (code, text) in refusals.TEXTS.items():
        yield text_case("parser", name, code, text, refusals.HONEST)
    for name, (code, hostile, honest) in refusals.VALUES.items():
        texts = [refusals.text("HERE").replace('"HERE"', each) for each in (hostile, honest)]
        yield text_case("parser", name, code, *texts)


def _spelling() -> Iterator[Case]:
    for name, (code, _, hostile, honest) in refusals.DOCUMENTS.items():
        yield text_case("spelling", name, code, json.dumps(hostile), json.dumps(honest))


def _names() -> Iterator[Case]:
    for name, (code, hostile, honest) in refusals.NAMES.items():
        yield text_case("names", name, code, refusals.text(hostile), refusals.text(honest))
    modules = ["os.system", "subprocess.Popen", "builtins.exec", "torch.load", "torch.hub.load", "pickle.loads"]
    for module in [*modules, "ctypes.CDLL", "importlib.import_module", "torch.ops.load_library", "socket.socket"]:
        for tag in ("$function", "$class"):
            node = {tag: module}
            yield text_case("names", f"{tag} {module}", "untrusted-name", refusals.text(node), refusals.text([1]))
        call = {"$call": module, "args": ["touch /tmp/hostile"], "kwargs": {}}
        honest = {"$call": "torch.nn.Dropout", "args": [0.5], "kwargs": {}}
        yield text_case("names", f"$call {module}", "untrusted-name", refusals.text(call), refusals.text(honest))
    pickled = {"$opaque": ["gASVIQAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAZ0b3VjaCB4lIWUUpQu"], "type": "int"}
    yield text_case(
        "names", "a pickle", "opaque-value", json.dumps(refusals.document(pickled, version=2)), refusals.text(1)
    )
    dunder = {"$call": "torch.nn.Linear.__init__.__globals__", "args": [], "kwargs": {}}
    yield text_case("names", "through dunders", "untrusted-name", refusals.text(dunder), refusals.text(1))
    layer = {
        "$call": "replayml.layers.external.External",
        "args": [{"$function": "os.system"}, "touch x"],
        "kwargs": {},
    }
    safe = {"$call": "replayml.layers.external.External", "args": [{"$class": "torch.nn.ReLU"}], "kwargs": {}}
    yield text_case("names", "wrapped in External", "untrusted-name", refusals.text(layer), refusals.text(safe))


def _methods() -> Iterator[Case]:
    for method in refusals.METHODS:
        for tags in ([], ["child"]):
            hostile, honest = (refusals.text(tape=[refusals.entry(each, tags)]) for each in (method, "adjust"))
            yield text_case("methods", f"{method!r} below {tags}", "bad-method", hostile, honest)
    for tag in ("", "__class__", "__dict__", 1, None):
        hostile = refusals.text(tape=[refusals.entry(tags=["a", tag])])
        honest = refusals.text(tape=[refusals.entry(tags=["a", "b"])])
        yield text_case("methods", f"on {tag!r}", "bad-target", hostile, honest)


def _made(name: str, args: Any, kwargs: Any = None, inner: Any = None) -> str:
    call = {"$call": name, "args": list(args) if inner is None else [inner] * args, "kwargs": kwargs or {}}
    return json.dumps({"format": "replayml.recipe", "version": 2, "packages": {}, "model": call})


def _sizes() -> Iterator[Case]:
    def sized(name: str, code: str, cls: str, hostile: Any, honest: Any, **limits: Any) -> Case:
        return text_case("build size", name, code, _made(cls, hostile), _made(cls, honest), "model", **limits)

    yield sized("a linear layer", "too-much-memory", "torch.nn.Linear", (10**9, 10**9), (10, 10))
    yield sized("more than 64 bits", "too-much-memory", "torch.nn.Linear", (10**12, 10**12), (10, 10))
    yield sized("an embedding", "too-much-memory", "torch.nn.Embedding", (2**62, 1), (9, 1))
    yield sized("a kernel", "too-much-memory", "torch.nn.Conv3d", (10**4, 10**4, 100), (1, 1, 3))
    yield sized("a norm", "too-much-memory", "torch.nn.BatchNorm1d", (10**12,), (10,))
    yield sized("a transformer", "too-much-memory", "torch.nn.Transformer", (8192, 8, 10**6), (8, 2, 1, 1, 8))
    yield sized("a recurrent layer", "too-much-memory", "torch.nn.LSTM", (4096, 8192, 10**6), (4, 4, 2))
    yield sized("a bilinear layer", "too-much-memory", "torch.nn.Bilinear", (10**4, 10**4, 10**4), (2, 2, 2))
    metric = "torchmetrics.classification.MulticlassConfusionMatrix"
    yield sized("a metric", "too-much-memory", metric, (10**6,), (3,))
    layer = {"$call": "torch.nn.Linear", "args": [4096, 4096], "kwargs": {}}
    small = {"$call": "torch.nn.Linear", "args": [2, 2], "kwargs": {}}
    many, few = (_made("torch.nn.Sequential", 3000, inner=each) for each in (layer, small))
    yield text_case("build size", "many layers", "too-much-memory", many, few, "model")
    for how in ("zeros", "repeat", "clone"):
        yield sized(f"in an __init__: {how}", "too-much-memory", f"{MODELS}.Tensors", (1, 10**13, how), (1, 10, how))
    yield sized("many tensors", "too-many-tensors", f"{MODELS}.Tensors", (10**12,), (10,), tensors=5000)
    yield sized("many modules", "too-many-modules", f"{MODELS}.Deep", (10**12,), (10,), modules=5000)
    mlp = "replayml.blocks.components.MultiLayerPerceptron"
    yield sized("a long list", "too-many-modules", mlp, (4, [1] * 30_000, 2), (4, [1] * 30, 2), modules=5000)
    yield sized("for ever", "too-slow", f"{MODELS}.Waiting", (10**15,), (3,), seconds=0.5)

    relu, linear = ({"$call": name, "args": args, "kwargs": {}} for name, args in _SMALL.items())
    for name, cls, hostile, honest in (
        ("copies of a layer", "torch.nn.TransformerEncoder", (relu, 10**9), (_ENCODER, 2)),
        ("copies of copies", "torch.nn.TransformerDecoder", (_made_of([relu] * 2000), 10**9), (_made_of([linear]), 2)),
        ("names without end", "torch.nn.RNN", (1, 1, 10**18), (1, 1, 2)),
        ("weights without end", "torch.nn.LSTM", (1, 1, 10**9), (1, 1, 2)),
        ("a power", "torch.nn.AdaptiveLogSoftmaxWithLoss", (1, 10**6, [*range(1, 30_000)], 2**62), (8, 100, [9], 2)),
        ("a window", "torchmetrics.RunningMean", (10**9,), (3,)),
    ):
        yield sized(name, "too-slow", cls, hostile, honest, seconds=3.0)


def _lengths() -> Iterator[Case]:
    """Lists that a few bytes stand for."""

    def long(name: str, cls: str, hostile: Any, honest: Any) -> Case:
        return text_case("build size", name, "too-many", _made(cls, hostile), _made(cls, honest), "model")

    mlp = "replayml.blocks.components.MultiLayerPerceptron"
    layer = "replayml.layers.layer.Layer"
    norm = {"$class": "torch.nn.LayerNorm"}
    yield long("a range", "torch.nn.LayerNorm", (_range(10**11),), (_range(3),))
    yield long("a range backwards", "torch.nn.Identity", (_range(-(10**18), -3),), (_range(-9, -3),))
    yield long("a range beyond 64 bits", "torch.nn.Identity", ({"$range": [-(2**63), 2**63 - 1, 1]},), (_range(0),))
    yield long("a range of sizes", mlp, (4, _range(10**11), 2), (4, {"$range": [1, 9, 2]}, 2))
    yield long("a range for later", layer, (norm, _range(10**11)), (norm, _range(3)))
    yield long("ranges in a list", "torch.nn.Identity", ([_range(60_000)] * 2,), ([_range(40_000)] * 2,))
    yield long("ranges as keys", "torch.nn.Identity", ({"$set": [_range(10**11)]},), ({"$set": [_range(10)]},))
    for name, many, few, depth in (("a list of lists", 10, 2, 9), ("a tower of lists", 1, 1, 3000)):
        hostile, honest = (_nested(width, depth) for width in (many, few))
        yield long(name, "torch.nn.Identity", (hostile,), (honest if few < many else _nested(1, 300),))
    identity = "torch.nn.Identity"
    first, others = {"$id": 0, "$list": [1.0, 2.0]}, [_call(identity, {"$ref": 0})] * 50
    big, small = ([_call(identity, first | {"$list": [1.0] * size}), *others] for size in (50_000, 2))
    yield long("one list for many", "torch.nn.Sequential", big, small)


def _call(cls: str, *args: Any) -> dict[str, Any]:
    return {"$call": cls, "args": list(args), "kwargs": {}}


def _made_of(layers: list[Any]) -> dict[str, Any]:
    return _call("torch.nn.Sequential", *layers)


def _range(stop: int, step: int = 1) -> dict[str, Any]:
    return {"$range": [0, stop, step]}


def _nested(width: int, depth: int) -> list[Any]:
    """Return lists, each of which refers to the one before so many times."""
    first: dict[str, Any] = {"$id": 0, "$list": [1, 1]}
    last = {"$ref": depth - 1}
    rest: list[Any] = [{"$id": number, "$list": [{"$ref": number - 1}] * width} for number in range(1, depth)]
    return [first, *rest, last]


_SMALL = {"torch.nn.ReLU": [], "torch.nn.Linear": [2, 2]}
_ENCODER = {"$call": "torch.nn.TransformerEncoderLayer", "args": [4, 2, 4], "kwargs": {"batch_first": True}}

CASES = [*_parser(), *_spelling(), *_names(), *_methods(), *_sizes(), *_lengths()]
