"""Tags: where a module stands below its root.

A tag is a path of names, ``("block", "layer")``; the root's is ``()``. A module that stands in two places has two.
Inside, a path of *slots* is used: the slot of a child is its name, except in a list whose elements were moved, where
an element keeps its slot while its index changes, and for a child that the user put in the place of another, which
gets a slot of its own. Settings are kept by slots, and so stay with whom they were made for.

Invariants:
    * Finding a module's tags costs its depth, not the size of the tree.
    * A tree has no cycle: a module never stands below itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from replayml.core.tape import Path

__all__ = [
    "Site",
    "ancestors",
    "child_at",
    "origin",
    "path",
    "paths",
    "root",
    "roots",
    "shown",
    "shown_below",
    "site",
    "slots_below",
    "unbuilt_inside",
    "visible",
    "walk",
]


def path(module: Any) -> Path:
    """Return the slots from the root to the module, along the first place that it was given."""
    parts: list[Path] = []
    links = module._record.links
    while links:
        parent, slots = links[0]
        parts.append(slots)
        links = parent._record.links
    if len(parts) == 1:
        return parts[0]
    return tuple(slot for slots in reversed(parts) for slot in slots)


def root(module: Any) -> Any:
    """Return the topmost module above this one, along the first place that it was given."""
    links = module._record.links
    while links:
        module = links[0][0]
        links = module._record.links
    return module


def paths(module: Any) -> list[tuple[Any, Path]]:
    """Return every (root, path of slots) at which the module stands."""
    links = module._record.links
    if not links:
        return [(module, ())]
    if len(links) == 1:
        parent, slots = links[0]
        if not parent._record.links:
            return [(parent, slots)]
    return [(top, (*above, *slots)) for parent, slots in links for top, above in paths(parent)]


def paths_below(module: Any, roots: list[Any]) -> list[tuple[Any, Path]]:
    """Return the places of a module below some roots."""
    return [(top, path) for top, path in paths(module) if any(top is root for root in roots)]


def roots(module: Any) -> list[Any]:
    """Return every topmost module above this one; more than one while two models share it."""
    links = module._record.links
    if not links:
        return [module]
    found: list[Any] = []
    for parent, _ in links:
        found += [top for top in roots(parent) if not any(top is other for other in found)]
    return found


def ancestors(module: Any) -> Iterator[Any]:
    """Yield the module and all above it, each once."""
    seen: set[int] = set()
    stack = [module]
    while stack:
        current = stack.pop()
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            stack += [parent for parent, _ in current._record.links]


def shown(module: Any) -> Path:
    """Return the tags of a module as the user sees them: names and current indices."""
    return visible(root(module), path(module))


def shown_below(module: Any, above: Any) -> list[Path]:
    """Return the names from a module down to another one, for each place at which that stands below it."""
    return [visible(above, slots) for slots in slots_below(module, above)]


def slots_below(module: Any, above: Any) -> Iterator[Path]:
    """Yield the slots from a module down to another one, for each place at which that stands below it."""
    if module is above:
        yield ()
        return
    for parent, slots in module._record.links:
        for path in slots_below(parent, above):
            yield (*path, *slots)


class Site(NamedTuple):
    """Where a module stood at some time.

    Attributes:
        root: The root of the tree.
        places: The slots and the names of each place.
    """

    root: Any
    places: tuple[tuple[Path, Path], ...]


def site(module: Any) -> Site:
    """Return where a module stands now."""
    return Site(root(module), tuple((slots, visible(top, slots)) for top, slots in paths(module)))


def origin(module: Any, site: Site) -> Any:
    """Return the module that the slots of a site begin at.

    It is the root of that time, also when this stands in a larger tree now; for a module that was taken out of that
    tree it is the root that it has now.

    Args:
        module: The module that stood there.
        site: Where it stood.
    """
    top = root(module)
    if site.root is top or all(above is not site.root for above in ancestors(module)):
        return top
    return site.root


def visible(top: Any, slots: Path) -> Path:
    """Turn slots into the names and indices that the user sees; a slot that is empty now stays as it is."""
    names: list[str] = []
    module: Any = top
    for slot in slots:
        record = getattr(module, "_record", None)
        name = slot if record is None else record.name_of(slot)
        names.append(name)
        children = getattr(module, "_modules", None)
        module = None if children is None else children.get(name)
    return tuple(names)


def walk(top: Any, names: Path) -> Any:
    """Return what stands at a path of names, or None."""
    module = top
    for name in names:
        children: dict[str, Any] | None = getattr(module, "_modules", None)
        module = None if children is None else children.get(name)
        if module is None:
            return None
    return module


def child_at(top: Any, slots: Path) -> Any:
    """Return what stands at a path of slots, or None."""
    module: Any = top
    for slot in slots:
        record = getattr(module, "_record", None)
        name = slot if record is None else record.name_of(slot)
        if record is not None and record.slot_of(name) != slot:
            return None  # another module took the place
        children = getattr(module, "_modules", None)
        module = None if children is None else children.get(name)
        if module is None:
            return None
    return module


def unbuilt_inside(module: Any) -> Iterator[tuple[Path, Any]]:
    """Yield the unbuilt replayml modules inside of a plain module, the topmost ones only, with their paths."""
    for name, child in module._modules.items():
        if child is None:
            continue
        record = child.__dict__.get("_record")
        if record is None:
            for path, below in unbuilt_inside(child):
                yield (name, *path), below
        elif not record.built:
            yield (name,), child
