"""Rebuilding: how a module in a tree is constructed again.

Constructing a module again runs its ``__init__`` with the arguments that are in force now, on the same object. What
its earlier ``__init__`` made is dropped and made anew; what others set on it stays.

    settings by name   take effect as the new children are put in place, so that an ``__init__`` sees them
    edits              (calls such as ``append``) are made again afterwards, in the order in which they were first made

Invariants:
    * A module is constructed again only if a setting in force changed.
    * When something below it is shared with the outside, the lowest module that makes all of it is constructed
      again, so that what was shared stays shared.
    * What an ``__init__`` did to a module that it was given is undone before it does it again.
    * Every change is noted in the journal.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from replayml.core import tags
from replayml.core.config import Edit, Node, Setting, order, withdraw
from replayml.core.deferral import construct
from replayml.core.errors import ConfigurationError
from replayml.core.journal import note, refill, transaction
from replayml.core.meta import CALL, Frame, entered
from replayml.core.record import NOTHING, Forecast, Line
from replayml.core.replay import arguments_again, is_recorded
from replayml.core.settings import in_force, nodes_of, settings_of
from replayml.core.tape import Path
from replayml.core.tree import detach, link, made_within, subtree

__all__ = ["attach", "bring_in_line", "bring_in_line_for_maker", "is_settled", "reconstruct", "reset", "settle"]


def attach(parent: Any, slots: Path, child: Any, gone: Iterable[Callable[[], None]] = ()) -> None:
    """Put a child into its parent, and give it the settings that wait for it there: see `replayml.core.tree.link`.

    One that was taken apart, because the ``__init__`` that had made it runs again, is constructed again: it was given
    to that ``__init__``, or put in again by the user.
    """
    taken_apart = child._record.gone is not None
    link(parent, slots, child, gone)
    if taken_apart:
        reconstruct(child, child)
    else:
        settle(child)


def settle(module: Any) -> None:
    """Bring a module, and what is below it, in line with the settings that wait at its place."""
    record = module._record
    if record.deferred is not None:
        return
    nodes = nodes_of(module)
    if not nodes and not record.speculative:
        return
    if record.constructed and not _same(record.resolved, in_force(nodes, module)):
        reconstruct(module)
        return
    if record.speculative:
        for child in list(record.children.values()):
            if child._record.speculative:
                settle(child)
    _settle_below(module, nodes)


def _settle_below(module: Any, nodes: list[Node]) -> None:
    record = getattr(module, "_record", None)
    for slot in {slot: None for node in nodes for slot in node.children}:
        child = module._modules.get(slot if record is None else record.name_of(slot))
        if child is None:
            continue
        below = getattr(child, "_record", None)
        if below is None:
            _settle_below(child, [node.children[slot] for node in nodes if slot in node.children])
        elif not below.built:
            settle(child)


def bring_in_line(module: Any) -> None:
    """Construct a module again, if the settings in force changed."""
    if not is_settled(module):
        reconstruct(module)


def bring_in_line_for_maker(module: Any) -> None:
    """The same, if the ``__init__`` above it changed them: that is not run again, whatever is shared with it."""
    if not is_settled(module):
        reconstruct(module, module)


def is_settled(module: Any) -> bool:
    """Tell whether a module was constructed with the settings that are in force now."""
    return _same(module._record.resolved, settings_of(module))


def _same(old: dict[str, Setting], new: dict[str, Setting]) -> bool:
    return old is new or (
        len(old) == len(new) and all(name in old and old[name].value is new[name].value for name in new)
    )


def reconstruct(module: Any, site: Any = None) -> None:
    """Construct a module again, with the settings in force now.

    Args:
        module: The module.
        site: The module to construct instead; by default the lowest one that makes all that is shared.
    """
    target = _construction_site(module) if site is None else site
    record = tags.root(target)._record
    outermost = not record.rebuilding
    record.rebuilding = True
    try:
        construct(lambda: _construct_and_repeat(target, everything=outermost))
    finally:
        if outermost:
            record.rebuilding = False


def _construct_and_repeat(target: Any, everything: bool) -> None:
    target.__construct__()
    _repeat_edits(target, everything)
    target._record.loose = ()


def _construction_site(module: Any) -> Any:
    """Return the lowest module whose construction makes all that the module shares with the outside."""
    site = module
    while True:
        common = _common_maker(site)
        if common is None:
            return site
        site = common


def _common_maker(site: Any) -> Any:
    """Return a module above ``site`` that stands above another holder of what ``site`` made too, or None.

    A holder in another tree, such as one that its maker has left, says nothing of the holders in this one.
    """
    for outside in _holders_outside(site):
        holders = {id(other) for other in tags.ancestors(outside)}
        common = next((other for other in tags.ancestors(site) if other is not site and id(other) in holders), None)
        if common is not None and not common._record.constructing:
            return common
    return None


def _creations(module: Any) -> list[Any]:
    """Return what the ``__init__`` of a module made, without what the user took out since."""
    return [made for made in module._record.creations or () if made._record.maker is module]


def _holders_outside(site: Any) -> Iterator[Any]:
    """Yield the modules outside of ``site`` that hold something made by ``site``, each once."""
    if not site._record.children and not site._record.creations:
        return
    inside = subtree(site)
    seen = set(inside)
    for module in inside.values():
        for made in _creations(module):
            for parent, _ in made._record.links:
                if id(parent) not in seen:
                    seen.add(id(parent))
                    yield parent


def reset(module: Any) -> None:
    """Put a module back to how it was right after ``__pre_init__``."""
    record = module._record
    if not record.constructed:
        return
    kept = dict(module.__dict__)
    note(refill, module.__dict__, kept)
    known = dict(record.__dict__)
    note(_restore, record, known)
    record.forecast = _forecast(module)
    changed = _changed_by(module)
    record.creations = record.made_at = record.expected = None
    record.speculative = False
    record.loose = []
    _release(module, module)
    record.children = {}
    record.resolved = NOTHING
    record.made = record.applied = record.hooks = record.slots = record.plain = record.replaced = None
    module.__dict__.clear()
    module.__dict__["_record"] = record
    module._init_torch()
    for given in changed:
        reconstruct(given)


def _changed_by(site: Any) -> list[Any]:
    """Return the modules to which the ``__init__`` of one, or of what that made, did more than to configure them.

    Only those that it was given count: what it made is made anew.
    """
    if not site._record.made and not site._record.creations:
        return []
    found: dict[int, Any] = {}
    stack = [site]
    while stack:
        module = stack.pop()
        stack += _creations(module)
        for _, _, thing in module._record.made or ():
            target = thing.target if isinstance(thing, Edit) else None
            if target is not None and target is not site and not made_within(target, site):
                found[id(target)] = target
    return list(found.values())


def _forecast(module: Any) -> dict[Line, list[Forecast | None]]:
    """Tell where each module that this one made stands."""
    found: dict[Line, list[Forecast | None]] = {}
    for made in _creations(module):
        path = _path_below(made, module)
        forecast = None if path is None else Forecast(made, path, _forecast(made))
        found.setdefault(made._record.line, []).append(forecast)
    return found


def _path_below(module: Any, above: Any) -> Path | None:
    """Return the first path from one module down to another, or None when there is none."""
    if module is above:
        return ()
    for parent, slots in module._record.links:
        path = _path_below(parent, above)
        if path is not None:
            return (*path, *slots)
    return None


def _restore(record: Any, known: dict[str, Any]) -> None:
    """Give a record back its content, but for what tells what is going on right now."""
    going_on = record.constructing, record.rebuilding
    refill(record.__dict__, known)
    record.constructing, record.rebuilding = going_on


def _release(module: Any, site: Any) -> None:
    """Take apart what the ``__init__`` of ``site`` made, and drop what it set."""
    record = module._record
    for placed in record.made or ():
        withdraw(placed)
    for slots, child in list(record.children.items()):
        if child._record.rewrapped or made_within(child, site):
            if child._record.gone is None:
                child._record.gone = (module, slots)
                note(setattr, child._record, "gone", None)
            _release(child, site)
        else:
            site._record.loose.append(child)
        detach(module, slots, child)


def _repeat_edits(target: Any, everything: bool) -> None:
    """Make the edits on a module, and below it, again.

    Args:
        target: The module that was constructed.
        everything: False inside a larger construction: the user's edits on the larger tree come at its end, and so do
            those that were made from above it.
    """
    pending: dict[int, tuple[Edit, Any, Path]] = {}
    for top, path in tags.paths(target):
        config = top._record.config
        for at, node in () if config is None else config.below(path):
            for edit in node.edits:
                if edit.again and (everything or edit.carried or (edit.by is not None and not _waits(edit.by, target))):
                    pending.setdefault(edit.serial, (edit, top, at))
    for edit, top, at in sorted(pending.values(), key=lambda waiting: order(waiting[0])):
        serial = edit.serial
        node = top._record.config.find(at)
        if node is None or not any(edit is other for other in node.edits):
            continue  # a part of another edit, which was made again and made it anew
        module = tags.child_at(top, at)
        record = getattr(module, "_record", None)
        if record is None or record.built or serial in (record.applied or ()):
            continue
        _repeat(edit, module)


def _waits(by: Any, target: Any) -> bool:
    """Tell whether a module between the one that made an edit and its target is under construction."""
    if by._record.constructing:
        return False
    return any(
        module._record.constructing and any(above is by for above in tags.ancestors(module))
        for module in tags.ancestors(target)
    )


def _repeat(edit: Edit, module: Any) -> None:
    for placed in edit.made:
        withdraw(placed)
    edit.made = []
    record = module._record
    try:
        method = inspect.getattr_static(type(module), edit.method, None)
        if not is_recorded(method):
            raise ConfigurationError(
                f"a {type(module).__name__} stands there now, which has no recorded method {edit.method!r}. "
                "Set it on an unbuilt copy from before the call: model.new(upto=...)"
            )
        origin = tags.origin(module, edit.site)
        args = arguments_again(edit.args, origin)
        kwargs = arguments_again(edit.kwargs, origin)
        with transaction(), entered(Frame(CALL, module, by=edit.by, edit=edit, again=True)):
            record.apply(edit.serial)
            method.__perform__(module, args, kwargs)
    except Exception as error:
        place_ = ".".join(("model", *tags.shown(module)))
        line = f", made at {edit.where}" if edit.where else ""
        error.add_note(f"while making the call {place_}.{edit.method}(...){line} again on the new tree")
        raise
