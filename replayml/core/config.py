"""The config: every setting of a hierarchy, who made it, and which one wins.

One `Config` belongs to the root of a hierarchy. It is a tree of nodes, one for each place that somebody set something
at, whether a module stands there at the moment or not. Read as a mapping it has the keys
``("block", "layer", "out_features")`` and lists of `ConfigItem`.

Invariants:
    * The user's setting beats everything; else the source closest to the root wins; among equals the latest.
    * A setting knows the module whose ``__init__`` made it and goes when that module is constructed again.
    * Whether an item is a `ConfigItem` or a `DetachedConfigItem` follows from where its source stands now, so that
      a detached item cannot outlive the moment at which its source and its target came into one hierarchy.
    * Every change is noted in the journal.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from replayml.core import tags
from replayml.core.journal import note
from replayml.core.tags import Site
from replayml.core.tape import Path, TapeEntry, Where

__all__ = ["Config", "ConfigItem", "DetachedConfigItem", "Edit", "Node", "Setting", "next_serial"]

_serials = itertools.count(1)


def next_serial() -> int:
    """Return a number greater than all returned before: the order in which things were set."""
    return next(_serials)


@dataclass(frozen=True, slots=True)
class ConfigItem:
    """One setting, as it is read from a `Config`.

    Attributes:
        source: The tags of the module whose ``__init__`` made the setting; None when the user made it.
        value: The value.
        where: The line of the call that made it.
    """

    source: Path | None
    value: Any
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class DetachedConfigItem:
    """One setting whose source does not stand in the same hierarchy (yet).

    Attributes:
        source: The module whose ``__init__`` made the setting.
        value: The value.
        where: The line of the call that made it.
    """

    source: Any
    value: Any
    where: Where | None = None


class Setting:
    """A stored setting: the value of one name, and who made it.

    Attributes:
        by: The module under construction when it was set; None for the user.
        first_by: The same, also when it is the user's now because its target was taken out.
        maker: Who makes it again: a module (in its ``__init__``), an `Edit`, or None for nobody.
        serial: Its place in the order in which things were set.
        site: Where the module stood when it was set.
        carried: True when it came into the hierarchy with its module.
        during: The serial of the user's call in the course of which it was set.
    """

    __slots__ = ("by", "carried", "during", "first_by", "maker", "serial", "site", "value", "where")

    def __init__(self, by: Any, maker: Any, value: Any, where: Where | None, serial: int, site: Site) -> None:
        self.by = self.first_by = by
        self.maker = maker
        self.value = value
        self.where = where
        self.serial = serial
        self.site = site
        self.carried = False
        self.during = 0

    def copy(self) -> Setting:
        """Return the same setting for the larger hierarchy that its module came into."""
        new = Setting(self.by, self.maker, self.value, self.where, self.serial, self.site)
        new.first_by = self.first_by
        new.during = self.during
        new.carried = True
        return new


class Edit:
    """A stored call, which is made again whenever its target is constructed again.

    Attributes:
        again: False for a call of a ``@stateful`` method by an outer ``__init__``: it is told, and not made again.
        by: The module under construction when the call was made; None for the user.
        first_by: The same, also when it is the user's now because its target was taken out.
        maker: Who makes it again besides: a module (in its ``__init__``), an outer `Edit`, or None for nobody.
        method: The name of the method.
        args: The positional arguments; what stands in the tree by its slots.
        kwargs: The keyword arguments, likewise.
        given: Both, as they were given.
        serial: Its place in the order in which things were set.
        told: The call as its tape tells it, or would.
        site: Where its target stood when it was made.
        made: What the call itself set elsewhere; it goes before the call is made again.
        target: The module that it was made on; None for an edit that is not by an ``__init__``.
        carried: True when it came into the hierarchy with its module.
        during: The serial of the user's call in the course of which it was made.
    """

    __slots__ = (
        "again",
        "args",
        "by",
        "carried",
        "during",
        "first_by",
        "given",
        "kwargs",
        "made",
        "maker",
        "method",
        "serial",
        "site",
        "target",
        "told",
        "where",
    )

    def __init__(
        self,
        by: Any,
        maker: Any,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        told: TapeEntry,
        site: Site,
    ) -> None:
        self.by = self.first_by = by
        self.maker = maker
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.told = told
        self.site = site
        self.where = told.where
        self.serial = next_serial()
        self.again = True
        self.target: Any = None
        self.given: tuple[Any, Any] = (args, kwargs)
        self.made: list[Placed] = []
        self.carried = False
        self.during = 0

    def copy(self) -> Edit:
        """Return the same edit for the larger hierarchy that its module came into."""
        new = Edit.__new__(Edit)
        for name in Edit.__slots__:
            setattr(new, name, getattr(self, name))
        new.carried = True
        return new


class Node:
    """What was set at one place: settings by name, edits, and the nodes below."""

    __slots__ = ("children", "edits", "items")

    def __init__(self) -> None:
        self.items: dict[str, list[Setting]] = {}
        self.edits: list[Edit] = []
        self.children: dict[str, Node] = {}


Placed = tuple[Node, str | None, "Setting | Edit"]


class Config(Mapping[Path, list["ConfigItem | DetachedConfigItem"]]):
    """All that was set in one hierarchy.

    Args:
        owner: The root module of the hierarchy.
    """

    __slots__ = ("owner", "root")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.root = Node()

    # Reading as a mapping -------------------------------------------------------------------------------------

    def _entries(self) -> Iterator[tuple[Path, list[Setting]]]:
        stack: list[tuple[Path, Node]] = [((), self.root)]
        while stack:
            path, node = stack.pop()
            if self._is_gone(path):
                continue
            shown = tags.visible(self.owner, path)
            for name, settings in node.items.items():
                if settings:
                    yield (*shown, name), settings
            stack += [((*path, slot), child) for slot, child in node.children.items()]

    def _is_gone(self, path: Path) -> bool:
        """Tell whether what stood at a place left it for good: another element has its index now, or its name."""
        if tags.child_at(self.owner, path) is not None:
            return False
        return (
            any("@" in slot or "+" in slot for slot in path)
            or tags.walk(self.owner, tags.visible(self.owner, path)) is not None
        )

    def _view(self, setting: Setting, target: Path) -> ConfigItem | DetachedConfigItem:
        if setting.by is None:
            return ConfigItem(None, setting.value, setting.where)
        source = setting.by
        while source is not None and all(top is not self.owner for top in tags.roots(source)):
            source = source._record.maker  # one that its maker has taken out since set it for its maker
        if source is not None:
            return ConfigItem(tags.shown(source), setting.value, setting.where)
        if any(top._record.left is self.owner for top in tags.roots(setting.by)):
            return ConfigItem(target, setting.value, setting.where)  # it stays with what it was set on
        return DetachedConfigItem(setting.by, setting.value, setting.where)

    def __getitem__(self, key: Path) -> list[ConfigItem | DetachedConfigItem]:
        for path, settings in self._entries():
            if path == key:
                return [self._view(setting, path[:-1]) for setting in settings]
        raise KeyError(key)

    def __iter__(self) -> Iterator[Path]:
        return (path for path, _ in self._entries())

    def __len__(self) -> int:
        return sum(1 for _ in self._entries())

    def __repr__(self) -> str:
        return f"Config({dict(self.items())!r})"

    # Looking up -----------------------------------------------------------------------------------------------

    def find(self, path: Path) -> Node | None:
        """Return the node at a path of slots, or None when nothing was ever set there or below."""
        node: Node | None = self.root
        for slot in path:
            node = node.children.get(slot)  # type: ignore[union-attr]
            if node is None:
                return None
        return node

    def ensure(self, path: Path) -> Node:
        """Return the node at a path of slots; it is made when there is none."""
        node = self.root
        for slot in path:
            child = node.children.get(slot)
            if child is None:
                child = node.children[slot] = Node()
            node = child
        return node

    def below(self, path: Path) -> Iterator[tuple[Path, Node]]:
        """Yield every node at or below a path, the upper ones first."""
        start = self.find(path)
        stack = [] if start is None else [(path, start)]
        while stack:
            at, node = stack.pop()
            yield at, node
            stack += [((*at, slot), child) for slot, child in reversed(node.children.items())]


def place(node: Node, name: str | None, thing: Setting | Edit) -> Placed:
    """Put a setting (under its name) or an edit (name None) into a node."""
    kept: list[Any] = node.edits if name is None else node.items.setdefault(name, [])
    kept.append(thing)
    note(_discard, kept, thing)
    return node, name, thing


def withdraw(placed: Placed) -> None:
    """Take a setting or an edit out of its node, and with an edit what it set elsewhere."""
    displace(placed)
    thing = placed[2]
    if isinstance(thing, Edit):
        for other in thing.made:
            withdraw(other)


def displace(placed: Placed) -> None:
    """Take a setting or an edit out of its node again, if it is still there."""
    node, name, thing = placed
    kept: list[Any] = node.edits if name is None else node.items.get(name, [])
    for index, other in enumerate(kept):
        if other is thing:
            del kept[index]
            note(kept.insert, index, thing)
            return


def _discard(kept: list[Any], thing: Setting | Edit) -> None:
    for index in range(len(kept) - 1, -1, -1):
        if kept[index] is thing:
            del kept[index]
            return


def winner(settings: list[Setting], owner: Any) -> Setting:
    """Return the setting that counts.

    Args:
        settings: The candidates; at least one.
        owner: The root of the hierarchy in which they compete.
    """
    if len(settings) == 1:
        return settings[0]
    return max(settings, key=lambda setting: (*rank(setting.by, owner), setting.serial))


def order(thing: Setting | Edit) -> tuple[int, bool, int]:
    """Return what to sort by in order to do again what was done: from the inside out, the user last."""
    level = thing.site.root if thing.by is None else thing.by
    return (-len(tags.path(level)), thing.by is None, thing.serial)


def rank(by: Any, owner: Any) -> tuple[int, int]:
    """Return what to sort settings by.

    The user's are greatest; then those of a module under construction that the hierarchy will become a part of; then
    those from the root down.
    """
    if by is None:
        return (2, 0)
    if by._record.constructing and tags.root(by) is not owner:
        return (1, 0)
    return (0, -max(len(path) for _, path in tags.paths(by)))  # less for one that has the other below it, always
