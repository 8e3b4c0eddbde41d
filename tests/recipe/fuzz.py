"""Changed documents by the million: each is read or refused with a `RecipeError`; nothing else may come out.

    python -m tests.recipe.fuzz --count 100000 --seed 1

The run prints how many inputs were read, refused when they were parsed, and refused when their record was made, with
the codes of the refusals. An input for which something else happens is printed and ends the run with status 1. The
same seed gives the same inputs.

Three kinds of changes are made in turn: of bytes, of single JSON values, and of parts that are put together anew.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replayml.core.errors import RecipeError
from replayml.recipe import Recipe
from replayml.recipe.text.grammar import TAGS
from replayml.recipe.views.inspection import inspect
from tests.recipe.samples import MONEY, TRUST

TRUSTED: tuple[Any, ...] = tuple(thing for thing in TRUST if thing is not MONEY)  # whose decode may raise what it likes

TEXTS = [Path(__file__).with_name(f"version_{version}.json").read_text() for version in (1, 2)]
COMPACT = [json.dumps(json.loads(text)) for text in TEXTS]

PIECES = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"1", b"-", b"e9", b"NaN", b"null", b"\\u0000", b"\\ud800", b"\xff"]
NAMES = [
    *(
        "torch.nn.Linear",
        "torch.nn.Sequential",
        "torch.relu",
        "torch.optim.SGD",
        "collections.OrderedDict",
        "os.system",
    ),
    *("builtins.int", "replayml.layers.layer.Layer", "replayml.module.module.Module", "torch.nn.DataParallel"),
    *(f"tests.recipe.samples.{name}" for name in ("Net", "Narrow", "Versioned", "Mode", "Access", "Options", "Point")),
    *(f"tests.recipe.samples.{name}" for name in ("Pair", "Setup", "Money", "helper", "NAMES", "st.text")),
]
WORDS = [
    *(
        "",
        "adjust",
        "configure",
        "forward",
        "FAST",
        "READ",
        "inf",
        "nan",
        "-0.0",
        "AAAA",
        "YQ==",
        "float32",
        "cpu",
        "a/b",
    ),
    *(
        "Path",
        "rate",
        "width",
        "__class__",
        "__init__",
        "$id",
        "ä",
        "\x1b[31m",
        "0",
        "7ff8000000000abc",
        "channels_last",
    ),
]
SCALARS: list[Any] = [None, True, False, 0, 1, -1, 2**63, -(2**63), 10**400, 1.5, -0.0, 1e308, *NAMES, *WORDS]
KEYS = sorted({*TAGS, "$id", "args", "kwargs", "tape", "where", "tags", "fields", "items", "member", "data", "version"})

Change = Callable[[random.Random], "str | bytes"]


def some_bytes(dice: random.Random) -> bytes:
    """Return a document with some bytes changed, removed, doubled or cut off."""
    text = bytearray(dice.choice(TEXTS if dice.random() < 0.2 else COMPACT).encode())
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(text) + 1)
        stop = min(len(text), start + dice.choice([0, 1, 1, 2, 5, 20]))
        kind = dice.random()
        if kind < 0.4:
            text[start:stop] = dice.choice(PIECES)
        elif kind < 0.6:
            text[start:stop] = dice.randbytes(dice.randint(0, 4))
        elif kind < 0.8:
            text[start:stop] = bytes(text[start:stop]) * 2
        elif kind < 0.97:
            other = dice.randrange(len(text) + 1)
            text[start:stop] = text[other : other + dice.randint(1, 40)]
        else:
            del text[start:]
    return bytes(text)


def one_value(dice: random.Random) -> str:
    """Return a document in which some JSON values were replaced, taken out, or given another key."""
    document = json.loads(dice.choice(COMPACT))
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        holder, key = _somewhere(document, dice)
        kind = dice.random()
        if kind < 0.55:
            holder[key] = node(dice, 3)
        elif kind < 0.7:
            del holder[key]
        elif kind < 0.85 and isinstance(holder, dict):
            holder[dice.choice(KEYS)] = holder.pop(key)
        else:
            other, at = _somewhere(document, dice)
            holder[key] = json.loads(json.dumps(other[at]))
        if not isinstance(document, dict) or not document:
            break
    return json.dumps(document)


def _somewhere(document: Any, dice: random.Random) -> tuple[Any, Any]:
    """Return a place in a document, deep ones as likely as others."""
    places: list[tuple[Any, Any]] = []
    stack = [document]
    while stack:
        holder = stack.pop()
        for key, item in holder.items() if isinstance(holder, dict) else enumerate(holder):
            places.append((holder, key))
            if isinstance(item, (dict, list)) and item:
                stack.append(item)
    return dice.choice(places)


def new_parts(dice: random.Random) -> str:
    """Return a document whose model is made of random nodes."""
    call = {
        "$call": "tests.recipe.samples.Net",
        "args": [node(dice, 4) for _ in range(dice.randint(0, 3))],
        "kwargs": {},
    }
    model = call if dice.random() < 0.9 else node(dice, 4)
    version = dice.choice([1, 2, 2, 2, 3])
    return json.dumps({"format": "replayml.recipe", "version": version, "packages": {}, "model": model})


def node(dice: random.Random, depth: int) -> Any:
    """Return a random node."""
    if depth == 0 or dice.random() < 0.25:
        return dice.choice(SCALARS)

    def some(most: int = 2) -> list[Any]:
        return [node(dice, depth - 1) for _ in range(dice.randint(0, most))]

    kind = dice.random()
    if kind < 0.2:
        made: Any = {
            "$call": dice.choice(NAMES),
            "args": some(),
            "kwargs": dict.fromkeys(["width", "a"][: dice.randint(0, 2)], 1),
        }
        if dice.random() < 0.3:
            made["tape"] = some()
        if dice.random() < 0.2:
            made["version"] = dice.choice([0, 1, 2, True])
    elif kind < 0.3:
        made = {"$entry": dice.choice(["adjust", "configure", "forward"]), "args": some(), "kwargs": {}, "tags": some()}
    elif kind < 0.4:
        made = {
            dice.choice(["$dataclass", "$pydantic"]): dice.choice(NAMES),
            "fields": {"rate": 0.5, "x": 1},
            "set": [],
        }
    elif kind < 0.65:
        made = {dice.choice(KEYS): node(dice, depth - 1)}
    elif kind < 0.75:
        made = {dice.choice(["$list", "$dict", "$set", "$ordered"]): some()}
    elif kind < 0.8:
        made = {"$ref": dice.randint(0, 2)}
    elif kind < 0.9:
        made = some(4)
    else:
        made = {dice.choice([*KEYS, *WORDS]): node(dice, depth - 1) for _ in range(dice.randint(0, 3))}
    if isinstance(made, dict) and dice.random() < 0.2:
        made["$id"] = dice.randint(0, 2)
    return made


CHANGES: tuple[Change, ...] = (some_bytes, one_value, new_parts)


def outcome(text: str | bytes) -> str:
    """Return what becomes of an input: ``read``, or the code of its refusal with the step at which it was refused.

    Raises:
        Exception: Whatever else happens; it is an error of ours.
    """
    try:
        recipe = Recipe.from_json(text)
    except RecipeError as error:
        return f"text {error.code}"
    assert str(inspect(recipe))
    again = recipe.to_json()
    assert Recipe.from_json(again).to_json() == again
    try:
        once = Recipe.of(recipe.record(TRUSTED))
    except RecipeError as error:
        return f"record {error.code}"
    assert Recipe.of(once.record(TRUSTED)) == once
    return "read"


def main() -> int:
    """Run, and print what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.recipe.fuzz")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice = random.Random(given.seed)
    found: Counter[str] = Counter()
    start = time.monotonic()
    for number in range(given.count):
        text = CHANGES[number % len(CHANGES)](dice)
        try:
            found[outcome(text)] += 1
        except BaseException:
            print(f"input {number} of seed {given.seed}: {text!r}", file=sys.stderr)
            raise
    print(f"{given.count} inputs in {time.monotonic() - start:.0f} s, seed {given.seed}")
    for name, number in found.most_common():
        print(f"{number:9} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
