"""Selectors: many modules of a model at once, by where they stand.

    model["blocks", 0, "layer"]      by names and indices
    model[..., "activation"]         wherever the name stands, at any depth
    model["layer|activation"]        either name
    model["blocks", "layer#0:2"]     only the first two matches of that name
    model["blocks", 1:]              slices of children
    model["**.activation"]           the same as ``...``, as one string, for files and the command line
    model["blocks[0].layer"]         a path, as `replayml.module.paths` reads it; or ``"blocks.0.layer"``

Invariants:
    * A selection holds paths, not modules: it stays right when modules are constructed again.
    * A call on a selection reaches each module once, all or nothing.
    * A selection that matches nothing raises when it is used.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from replayml.core.errors import AlreadyBuiltError, ConfigurationError, SelectionError, nearest, suggestion
from replayml.core.journal import transaction
from replayml.core.tags import walk
from replayml.core.tape import Path
from replayml.module import surgery
from replayml.module.paths import split

__all__ = ["Selection", "select"]


def select(root: Any, selector: Any) -> Selection:
    """Return what a selector matches below a module.

    Args:
        root: The module to start from.
        selector: A string, index, slice, ``...`` or a tuple of these.

    Raises:
        SelectionError: When the selector is none of these.
    """
    return Selection(root, _matches(root, [()], _parts(selector)), selector)


class Selection:
    """Modules of one model, and the calls that can be made on all of them.

    Example:
        >>> import replayml
        >>> from torch import nn
        >>> mlp = replayml.MultiLayerPerceptron(4, [8, 8], 2)
        >>> len(mlp[..., "layer"])
        3
        >>> mlp[..., "activation"].first.configure(nn.GELU)
        Selection(blocks.0.activation)
        >>> mlp[..., "layr"].configure(bias=False)
        Traceback (most recent call last):
            ...
        replayml.core.errors.SelectionError: [..., 'layr'] matches nothing in MultiLayerPerceptron. ...
    """

    def __init__(self, root: Any, paths: list[Path], selector: Any) -> None:
        self._root = root
        self._paths = paths
        self._selector = selector

    # What is selected -----------------------------------------------------------------------------------------

    @property
    def paths(self) -> list[Path]:
        """The paths of the selected modules below the module that was selected from."""
        return list(self._paths)

    def list_names(self) -> list[Path]:
        """Return the paths of the selected modules; the same as `paths`."""
        return self.paths

    def modules(self) -> list[Any]:
        """Return the selected modules, each once."""
        return [module for _, module in self._found()]

    def _found(self) -> Iterator[tuple[Path, Any]]:
        seen: set[int] = set()
        for path in self._paths:
            module = walk(self._root, path)
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                yield path, module

    def __iter__(self) -> Iterator[Any]:
        return iter(self.modules())

    def __len__(self) -> int:
        return len(self.modules())

    def __bool__(self) -> bool:
        return bool(self._paths)

    def __repr__(self) -> str:
        return f"Selection({', '.join('.'.join(path) for path in self._paths)})"

    # Narrowing ------------------------------------------------------------------------------------------------

    def __getitem__(self, selector: Any) -> Selection:
        return Selection(self._root, _matches(self._root, self._paths, _parts(selector)), (self._selector, selector))

    @property
    def first(self) -> Selection:
        """The first match only."""
        return Selection(self._root, self._paths[:1], self._selector)

    @property
    def all(self) -> Selection:
        """Every match; the selection itself."""
        return self

    def filter(self, function: Callable[[str, nn.Module], bool]) -> Selection:
        """Keep the modules for which ``function(dotted_path, module)`` is true."""
        kept = [path for path, module in self._found() if function(".".join(path), module)]
        return Selection(self._root, kept, self._selector)

    def isinstance(self, cls: type | tuple[type, ...]) -> Selection:
        """Keep the modules of a class, and the layers that stand for one.

        Args:
            cls: A class, or several, such as ``nn.Conv2d``.
        """

        def matches(_: str, module: Any) -> bool:
            wrapped = getattr(module, "classtype", None)
            return builtins.isinstance(module, cls) or (builtins.isinstance(wrapped, type) and issubclass(wrapped, cls))

        return self.filter(matches)

    def hasattr(self, name: str) -> Selection:
        """Keep the modules that have an attribute."""
        return self.filter(lambda _, module: builtins.hasattr(module, name))

    # Calling --------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Callable[..., Selection]:
        first = next((module for _, module in self._found()), None) if not name.startswith("_") else self
        if name.startswith("_") or (first is not None and not callable(getattr(first, name, None))):
            raise AttributeError(
                f"a Selection calls methods; {name!r} is none of {type(first).__name__}."
                f"{suggestion(name, dir(type(first)))} For values: [m.{name} for m in selection.modules()]"
            )

        def call(*args: Any, **kwargs: Any) -> Selection:
            found = list(self._found())
            if not found:
                raise self._empty()
            with transaction():
                for path, _ in found:
                    self._call(walk(self._root, path), path, name, args, kwargs)
            return self

        return call

    def configure(self, *args: Any, **kwargs: Any) -> Selection:
        """Configure every selected module."""
        record = getattr(self._root, "_record", None)
        if record is not None and record.built:
            raise AlreadyBuiltError(
                f"{type(self._root).__name__} is built; its configuration is fixed. "
                "Configure an unbuilt copy: model.new()[...].configure(...)"
            )
        return self.__getattr__("configure")(*args, **kwargs)

    def replace(self, new: surgery.Replacement | str, *args: Any, **kwargs: Any) -> Selection:
        """Put a module in the place of each selected one; with a name first, in the place of that child of each.

        Args:
            new: What to put there: see `replayml.module.surgery`.
            *args: In a built tree, example inputs of the whole model to build ``new`` with.
            **kwargs: Example inputs by keyword.
        """
        if builtins.isinstance(new, str):
            return self.__getattr__("replace")(new, *args, **kwargs)
        surgery.replace(self._root, self.some_paths(), new, *args, **kwargs)
        return self

    def patched(self, new: surgery.Replacement, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        """Put a module in the place of each selected one of a built model while a block runs; gives the model."""
        return surgery.patched(self._root, self.some_paths(), new, *args, **kwargs)

    def some_paths(self) -> list[Path]:
        """Return the paths of the selected modules, of which there must be one.

        Raises:
            SelectionError: When nothing is selected; names the nearest existing paths.
        """
        if not self._paths:
            raise self._empty()
        return self._paths

    def log_output(self, name: str) -> Selection:
        """Keep the last output of the first match in the logs."""
        return self.first.__getattr__("log_output")(name)

    def log_input(self, name: str) -> Selection:
        """Keep the last input of the first match in the logs."""
        return self.first.__getattr__("log_input")(name)

    def _call(self, module: Any, path: Path, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        method = getattr(module, name, None)
        if not callable(method):
            raise ConfigurationError(
                f"{type(module).__name__} at {'.'.join(path)!r} has no method {name!r}. "
                "Narrow the selection: .isinstance(...) or .hasattr(...)"
            )
        method(*args, **kwargs)

    def _empty(self) -> SelectionError:
        existing = [name for name, _ in self._root.named_modules() if name]
        wanted = ".".join(str(part) for part in _parts(self._selector) if builtins.isinstance(part, (str, int)))
        close = nearest(wanted, existing, 3) or nearest(wanted, {name.rsplit(".", 1)[-1] for name in existing}, 3)
        hint = f"The nearest existing paths: {', '.join(close)}." if close else f"Existing: {', '.join(existing[:10])}."
        return SelectionError(f"{_text(self._selector)} matches nothing in {type(self._root).__name__}. {hint}")


def _text(selector: Any) -> str:
    return f"[{', '.join(_texts(selector))}]"


def _texts(selector: Any) -> Iterator[str]:
    if builtins.isinstance(selector, tuple):
        for part in selector:
            yield from _texts(part)
    else:
        yield "..." if selector is ... else repr(selector)


def _parts(selector: Any) -> list[Any]:
    """Return a selector as a list of simple parts."""
    if builtins.isinstance(selector, tuple):
        return [part for item in selector for part in _parts(item)]
    if builtins.isinstance(selector, list):
        return [selector]
    if builtins.isinstance(selector, str):
        return [... if part == "**" else part for part in split(selector)]
    if selector is ... or builtins.isinstance(selector, (int, slice)):
        return [selector]
    raise SelectionError(
        f"{selector!r} is no selector. Select by name, index, slice, '...', or a tuple of these: "
        "model['blocks', 0, 'layer'], model[..., 'activation']"
    )


def _matches(root: Any, starts: list[Path], parts: list[Any]) -> list[Path]:
    found = starts
    for index, part in enumerate(parts):
        if part is ...:
            below = [path for start in found for path in _descend(root, start)]
            found = list(dict.fromkeys(below if index + 1 < len(parts) else below[1:]))
        else:
            found = list(dict.fromkeys(_step(root, found, part)))
    return found


def _children(root: Any, path: Path) -> dict[str, Any]:
    module = walk(root, path)
    return {} if module is None else {name: child for name, child in module._modules.items() if child is not None}


def _descend(root: Any, start: Path) -> Iterator[Path]:
    yield start
    for name in _children(root, start):
        yield from _descend(root, (*start, name))


def _step(root: Any, starts: list[Path], part: Any) -> list[Path]:
    if builtins.isinstance(part, str):
        places = [(*start, child) for start in starts for child in _children(root, start)]
        chosen: set[Path] = set()
        for alternative in part.split("|"):
            name, _, bounds = alternative.partition("#")
            matching = [path for path in places if name in ("*", path[-1])]
            chosen.update(matching[_slice(bounds)] if bounds else matching)
        return [path for path in places if path in chosen]
    found: list[Path] = []
    for start in starts:
        names = list(_children(root, start))
        if builtins.isinstance(part, int):
            if -len(names) <= part < len(names):
                found.append((*start, names[part]))
        elif builtins.isinstance(part, slice):
            found += [(*start, name) for name in names[part]]
        else:
            for item in part:
                found += _step(root, [start], item)
    return found


def _slice(bounds: str) -> slice:
    try:
        numbers = [int(number) if number else None for number in bounds.split(":")]
    except ValueError as error:
        raise SelectionError(f"'#{bounds}' is no index or slice. Write 'layer#0' or 'layer#0:2'") from error
    if len(numbers) == 1 and numbers[0] is not None:
        return slice(numbers[0], numbers[0] + 1 or None)
    return slice(*numbers)
