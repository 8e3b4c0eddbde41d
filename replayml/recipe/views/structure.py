"""What stands in the JSON value of a model: its calls, as a tree, and how much there is of everything.

Invariants:
    * The value is one that was read as a recipe; it is data, and nothing of it is looked up.
    * Whatever it gives is escaped, and cut where it is long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from replayml.core.tape import Where
from replayml.recipe.faults import Place, shown
from replayml.recipe.text.reader import Plan

__all__ = ["CallNote", "EntryNote", "Finder", "call_data", "entry_data", "line_text", "plain_text", "tree_lines"]

_LONGEST = 60


@dataclass(frozen=True, slots=True)
class CallNote:
    """A constructor call.

    Attributes:
        place: Where it stands in the recipe, such as ``model.args[0]``.
        name: The name of the class.
        arguments: Its arguments, as short texts; those that are calls stand below.
        version: The ``__recipe_version__`` of the class at the time.
        where: The line of the user's code.
        calls: The calls among its arguments.
        entries: The calls on its own tape.
    """

    place: str
    name: str
    arguments: str
    version: int
    where: Where | None
    calls: tuple[CallNote, ...]
    entries: tuple[EntryNote, ...]

    def __str__(self) -> str:
        return f"{_last(self.name)}({self.arguments})"


@dataclass(frozen=True, slots=True)
class EntryNote:
    """A call on a tape.

    Attributes:
        number: Its position, from 0.
        call: The call as the user would type it.
        where: The line of the user's code.
    """

    number: int
    call: str
    where: Where | None


def call_data(call: CallNote) -> dict[str, Any]:
    """Return a call with those below it as plain data."""
    return {
        "place": call.place,
        "name": call.name,
        "arguments": call.arguments,
        "version": call.version,
        "where": None if call.where is None else str(call.where),
        "calls": [call_data(inner) for inner in call.calls],
        "tape": [entry_data(entry) for entry in call.entries],
    }


def entry_data(entry: EntryNote) -> dict[str, Any]:
    """Return a call on a tape as plain data."""
    return {"number": entry.number, "call": entry.call, "where": None if entry.where is None else str(entry.where)}


def tree_lines(call: CallNote, here: str = "", below: str = "") -> Iterator[str]:
    """Yield a line for a call and for each below it, with what stands before it in the drawing of a tree."""
    version = f" version {call.version}" if call.version else ""
    yield f"{here}{call}{version}{line_text(call.where)}"
    for entry in call.entries if here else ():
        yield f"{below}  {entry.number}: {entry.call}{line_text(entry.where)}"
    for index, inner in enumerate(call.calls):
        is_last = index == len(call.calls) - 1
        yield from tree_lines(inner, f"{below}{'└─' if is_last else '├─'} ", f"{below}{'   ' if is_last else '│  '}")


def line_text(where: Where | None) -> str:
    """Return a line of code, as it stands at the end of a line of text."""
    return f"  ({plain_text(str(where))})" if where is not None else ""


# Finding ------------------------------------------------------------------------------------------------------------


class Finder:
    """Goes through the JSON value of a model, and tells what stands in it."""

    def __init__(self) -> None:
        self._data: Counter[str] = Counter()
        self._values = 0

    def counts(self, plan: Plan, model: object) -> dict[str, int]:
        """Return how much there is of everything."""
        self._count(model)
        calls = sum(part.kind == "call" for part in plan.named)
        return {
            "call": calls,
            "tape entry": len(plan.entries),
            "value": self._values,
            "tensor": self._data["$tensor"],
            "array": self._data["$array"],
        }

    def _count(self, node: object) -> None:
        self._values += 1
        for item in node if isinstance(node, list) else node.values() if isinstance(node, dict) else ():
            self._count(item)
        if isinstance(node, dict):
            self._data.update(node.keys() & {"$tensor", "$array"})

    def call(self, node: dict[str, Any], place: Place) -> CallNote:
        """Return a constructor call with those below it."""
        arguments, calls = self._arguments(node, place)
        entries = []
        for number, entry in enumerate(node.get("tape", ())):
            at = place.below("tape").below(number)
            texts, inner = self._arguments(entry, at)
            calls += inner
            target = "".join(_step(tag) for tag in entry["tags"])
            text = f"model{target}.{plain_text(entry['$entry'])}({texts})"
            entries.append(EntryNote(number, text, _where(entry)))
        name, version = node["$call"], node.get("version", 0)
        return CallNote(str(place), name, arguments, version, _where(node), tuple(calls), tuple(entries))

    def _arguments(self, node: dict[str, Any], place: Place) -> tuple[str, list[CallNote]]:
        calls: list[CallNote] = []
        texts = [self._value(item, place.below("args").below(at), calls) for at, item in enumerate(node["args"])]
        kwargs = node["kwargs"]
        pairs = kwargs["$dict"] if "$dict" in kwargs else kwargs.items()
        for name, item in pairs:
            texts.append(f"{plain_text(name)}={self._value(item, place.below('kwargs').below(name), calls)}")
        return ", ".join(texts), calls

    def _value(self, node: Any, place: Place, calls: list[CallNote]) -> str:
        """Return a short text for a value, and note the calls in it."""
        if isinstance(node, list):
            return self._listed("[", node, "]", place, calls)
        if not isinstance(node, dict):
            return _cut_text(ascii(node))
        tag = next((key for key in node if key.startswith("$") and key != "$id"), "")
        if tag == "$call":
            calls.append(self.call(node, place))
            return _last(node["$call"])
        if tag in ("$class", "$function"):
            return _last(node[tag])
        if tag == "$enum":
            return f"{_last(node[tag])}.{_cut_text(str(node['member']))}"
        if tag in ("$dataclass", "$pydantic", "$namedtuple", "$codec"):
            return f"{_last(node[tag])}(...)"
        if tag in ("$tensor", "$array"):
            size = "x".join(map(str, node[tag]["shape"]))
            return f"{tag[1:]}({node[tag]['dtype']}{', ' if size else ''}{size})"
        if tag == "$opaque":
            return f"<pickle of {plain_text(node['type'])}>"
        if tag == "$ref":
            return f"<the same as object {node[tag]}>"
        if tag in ("$list", "$tuple", "$set", "$frozenset"):
            return self._listed(
                f"{tag[1:]}(" if tag != "$list" else "[", node[tag], ")" if tag != "$list" else "]", place, calls
            )
        return self._mapping(node, tag, place, calls)

    def _mapping(self, node: dict[str, Any], tag: str, place: Place, calls: list[CallNote]) -> str:
        if tag and tag not in ("$dict", "$ordered"):
            return _cut_text(f"{tag[1:]}({node[tag]!a})")
        pairs = node[tag] if tag else [[key, node[key]] for key in sorted(node)]
        texts = []
        for index, (key, item) in enumerate(pairs):
            at = place.below(key if isinstance(key, str) else index)
            texts.append(f"{self._value(key, at, calls)}: {self._value(item, at, calls)}")
        return _cut_text(f"{{{', '.join(texts)}}}")

    def _listed(self, start: str, items: list[Any], end: str, place: Place, calls: list[CallNote]) -> str:
        texts = [self._value(item, place.below(index), calls) for index, item in enumerate(items)]
        return _cut_text(f"{start}{', '.join(texts)}{end}")


def _where(node: dict[str, Any]) -> Where | None:
    return Where(*node["where"]) if "where" in node else None


def _step(tag: str) -> str:
    return f"[{tag}]" if tag.isdecimal() and tag.isascii() else f".{plain_text(tag)}"


def _last(name: str) -> str:
    return plain_text(name.rpartition(".")[2])


def plain_text(text: str) -> str:
    """Return a name that a file gives: as it is when it is a plain one, else escaped and cut."""
    return text if text.isascii() and text.isprintable() and len(text) <= _LONGEST else shown(text)


def _cut_text(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
