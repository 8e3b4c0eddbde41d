"""What is set on a module: at each place where it stands, and at the place where it is expected to stand.

Invariants:
    * A setting or an edit is put at every place of its module, and its maker knows about it.
    * What is in force for a module is the same at all its places.
"""

from __future__ import annotations

from typing import Any

from replayml.core import tags
from replayml.core.config import Config, Edit, Node, Setting, place, winner
from replayml.core.journal import note
from replayml.core.record import NOTHING
from replayml.core.tape import Path

__all__ = ["add_edit", "add_setting", "config_of", "in_force", "in_force_before", "nodes_of", "put", "settings_of"]


def config_of(top: Any) -> Config:
    """Return the config of a root; it is made when there is none."""
    record = top._record
    if record.config is None:
        record.config = Config(top)
        note(setattr, record, "config", None)
    return record.config  # type: ignore[no-any-return]


def add_setting(module: Any, name: str, setting: Setting) -> None:
    """Put a setting on a module, at each place where the module stands."""
    for top, path in tags.paths(module):
        put(config_of(top).ensure(path), name, setting)


def add_edit(module: Any, edit: Edit) -> None:
    """Put an edit on a module, at each place where the module stands."""
    for top, path in tags.paths(module):
        put(config_of(top).ensure(path), None, edit)


def put(node: Node, name: str | None, thing: Setting | Edit) -> None:
    """Put a setting (under its name) or an edit (name None) into a node, and tell its maker."""
    placed = place(node, name, thing)
    maker = thing.maker
    if maker is None:
        return
    if isinstance(maker, Edit):
        maker.made.append(placed)
    else:
        record = maker._record
        if record.made is None:
            record.made = []
        record.made.append(placed)


def nodes_of(module: Any, below: Path = ()) -> list[Node]:
    """Return the config nodes of a module, or of a place below it, wherever it stands or is expected to stand."""
    found = []
    for top, path in tags.paths(module):
        config = top._record.config
        node = None if config is None else config.find((*path, *below))
        if node is not None:
            found.append(node)
        expected = _expected(top)
        if expected is not None:
            maker, slots = expected
            found += nodes_of(maker, (*slots, *path, *below))
    return found


def settings_of(module: Any) -> dict[str, Setting]:
    """Return the setting in force for each name that somebody set on the module."""
    nodes = nodes_of(module)
    if nodes and not module._record.links and module._record.expected is not None:
        module._record.speculative = True
    return in_force(nodes, module)


def in_force(nodes: list[Node], module: Any) -> dict[str, Setting]:
    """Return the setting of each name that counts, of those at some nodes."""
    if not nodes:
        return NOTHING  # type: ignore[no-any-return]
    owner = _future_root(module)
    if len(nodes) == 1:
        return {name: winner(settings, owner) for name, settings in nodes[0].items.items() if settings}
    candidates: dict[str, list[Setting]] = {}
    for node in nodes:
        for name, settings in node.items.items():
            known = candidates.setdefault(name, [])
            known += [setting for setting in settings if not any(setting is other for other in known)]
    return {name: winner(settings, owner) for name, settings in candidates.items() if settings}


def in_force_before(module: Any, name: str, serial: int) -> Setting | None:
    """Return the setting of a name that counted when the call of that serial was made."""
    found = [setting for node in nodes_of(module) for setting in node.items.get(name, ()) if setting.serial < serial]
    return winner(found, tags.root(module)) if found else None


def _future_root(module: Any) -> Any:
    top = tags.root(module)
    expected = _expected(top)
    while expected is not None:
        top = tags.root(expected[0])
        expected = _expected(top)
    return top


def _expected(top: Any) -> tuple[Any, Path] | None:
    """Return where a root is expected to stand; below itself it cannot, which is told when it is put there."""
    expected: tuple[Any, Path] | None = top._record.expected
    if expected is None or any(above is top for above in tags.ancestors(expected[0])):
        return None
    return expected
