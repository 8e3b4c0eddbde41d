"""Objects that stand in more than one place of a document.

Invariants:
    * Only such an object has a number; numbers count from 0 in the order of the text with sorted keys.
    * The first place holds the object, every later one refers to it.
"""

from __future__ import annotations

__all__ = ["Held", "numbered"]


class Held:
    """The node of an object that is told from its equals.

    Attributes:
        node: How the object is written when it stands in one place.
        is_shared: It stands in more than one.
        has_calls: A module is in it.
    """

    __slots__ = ("has_calls", "is_shared", "node", "number")

    def __init__(self) -> None:
        self.node: object = None
        self.is_shared = False
        self.has_calls = False
        self.number: int | None = None

    def tagged(self) -> dict[str, object]:
        """Return the node as an object with a tag, which can hold a number.

        Example:
            >>> held = Held()
            >>> held.node = {"a": 1}
            >>> held.tagged()
            {'$dict': [['a', 1]]}
        """
        if isinstance(self.node, list):
            return {"$list": self.node}
        assert isinstance(self.node, dict)
        if any(key.startswith("$") for key in self.node):
            return self.node
        return {"$dict": [[key, item] for key, item in self.node.items()]}


def numbered(node: object) -> object:
    """Return a JSON value in which shared objects have numbers and references.

    Example:
        >>> held = Held()
        >>> held.node, held.is_shared = [1], True
        >>> numbered({"b": held, "a": held})
        {'a': {'$list': [1], '$id': 0}, 'b': {'$ref': 0}}
    """
    return _Numbering().finish(node)


class _Numbering:
    """One walk in the order of the text with sorted keys."""

    def __init__(self) -> None:
        self._next = 0

    def finish(self, node: object) -> object:
        if isinstance(node, Held):
            return self._held(node)
        if isinstance(node, list):
            return [self.finish(item) for item in node]
        if isinstance(node, dict):
            return {key: self.finish(node[key]) for key in sorted(node)}
        return node

    def _held(self, held: Held) -> object:
        if not held.is_shared:
            return self.finish(held.node)
        if held.number is not None:
            return {"$ref": held.number}
        held.number = self._next
        self._next += 1
        finished = self.finish(held.tagged())
        assert isinstance(finished, dict)
        return {**finished, "$id": held.number}
