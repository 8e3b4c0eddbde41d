"""Checking: what is wrong with a model's values, before any weight exists.

    copy the model ─► example input through the copy, to find contradictions ─► make every layer ─► the findings

The build is carried out on a copy, on the meta device, and goes on after each mistake: a size that the input
contradicts is taken to be what the input says; behind a layer that cannot be made at all, nothing is said of sizes.

Invariants:
    * The model, the user's inputs and the global random generators are left as they were; no weight is allocated.
    * What builds and runs is not complained about, except for a value that contradicts its plain annotation, or that
      torch's own layer leaves unused because the input is of another size.
    * What the meta device cannot tell (a ``forward`` that reads the values of its tensors) is not complained about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from replayml.core import tags
from replayml.core.errors import BuildError
from replayml.core.meta import ExtendedConstructorMeta
from replayml.core.signatures import signature_of
from replayml.core.tape import Path, Where
from replayml.module import building
from replayml.module.annotations import contradicts, taken, written
from replayml.module.dry_run import (
    FAULTS,
    LostTrack,
    Substitute,
    Unknown,
    copy_on_meta,
    holds_unknown,
    innermost,
    is_about_meta,
    made,
    on_meta,
)
from replayml.module.explain import candidates, factory_of, settings_taken_by, shown

__all__ = ["Problem", "Sized", "check"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A value that a model cannot be built or run with.

    Attributes:
        path: The tags of the module.
        name: The setting; None when it cannot be told which one it is.
        message: What is wrong with it.
        where: The line of the user's code that it comes from, if there is one.

    Example:
        >>> print(Problem(("hidden",), "out_features", "is '8', a str; Linear takes int", Where("net.py", 7)))
        hidden.out_features is '8', a str; Linear takes int (net.py:7)
    """

    path: Path
    name: str | None
    message: str
    where: Where | None = None

    def __str__(self) -> str:
        place = ".".join((*self.path, *([] if self.name is None else [self.name]))) or "the model"
        return f"{place} {self.message}" + (f" ({self.where})" if self.where else "")


@runtime_checkable
class Sized(Protocol):
    """A module that knows which of its settings are sizes of its input."""

    def _told_by_input(self) -> tuple[str, ...]:
        """Return the settings that an input tells."""

    def _check_sizes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Return the sizes that an input contradicts, as ``(name, given, implied)``."""


class Problems(list[Problem]):
    """The problems of a model; printed, one line each."""

    def __repr__(self) -> str:
        return "\n".join(str(problem) for problem in self) or "no problems found"


def check(model: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> list[Problem]:
    """List every unset, mistyped or shape-inconsistent value of a model, without building it.

    Args:
        model: A replayml module.
        args: Example inputs, as for ``build``. Without any, sizes are not compared.
        kwargs: Example inputs by keyword.

    Returns:
        The problems in the order of the tree; none for a model that can be built.

    Example:
        >>> import replayml
        >>> net = replayml.Sequential(
        ...     replayml.Layer(nn.Linear, 8, 16), replayml.Layer(nn.Dropout, 2.0), replayml.Layer(nn.Linear, 8, 2)
        ... )
        >>> for problem in check(net, (torch.zeros(1, 4),)):
        ...     print(problem)
        0.in_features is 8, but its input says 4 (...)
        1.p is 2.0: dropout probability has to be between 0 and 1, but got 2.0 (...)
        2.in_features is 8, but its input says 16 (...)
    """
    with building.forked_rng():
        checker = _Checker(copy_on_meta(model))
        with torch.device("meta"), torch.no_grad(), building.going_on(checker):
            checker.top.to("meta")
            if args or kwargs:
                checker.follow(on_meta(args), on_meta(dict(kwargs or {})))
            checker.make(checker.top)
        return Problems(checker.listed())


class _Watched:
    """The ``forward`` of a module, watched by a checker."""

    def __init__(self, checker: _Checker, module: Any) -> None:
        self._checker = checker
        self._module = module
        self._forward: Callable[..., Any] = module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._checker.run(self._module, self._forward, args, kwargs)


class _Checker(building.Builder):
    """A build that notes what is wrong and goes on.

    Args:
        top: The copy of the model.
    """

    def __init__(self, top: Any) -> None:
        super().__init__(top, None, None, None)
        self.top = top
        names = [name for name, _ in top.named_modules(remove_duplicate=False)]
        self._order = {tuple(name.split(".")) if name else (): number for number, name in enumerate(names)}
        self._problems: dict[tuple[Path, str | None], Problem] = {}
        self._originals: dict[int, dict[str, Any]] = {}
        self._inside: dict[int, tuple[Any, Path]] = {}
        self._has_lost_track = False
        self._was_followed = False

    def listed(self) -> list[Problem]:
        """Return what was found, in the order of the tree."""
        return sorted(self._problems.values(), key=lambda problem: self._place(problem.path))

    def _place(self, path: Path) -> int:
        while path not in self._order:
            path = path[:-1]
        return self._order[path]

    def _report(self, module: Any, name: str | None, message: str, where: Where | None = None) -> None:
        if where is None:
            found = candidates(module, name) if name is not None else ()
            where = found[0].where if found else None
        path = self._path(module)
        self._problems.setdefault((path, name), Problem(path, name, message, where or module._record.call.where))

    def _path(self, module: Any) -> Path:
        _, prefix = self._inside.get(id(tags.root(module)), (None, ()))
        return (*prefix, *tags.shown(module))

    def _is_found(self, module: Any) -> bool:
        path = self._path(module)
        return any(problem.path == path for problem in self._problems.values())

    # The example input ----------------------------------------------------------------------------------------

    def follow(self, args: Any, kwargs: Any) -> None:
        """Run the example input through the model as far as that goes."""
        self._watch(self.top)
        self._was_followed = True
        try:
            building.run_example(self.top, self, args, kwargs)
        except LostTrack:
            self._has_lost_track = True

    def _watch(self, module: Any) -> None:
        for below in module.modules():
            if _is_unbuilt(below) and not isinstance(below.__dict__.get("forward"), _Watched):
                below.__dict__["forward"] = _Watched(self, below)

    def run(self, module: Any, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run one module; where its sizes contradict its input, with those that the input implies."""
        self._watch(module)  # a size that was read off the input may have made new children
        wrong = _contradictions(module, args, kwargs)
        if wrong and _is_torchs(factory_of(module)):
            self._correct(module, wrong)
            wrong = []
        try:
            return forward(*args, **kwargs)
        except FAULTS as error:
            if not wrong:
                self._report_forward(module, error)
                raise LostTrack from error
        self._correct(module, wrong)
        try:
            return forward(*args, **kwargs)
        except FAULTS as error:
            raise LostTrack from error

    def _correct(self, module: Any, wrong: list[tuple[str, Any, Any]]) -> None:
        originals = self._originals.setdefault(id(module), {})
        for name, given, implied in wrong:
            self._report(module, name, f"is {shown(given)}, but its input says {shown(implied)}")
            originals.setdefault(name, given)
        self.early.pop(id(module), None)
        module._take_sizes({name: implied for name, _, implied in wrong})

    def _report_forward(self, module: Any, error: Exception) -> None:
        if type(module).forward is nn.Module.forward:
            self._report(module, None, "has no forward to take the example input")
        elif not is_about_meta(error) and not self._is_found(module) and id(module) not in self._originals:
            text = f"cannot run the example input: {type(error).__name__}: {error}"
            self._report(module, None, text, innermost(error.__traceback__))

    # Making the layers ----------------------------------------------------------------------------------------

    def make(self, module: Any) -> Any:
        """Return the object for a module, or a stand-in."""
        try:
            return super().make(module)
        except LostTrack:
            result = Unknown()
        except FAULTS as error:
            if not is_about_meta(error):
                self._report(module, None, f"cannot be prepared for the build: {type(error).__name__}: {error}")
            result = Unknown()
        self.built[id(module)] = result
        return result

    def object_for(self, module: Any) -> Any:
        """Return the object for a module whose children are made, after a look at its settings."""
        if module._record.hooks:
            module._record.hooks.pop("after_build", None)  # these may do anything to weights, of which there are none
        self._check_kinds(module)
        self._check_missing(module)
        watched = module.__dict__.pop("forward", None)  # a layer hands its attributes on to the real object
        try:
            return super().object_for(module)
        finally:
            if watched is not None:
                module.__dict__["forward"] = watched

    def _check_kinds(self, module: Any) -> None:
        factory = factory_of(module)
        signature = signature_of(factory)
        for name in settings_taken_by(module):
            found = candidates(module, name)
            annotation = taken(signature.parameters.get(name))
            if found and found[0].source != "default" and contradicts(found[0].value, annotation):
                value = found[0].value
                takes = f"{_name(factory)} takes {written(annotation)}"
                self._report(module, name, f"is {shown(value)}, {_article(type(value).__name__)}; {takes}")

    def _check_missing(self, module: Any) -> None:
        if not hasattr(type(module), "_left_open"):
            return
        told = module._told_by_input() if isinstance(module, Sized) else ()
        lacking = module._left_open(module.kwargs)
        for name in lacking:
            if name not in told:
                self._report(module, name, f"has no value, and {_name(factory_of(module))} needs one. Configure it")
            elif not self._was_followed:
                self._report(module, name, "has no value. Configure it, or give an example input that tells it")
            elif not self._has_lost_track:
                self._report(module, name, "has no value, and the example input does not come by. Configure it")
        if lacking:
            raise LostTrack

    def construct(self, module: Any, factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the real class of a layer on the meta device; any other class is not called."""
        if not (isinstance(factory, type) and issubclass(factory, nn.Module)) or holds_unknown((args, kwargs)):
            return Unknown()
        result, error = made(factory, args, kwargs)
        if _is_unbuilt(result):
            self._inside[id(result)] = (result, self._path(module))
        if error is not None and is_about_meta(error):
            raise LostTrack from error
        wrong = self._wrong_values(module)
        if error is not None:
            wrong |= self._blame(module, factory, args, kwargs, error)
        optional = wrong - signature_of(factory).required
        if optional:
            substitute, _ = made(factory, args, _without(kwargs, optional))
            if substitute is not None and not substitute.state_dict():
                return Substitute(substitute)
        if error is not None:
            raise LostTrack from error
        return result

    def _wrong_values(self, module: Any) -> set[str]:
        """Return the settings with a value of a wrong kind."""
        path, sizes = self._path(module), self._originals.get(id(module), {})
        return {name for at, name in self._problems if at == path and name is not None and name not in sizes}

    def _blame(self, module: Any, factory: Any, args: Any, kwargs: dict[str, Any], error: Exception) -> set[str]:
        """Report the argument because of which a layer cannot be made, or the whole call; return its name.

        What is known to be wrong already, and a size that was corrected, is not held against the others.
        """
        required, wrong = signature_of(factory).required, self._wrong_values(module)
        sizes = self._originals.get(id(module), {})
        if wrong & required:
            return set()
        if wrong or sizes:
            kwargs = _without({**kwargs, **sizes}, wrong)
            other = made(factory, args, kwargs)[1]
            if other is None or is_about_meta(other):
                return set()
            error = other
        unset = {name for name in kwargs if kwargs[name] is None and name in required}
        for name in unset:
            self._report(module, name, f"has no value, and {_name(factory)} needs one. Configure it")
        if unset:
            return unset
        for name in kwargs if _is_torchs(factory) else ():
            others = {**kwargs, name: 1} if name in required else _without(kwargs, {name})
            if made(factory, args, others)[1] is None:
                self._report(module, name, f"is {shown(kwargs[name])}: {error}")
                return {name}
        self._report(module, None, f"cannot be made: {type(error).__name__}: {error}")
        return set()


# Looking at modules ---------------------------------------------------------------------------------------------


def _is_unbuilt(module: Any) -> bool:
    return isinstance(type(module), ExtendedConstructorMeta) and not module._record.built


def _is_torchs(factory: Any) -> bool:
    return str(getattr(factory, "__module__", "")).partition(".")[0] == "torch"


def _contradictions(module: Any, args: Any, kwargs: Any) -> list[tuple[str, Any, Any]]:
    if not isinstance(module, Sized):
        return []
    try:
        return module._check_sizes(args, kwargs)
    except BuildError:  # the rule for a size does not fit this input; whether the layer does, it says when it runs
        return []


def _without(kwargs: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def _name(factory: Any) -> str:
    return getattr(factory, "__name__", None) or repr(factory)


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
