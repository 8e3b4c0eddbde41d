"""The tree: how modules come to stand in one another, and how one of them is constructed again.

Constructing a module again runs its ``__init__`` with the arguments that are in force now, on the same object. What
its earlier ``__init__`` made is dropped and made anew; what others set on it stays.

    settings by name   take effect as the new children are put in place, so that an ``__init__`` sees them
    edits              (calls such as ``append``) are made again afterwards, in the order in which they were first made

Invariants:
    * A module is constructed again only if a setting in force changed.
    * When something below it is shared with the outside, the lowest module that makes all of it is constructed
      again, so that what was shared stays shared.
    * Every change is noted in the journal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from replayml.core import tags
from replayml.core.config import Config, Edit, Node, Setting, displace, place, winner
from replayml.core.deferral import deferring
from replayml.core.errors import ConfigurationError
from replayml.core.journal import note, refill, transaction
from replayml.core.meta import CALL, Frame, entered
from replayml.core.record import NOTHING, Forecast, Line
from replayml.core.replay import arguments_again
from replayml.core.tape import Path

__all__ = [
    "add_edit",
    "add_setting",
    "attach",
    "bring_in_line",
    "bring_in_line_for_maker",
    "config_of",
    "detach",
    "forget_own",
    "is_settled",
    "reconstruct",
    "reset",
    "settings_of",
    "settle",
]


def config_of(top: Any) -> Config:
    """Return the config of a root; it is made when there is none."""
    record = top._record
    if record.config is None:
        record.config = Config(top)
        note(setattr, record, "config", None)
    return record.config  # type: ignore[no-any-return]


# Settings and edits ---------------------------------------------------------------------------------------------


def add_setting(module: Any, name: str, setting: Setting) -> None:
    """Put a setting on a module, at each place where the module stands."""
    for top, path in tags.paths(module):
        _place(config_of(top).ensure(path), name, setting)


def add_edit(module: Any, edit: Edit) -> None:
    """Put an edit on a module, at each place where the module stands."""
    for top, path in tags.paths(module):
        _place(config_of(top).ensure(path), None, edit)


def _place(node: Node, name: str | None, thing: Setting | Edit) -> None:
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


def nodes_of(module: Any) -> list[Node]:
    """Return the config nodes at all places where the module stands."""
    found = []
    for top, path in tags.paths(module):
        config = top._record.config
        node = None if config is None else config.find(path)
        if node is not None:
            found.append(node)
        if top._record.expected is not None:
            maker, slots = top._record.expected
            found += _nodes_at(maker, (*slots, *path))
    return found


def _nodes_at(module: Any, slots: Path) -> list[Node]:
    """Return the config nodes of a place below a module, which stands somewhere or is expected to."""
    found = []
    for top, path in tags.paths(module):
        config = top._record.config
        node = None if config is None else config.find((*path, *slots))
        if node is not None:
            found.append(node)
        if top._record.expected is not None:
            maker, above = top._record.expected
            found += _nodes_at(maker, (*above, *path, *slots))
    return found


def settings_of(module: Any) -> dict[str, Setting]:
    """Return the setting in force for each name that somebody set on the module."""
    nodes = nodes_of(module)
    if nodes and not module._record.links and module._record.expected is not None:
        module._record.speculative = True
    return _in_force(nodes, module)


def _in_force(nodes: list[Node], module: Any) -> dict[str, Setting]:
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


def _future_root(module: Any) -> Any:
    top = tags.root(module)
    while top._record.expected is not None:
        top = tags.root(top._record.expected[0])
    return top


# Putting in and taking out --------------------------------------------------------------------------------------


def attach(parent: Any, slots: Path, child: Any) -> None:
    """Note that ``child`` stands in ``parent`` now, and give it the settings that wait for it there."""
    record = child._record
    if child is parent or (record.children and any(child is above for above in tags.ancestors(parent))):
        raise ConfigurationError(
            f"{type(child).__name__} cannot stand below itself: it was assigned to "
            f"{'.'.join(slots)!r} of a module that it contains. Assign a copy: .new()"
        )
    if record.links and made_within(tags.root(child), parent):
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
        for above in tags.ancestors(parent):
            above._record.sharing = True
        _stand_forward(child)
    if record.config is not None:
        for top, path in tags.paths(parent):
            _graft(config_of(top), (*path, *slots), record.config)
    settle(child)


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
    for index, (other, at) in enumerate(record.links):
        if other is parent and at == slots:
            del record.links[index]
            note(record.links.insert, index, (other, at))
            break
    siblings = parent._record.children
    if slots in siblings:
        del siblings[slots]
        note(siblings.__setitem__, slots, child)
    if not record.links and record.children:
        _stand_back(child)
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
            _place(node, name, own)


def _is_by(thing: Setting | Edit, module: Any) -> bool:
    return thing.by is not None and any(above is module for above in tags.ancestors(thing.by))


def _stand_forward(come: Any) -> None:
    """Let what stands below a module that came into a tree stand there first, and not in what the tree's maker left."""
    top = tags.root(come)
    inside = _subtree(come)
    for module in inside.values():
        links = module._record.links
        if len(links) > 1:
            first = tags.root(module)
            if first is not top and made_within(first, top):
                note(setattr, module._record, "links", links)
                module._record.links = sorted(links, key=lambda link: tags.root(link[0]) is not top)


def _subtree(top: Any) -> dict[int, Any]:
    inside: dict[int, Any] = {}
    stack = [top]
    while stack:
        module = stack.pop()
        if id(module) not in inside:
            inside[id(module)] = module
            stack += module._record.children.values()
    return inside


def _stand_back(gone: Any) -> None:
    """Let what a module that was taken out shares with others stand at the others' places first."""
    inside = _subtree(gone)
    for module in inside.values():
        links = module._record.links
        if len(links) > 1 and id(links[0][0]) in inside:
            note(setattr, module._record, "links", links)
            module._record.links = sorted(links, key=lambda link: id(link[0]) in inside)


def forget_own(module: Any, slot: str) -> None:
    """Forget what the ``__init__`` of a module, which is running, set at one of its children: the child is replaced."""
    record = module._record
    if not record.made:
        return
    nodes = {
        id(node)
        for top, path in tags.paths(module)
        if top._record.config is not None
        for _, node in top._record.config.below((*path, slot))
    }
    for placed in [placed for placed in record.made if id(placed[0]) in nodes]:
        displace(placed)


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
                    _place(target, name, setting.copy())
            for edit in node.edits:
                _place(target, None, edit.copy())


# Constructing again ---------------------------------------------------------------------------------------------


def settle(module: Any) -> None:
    """Bring a module, and what is below it, in line with the settings that wait at its place."""
    record = module._record
    if record.deferred is not None:
        return
    nodes = nodes_of(module)
    if not nodes and not record.speculative:
        return
    if record.constructed and not _same(record.resolved, _in_force(nodes, module)):
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


def bring_in_line(module: Any, by_maker: bool = False) -> None:
    """Construct a module again, if the settings in force changed.

    Args:
        module: The module.
        by_maker: Whether an ``__init__`` above changed them: it is not run again for that.
    """
    if not is_settled(module):
        reconstruct(module, module if by_maker else None)


def bring_in_line_for_maker(module: Any) -> None:
    """Construct a module again, if the ``__init__`` above it changed the settings in force."""
    bring_in_line(module, by_maker=True)


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
        with transaction(), deferring():
            target.__construct__()
            _repeat_edits(target, everything=outermost)
    finally:
        if outermost:
            record.rebuilding = False


def _construction_site(module: Any) -> Any:
    """Return the lowest module whose construction makes all that the module shares with the outside."""
    site = module
    while True:
        outside = _shared_outside(site)
        if outside is None:
            return site
        above = {id(other) for other in tags.ancestors(outside)}
        common = next((other for other in tags.ancestors(site) if other is not site and id(other) in above), None)
        if common is None or common._record.constructing:
            return site
        site = common


def _shared_outside(site: Any) -> Any:
    """Return a module outside of ``site`` that holds something made by ``site``, or None."""
    if not site._record.children and not site._record.creations:
        return None
    inside = _subtree(site)
    for module in inside.values():
        for made in module._record.creations or ():
            for parent, _ in made._record.links:
                if id(parent) not in inside:
                    return parent
    return None


def made_within(module: Any, site: Any) -> bool:
    """Tell whether a module was made, directly or not, by the ``__init__`` of ``site``."""
    maker = module._record.maker
    while maker is not None:
        if maker is site:
            return True
        maker = maker._record.maker
    return False


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
    record.creations = record.made_at = record.expected = None
    record.speculative = False
    _release(module, module)
    record.children = {}
    record.resolved = NOTHING
    record.made = record.applied = record.hooks = record.slots = record.plain = record.replaced = None
    module.__dict__.clear()
    module.__dict__["_record"] = record
    module._init_torch()


def _forecast(module: Any) -> dict[Line, list[Forecast | None]]:
    """Tell where each module that this one made stands."""
    found: dict[Line, list[Forecast | None]] = {}
    for made in module._record.creations or ():
        path = _path_below(made, module)
        forecast = None if path is None else Forecast(made, path, _forecast(made))
        found.setdefault(made._record.line, []).append(forecast)
    return found


def _path_below(module: Any, above: Any) -> Path | None:
    path: Path = ()
    while module is not above:
        links = module._record.links
        if not links:
            return None
        module, slots = links[0]
        path = (*slots, *path)
    return path


def _restore(record: Any, known: dict[str, Any]) -> None:
    """Give a record back its content, but for what tells what is going on right now."""
    going_on = record.constructing, record.rebuilding
    refill(record.__dict__, known)
    record.constructing, record.rebuilding = going_on


def _release(module: Any, site: Any) -> None:
    """Take apart what the ``__init__`` of ``site`` made, and drop what it set."""
    record = module._record
    for placed in record.made or ():
        displace(placed)
    for slots, child in list(record.children.items()):
        if child._record.rewrapped or made_within(child, site):
            if child._record.gone is None:
                child._record.gone = (module, slots)
                note(setattr, child._record, "gone", None)
            _release(child, site)
        detach(module, slots, child)


def _repeat_edits(target: Any, everything: bool) -> None:
    """Make the edits on a module, and below it, again.

    Args:
        target: The module that was constructed.
        everything: False inside a larger construction: the user's edits on the larger tree come at its end.
    """
    pending: dict[int, tuple[Edit, Any, Path]] = {}
    for top, path in tags.paths(target):
        config = top._record.config
        for at, node in () if config is None else config.below(path):
            for edit in node.edits:
                if everything or edit.by is not None or edit.carried:
                    pending.setdefault(edit.serial, (edit, top, at))
    for serial in sorted(pending):
        edit, top, at = pending[serial]
        node = top._record.config.find(at)
        if node is None or not any(edit is other for other in node.edits):
            continue  # a part of another edit, which was made again and made it anew
        module = tags.child_at(top, at)
        record = getattr(module, "_record", None)
        if record is None or record.built or serial in (record.applied or ()):
            continue
        _repeat(edit, module)


def _repeat(edit: Edit, module: Any) -> None:
    for placed in edit.made:
        displace(placed)
    edit.made = []
    record = module._record
    method = type(module).__dict__.get(edit.method) or getattr(type(module), edit.method)
    try:
        args = arguments_again(edit.args, tags.root(module))
        kwargs = arguments_again(edit.kwargs, tags.root(module))
        with transaction(), entered(Frame(CALL, module, by=edit.by, edit=edit)):
            record.apply(edit.serial)
            method.__perform__(module, args, kwargs)
    except Exception as error:
        place_ = ".".join(("model", *tags.shown(module)))
        line = f", made at {edit.where}" if edit.where else ""
        error.add_note(f"while making the call {place_}.{edit.method}(...){line} again on the new tree")
        raise
