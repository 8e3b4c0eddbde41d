"""Strict JSON: from bytes to plain JSON values, or a refusal.

Invariants:
    * The size, the first bytes, the encoding, the depth and the rough number of values are checked before anything is
      parsed.
    * No other reader is ever tried: what is not JSON is refused by what it looks like.
    * What the JSON of the standard library lets pass (a key twice, NaN, infinities, integers of any size, halves of
      surrogate pairs) is refused, each with its place.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from replayml.recipe.faults import DOCUMENT, Fault, Flaw, Place, refuse, shown
from replayml.recipe.format import INTEGER_BITS, Limits

__all__ = ["check_integer", "check_string", "parse"]

TEXT = Place(None, "text")

_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, such as torch.save writes"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x80", "a pickle"),
)
_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]|,', re.DOTALL)
_DIGITS = len(str(2**INTEGER_BITS)) + 1


@dataclass(frozen=True, slots=True)
class _Marked:
    """Stands in the parsed tree for a value that is refused, until its place is known."""

    flaw: Flaw


def parse(text: str | bytes, limits: Limits) -> object:
    """Return the JSON value of a text.

    Raises:
        RecipeError: When the text is anything else than strict JSON within the limits.

    Example:
        >>> parse(b'{"a": [1, 2.5]}', Limits())
        {'a': [1, 2.5]}
    """
    try:
        value = _loads(_checked(text, limits))
    except Flaw as flaw:
        refuse([flaw.at(TEXT)])
    faults = _Sweep(limits).run(value)
    if faults:
        refuse(faults)
    return value


def _checked(text: str | bytes, limits: Limits) -> str:
    """Return the text, once its size, kind, encoding and depth are known to be acceptable."""
    if len(text) > limits.size:
        raise Flaw("too-large", f"the text has {len(text)} bytes; at most {limits.size} are read. Raise Limits(size=).")
    if isinstance(text, str):
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise Flaw("not-utf8", "the text holds half of a surrogate pair; a recipe is UTF-8.") from None
    else:
        data = bytes(text)
    for magic, kind in _FOREIGN:
        if data.startswith(magic):
            raise Flaw("foreign-format", f"this is {kind}, not a recipe; nothing was unpickled. A recipe is JSON text.")
    try:
        decoded = data.decode()
    except UnicodeDecodeError as error:
        raise Flaw("not-utf8", f"byte {error.start} is not UTF-8. A recipe is JSON text in UTF-8.") from None
    if decoded.startswith(_MARK):
        raise Flaw("byte-order-mark", "the text starts with a byte order mark; save it as UTF-8 without one.")
    _check_structure(data, limits)
    return decoded


def _check_structure(data: bytes, limits: Limits) -> None:
    """Refuse what is too deep or has too many values, without parsing it: a look at brackets and commas will do.

    There are at least as many values as there are opening brackets, and as there are commas.
    """
    depth = opened = commas = 0
    for match in _TOKENS.finditer(data):
        token = data[match.start()]
        if token in b"[{":
            depth += 1
            opened += 1
            if depth > limits.depth:
                raise Flaw("too-deep", f"more than {limits.depth} arrays and objects stand inside one another.")
        elif token in b"]}":
            depth -= 1
        elif token in b",":
            commas += 1
        if max(opened, commas) > limits.values:
            raise Flaw("too-many", f"more than {limits.values} values. Raise Limits(values=).")


def _loads(text: str) -> object:
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_number,
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        if error.msg == "Extra data":
            raise Flaw("trailing-bytes", f"the JSON value is followed by something else, at {place}.") from None
        raise Flaw("not-json", f"{error.msg}, at {place}. A recipe is JSON text.") from None


def _object(pairs: list[tuple[str, object]]) -> object:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return _Marked(Flaw("duplicate-key", f"the key {shown(key)} stands twice in one object."))
        seen.add(key)
    raise AssertionError("an object with fewer keys than pairs has a key twice")


def _constant(text: str) -> object:
    return _Marked(Flaw("bad-number", f'{text} is not JSON; a recipe spells it {{"$float": ...}}.'))


def _integer(text: str) -> object:
    if len(text) <= _DIGITS:
        value = int(text)
        try:
            check_integer(value)
        except Flaw as flaw:
            return _Marked(flaw)
        return value
    return _Marked(Flaw("integer-range", f"an integer of {len(text)} digits does not fit into {INTEGER_BITS} bits."))


def _number(text: str) -> object:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        return _Marked(Flaw("bad-number", f"{shown(text)} is larger than the largest float."))
    return value


def check_integer(value: int) -> None:
    """Refuse an integer that does not fit into 64 bits.

    Raises:
        Flaw: When it does not fit.
    """
    if not -(2 ** (INTEGER_BITS - 1)) <= value < 2 ** (INTEGER_BITS - 1):
        raise Flaw("integer-range", f"{shown(value)} does not fit into {INTEGER_BITS} bits.")


def check_string(text: str, limits: Limits) -> None:
    """Refuse a string that is too long or is no Unicode text.

    Raises:
        Flaw: When it is.
    """
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise Flaw("bad-string", f"{shown(text)} holds half of a surrogate pair.") from None
    if size > limits.string:
        raise Flaw("too-long", f"a string of {size} bytes; at most {limits.string} are read.")


class _Sweep:
    """Walks the parsed tree once, to find what is refused wherever it stands."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._faults: list[Fault] = []
        self._values = 0

    def run(self, value: object) -> list[Fault]:
        """Return the faults, in the order of the text."""
        self._visit(value, DOCUMENT)
        if self._values > self._limits.values:
            message = f"{self._values} values; at most {self._limits.values} are read. Raise Limits(values=)."
            self._faults.append(Fault("too-many", DOCUMENT, message))
        return self._faults

    def _visit(self, value: object, place: Place) -> None:
        self._values += 1
        if isinstance(value, _Marked):
            self._faults.append(value.flaw.at(place))
        elif isinstance(value, str):
            self._string(value, place)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self._visit(item, place.below(index))
        elif isinstance(value, dict):
            for key, item in value.items():
                self._string(key, place)
                self._visit(item, place.below(key))

    def _string(self, text: str, place: Place) -> None:
        try:
            check_string(text, self._limits)
        except Flaw as flaw:
            self._faults.append(flaw.at(place))
