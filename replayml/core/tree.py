"""The tree: how modules come to stand in one another, and how they leave.

Invariants:
    * ``links`` of a child and ``children`` of its parent change together.
    * What a module brings along is copied into the larger hierarchy, and goes with it when it leaves.
    * Every change is noted in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from replayml.core import tags
from replayml.core.config import Config, Edit, Node, Setting, displace
from replayml.core.errors import ConfigurationError
from replayml.core.journal import note
from replayml.core.settings import config_of, put
from replayml.core.tape import Path

__all__ = ["detach", "forget_remnants", "link", "made_within", "subtree"]


def link(parent: Any, slots: Path, child: Any, gone: Iterable[Callable[[], None]] = ()) -> None:
    """Note that ``child`` stands in ``parent`` now, with all that it brings along.

    Args:
        parent: The module that it stands in.
        slots: Its slots below the parent.
        child: The module.
        gone: What to call for those that it takes the place of, once it stands there.
    """
    record = child._record
    if child is parent or (record.children and any(child is above for above in tags.ancestors(parent))):
        place = ".".join(slot.partition("@")[0] for slot in slots)
        raise ConfigurationError(
            f"{type(child).__name__} cannot stand below itself: it was assigned to "
            f"{place!r} of a module that it contains. Assign a copy: .new()"
        )
    if record.links and _comes_first(parent, child):
        record.links.insert(0, (parent, slots))
    else:
        record.links.append((parent, slots))
    record.expected = None
    if record.gone is not None:
        note(setattr, record, "gone", record.gone)
        record.gone = None
    note(_unlink, record, parent, slots)
    siblings = parent._record.children
    siblings[slots] = child
    note(siblings.pop, slots, None)
    if record.speculative:
        parent._record.speculative = True
    if len(record.links) > 1 or record.sharing:
        for above in tags.ancestors(child):
            above._record.sharing = True
        _stand_forward(child)
    if record.plain:
        for above in tags.ancestors(parent):
            if above._record.plain is None:
                above._record.plain = set()
            above._record.plain |= record.plain
    if record.config is not None:
        for top, path in tags.paths(parent):
            _graft(config_of(top), (*path, *slots), record.config)
    for keep in gone:
        keep()


def _comes_first(parent: Any, child: Any) -> bool:
    """Tell whether a place counts for more than those at which a module stands already."""
    record, top = child._record, tags.root(parent)
    if (record.expected is not None or record.left is top) and not is_remnant(top, child):
        return True
    return _stands_back_for(tags.root(child), parent)


def detach(parent: Any, slots: Path, child: Any) -> None:
    """Note that ``child`` stands in ``parent`` no more; the settings that it came with go with it."""
    record = child._record
    own = record.config
    if own is not None:
        serials = {thing.serial for _, node in own.below(()) for thing in _things(node)}
        for above, path in _holders(parent, slots):
            config = above._record.config
            if config is not None:
                for _, node in list(config.below(path)):
                    _take_out(node, serials)
    top = tags.root(parent)
    stood_there = tags.root(child) is top
    for index, (other, at) in enumerate(record.links):
        if other is parent and at == slots:
            del record.links[index]
            note(record.links.insert, index, (other, at))
            break
    siblings = parent._record.children
    if slots in siblings:
        del siblings[slots]
        note(siblings.__setitem__, slots, child)
    if all(root is not top for root in tags.roots(child)):
        note(setattr, record, "left", record.left)
        record.left = top
    if stood_there and (record.children or record.links):
        _stand_back(child, top)
    _take_along(child, parent, slots)


def _take_along(child: Any, parent: Any, slots: Path) -> None:
    """Let a module that leaves a place take along what it, and those below it, set there."""
    moved: dict[tuple[Path, str | None, int], Setting | Edit] = {}
    for above, path in list(_holders(parent, slots)):
        config = above._record.config
        for at, node in [] if config is None else list(config.below(path)):
            below = at[len(path) :]
            for name, settings in node.items.items():
                for setting in [one for one in settings if _is_by(one, child)]:
                    displace((node, name, setting))
                    moved[below, name, setting.serial] = setting
            for edit in [one for one in node.edits if _is_by(one, child)]:
                displace((node, None, edit))
                moved[below, None, edit.serial] = edit
    for (below, name, serial), thing in moved.items():
        node = config_of(child).ensure(below)
        kept: list[Any] = node.edits if name is None else node.items.get(name, [])
        if all(one.serial != serial for one in kept):
            own = thing.copy()
            own.carried = False
            put(node, name, own)


def _is_by(thing: Setting | Edit, module: Any) -> bool:
    return thing.by is not None and any(above is module for above in tags.ancestors(thing.by))


def _stand_forward(come: Any) -> None:
    """Let what stands below a module that came into a tree stand there first, and not in what the tree's maker left."""
    top = tags.root(come)
    inside = subtree(come)
    for module in inside.values():
        links = module._record.links
        if len(links) > 1:
            first = tags.root(module)
            if first is not top and (module._record.left is top or _stands_back_for(first, top)):
                _stand_first_in(top, module)


def _stand_first_in(top: Any, module: Any) -> None:
    """Let the places of a module in the tree of ``top`` come first."""
    links = module._record.links
    if len(links) > 1 and tags.root(module) is not top:
        note(setattr, module._record, "links", links)
        module._record.links = sorted(links, key=lambda link: tags.root(link[0]) is not top)


def _stands_back_for(other: Any, holder: Any) -> bool:
    """Tell whether what a root and the tree of ``holder`` share belongs to the tree first: the root came out of it."""
    return is_remnant(other, holder) or other._record.left is tags.root(holder)


def is_remnant(other: Any, holder: Any) -> bool:
    """Tell whether a root was made by what stands in the tree of ``holder``, which does not hold it any more."""
    top = tags.root(holder)
    maker = other._record.maker
    while maker is not None:
        if maker is holder or tags.root(maker) is top:
            return True
        maker = maker._record.maker
    return False


def forget_remnants(module: Any, holder: Any) -> None:
    """Forget that a module stands in what the tree of ``holder`` has made and left."""
    record = module._record
    loose = {id(other) for above in tags.ancestors(holder) for other in above._record.loose} if record.links else ()
    for parent, slots in list(record.links):
        top = tags.root(parent)
        if id(top) not in loose and is_remnant(top, holder):
            note(setattr, record, "links", record.links)
            record.links = [link for link in record.links if link[0] is not parent]
            note(parent._record.children.__setitem__, slots, module)
            del parent._record.children[slots]


def subtree(top: Any) -> dict[int, Any]:
    """Return a module and all below it, by identity."""
    inside: dict[int, Any] = {}
    stack = [top]
    while stack:
        module = stack.pop()
        if id(module) not in inside:
            inside[id(module)] = module
            stack += module._record.children.values()
    return inside


def _stand_back(gone: Any, top: Any) -> None:
    """Let what a module that was taken out shares with others stand first in the tree that is left, then elsewhere."""

    def comes_later(link: tuple[Any, Path]) -> tuple[bool, bool]:
        roots = tags.roots(link[0])
        return all(root is not top for root in roots), all(root is gone for root in roots)

    for module in subtree(gone).values():
        links = module._record.links
        if len(links) > 1 and tags.root(module) is not top:
            note(setattr, module._record, "links", links)
            module._record.links = sorted(links, key=comes_later)


def _unlink(record: Any, parent: Any, slots: Path) -> None:
    for index, (other, at) in enumerate(record.links):
        if other is parent and at == slots:
            del record.links[index]
            return


def _things(node: Node) -> Iterator[Setting | Edit]:
    for settings in node.items.values():
        yield from settings
    yield from node.edits


def _take_out(node: Node, serials: set[int]) -> None:
    for name, settings in node.items.items():
        for setting in list(settings):
            if setting.serial in serials and setting.carried:
                displace((node, name, setting))
    for edit in list(node.edits):
        if edit.serial in serials and edit.carried:
            displace((node, None, edit))


def _holders(parent: Any, slots: Path) -> Iterator[tuple[Any, Path]]:
    """Yield every module above a place, with the path of the place below it."""
    yield parent, slots
    for above, at in parent._record.links:
        yield from _holders(above, (*at, *slots))


def _graft(config: Config, path: Path, other: Config) -> None:
    """Copy all that was set in a hierarchy to the place at which it stands in a larger one."""
    for below, node in list(other.below(())):
        if node.items or node.edits:
            target = config.ensure((*path, *below))
            for name, settings in node.items.items():
                for setting in settings:
                    put(target, name, setting.copy())
            for edit in node.edits:
                put(target, None, edit.copy())


def made_within(module: Any, site: Any) -> bool:
    """Tell whether a module was made, directly or not, by the ``__init__`` of ``site``."""
    maker = module._record.maker
    while maker is not None:
        if maker is site:
            return True
        maker = maker._record.maker
    return False
