"""The form of a recipe: its version, its grammar, its limits and the codes of its refusals.

A recipe is one JSON object::

    {"format": "replayml.recipe", "version": 2, "packages": {"torch": "2.13.0", ...}, "model": NODE}

A node is a JSON value. ``null``, ``true``, ``false``, integers, finite numbers, strings, arrays (lists) and objects
without a ``$`` key (dicts whose keys are strings in sorted order) stand for themselves. All else is an object with
one tag, a key that starts with ``$``:

    $call        a class to be called: ``args``, ``kwargs``, and where there are any ``tape``, ``version`` (the
                 ``__recipe_version__`` of the class, from 1), ``where``
    $entry       one call on a tape: the method's name, with ``tags``, ``args``, ``kwargs`` and ``where``
    $tree        something that is in the tree already: ``[[tag, ...], name or null]``; with ``true`` as
                 a third item, in the tree of the model that the module is given to; with 2 in that which this one
                 is given to, and so on
    $ref, $id    an object that stood earlier in the document, and the number by which it is found
    $class       a class by name            $function    a function by name
    $enum        a member: ``member`` (a name, or for combined flags a list of names)
    $dataclass   an instance: ``fields``     $namedtuple  an instance: ``items``
    $pydantic    an instance: ``fields``, and ``set``, the names of those that were given
    $codec       an instance of a type with a `Codec`: ``data``
    $opaque      a value without a data form, as a pickle in pieces of base64: ``type``, what it was
    $list  $tuple  $set  $frozenset          their elements
    $dict  $ordered                          ``[[key, value], ...]``
    $float  $complex  $bytes  $ellipsis  $slice  $range  $path
    $dtype  $device  $size  $layout  $memory_format  $tensor  $array  $scalar

Numbers of shared objects count from 0 in the order of the text with sorted keys; only an object that stands more
than once has one. Each model has exactly one canonical form, and the reader refuses every other spelling of it except
for white space, the order of keys and the spelling of numbers and strings, to which JSON gives no meaning.

Version 2 added ``$opaque``, ``$pydantic`` and the version of a call. To raise the version: add 1 to `VERSION`, keep in
`replayml.recipe.versions` a function that turns a document of the version before into one of the new version, and add
a document of the new version to the tests, where all of them are read for ever. A newer file is refused, never
guessed at.

Codes of refusals (stable; messages may change):

    the text            too-large, foreign-format, not-utf8, byte-order-mark, too-deep, not-json, trailing-bytes
    a JSON value        duplicate-key, bad-number, integer-range, too-long, bad-string, too-many
    the document        wrong-format, bad-version, newer-version, missing-key, unknown-key, unknown-tag, bad-value,
                        bad-reference, not-canonical
    what it names       untrusted-name, wrong-kind, bad-method, bad-target, bad-argument, opaque-value, bad-pickle
    what it makes       too-much-memory, too-many-tensors, too-many-modules, too-slow
    a model to write    no-data-form, no-name, cycle, large-data, shared-memory, bare-module
                        (and too-deep, integer-range, bad-method, ... where the written text would be refused)

Invariants:
    * The canonical text is ASCII, with sorted keys and no white space; equal models have equal texts.
    * No limit can be set by a file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "FORMAT",
    "INLINE_BYTES",
    "INTEGER_BITS",
    "VERSION",
    "Limits",
    "canonical",
    "is_plain_dict",
]

FORMAT = "replayml.recipe"
VERSION = 2

INTEGER_BITS = 64
"""Integers are signed and have 64 bits; this is part of the format, not a limit that a caller may raise."""

INLINE_BYTES = 48 * 1024
"""What bytes, a tensor or an array may take: as base64 it fits into one string of `Limits.string` bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a recipe may hold, and how much may come of it.

    Args:
        size: Bytes of the whole text.
        depth: Arrays and objects inside one another, found out before anything is parsed.
        values: JSON values, keys not counted.
        calls: Constructor calls.
        entries: Tape entries, of all tapes together.
        string: Bytes of one string in UTF-8.
        memory: Bytes of the tensors that it makes; None for half of the memory that is free.
        tensors: Tensors that it makes.
        modules: Modules of replayml that it makes.
        seconds: How long the dry run, in which these are counted before anything is allocated, may take.

    Example:
        >>> Limits(calls=10).calls
        10
    """

    size: int = 4 * 1024 * 1024
    depth: int = 64
    values: int = 100_000
    calls: int = 10_000
    entries: int = 10_000
    string: int = 64 * 1024
    memory: int | None = None
    tensors: int = 200_000
    modules: int = 20_000
    seconds: float = 30.0


def canonical(document: object) -> str:
    r"""Return the one text of a JSON value: ASCII, sorted keys, no white space.

    Example:
        >>> canonical({"b": 1.0, "a": [None, "é"]})
        '{"a":[null,"\\u00e9"],"b":1.0}'
    """
    return json.dumps(document, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))


def is_plain_dict(keys: Sequence[Any]) -> bool:
    """Tell whether a dict with these keys, in this order, is written as a bare JSON object.

    Example:
        >>> is_plain_dict(["a", "b"]), is_plain_dict(["b", "a"]), is_plain_dict([1]), is_plain_dict(["$a"])
        (True, False, False, False)
    """
    return all(type(key) is str and not key.startswith("$") for key in keys) and keys == sorted(keys)
