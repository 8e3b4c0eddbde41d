"""Old checkpoints, which keep a model as dill bytes: reading one, in a process of its own.

    python -m replayml.cli.legacy IN OUT RESULT [OLD=NEW ...]

`replayml convert` starts this. The bytes are unpickled here, which runs whatever they say, so that nobody else has to:
what comes out is a model file without pickles. Deeplay itself is not needed, nor imported: its pickles hold the class,
the arguments and the tape of each module, which is what a recipe holds.

Invariants:
    * Nothing is imported or run for a file before the caller has said that it is trusted: `replayml convert` asks.
    * A model is written only when its recipe makes exactly the weights that the checkpoint has; otherwise the weights
      alone are, and every reason is told.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dill
import torch
from safetensors.torch import save as to_safetensors
from torch import nn

import replayml
from replayml.core.copying import describe, realize
from replayml.core.errors import RecipeError
from replayml.core.meta import ExtendedConstructorMeta
from replayml.core.tape import CallRecord, TapeEntry
from replayml.recipe.faults import shown
from replayml.recipe.files.atomic import replace_file

__all__ = ["main"]

RECIPE_KEY = "__from_ckpt_application"
ARGS_KEY = "__build_args"
KWARGS_KEY = "__build_kwargs"

DEEPLAY = "deeplay"
"""The package whose pickles are read without it."""

_OTHER_NAMES = MappingProxyType({"DeeplayModule": "Module"})

_DEFAULTS: Mapping[str, tuple[str, int, Any]] = MappingProxyType(
    {
        "BinaryClassifier": ("loss", 1, CallRecord(nn.BCELoss)),
        "CategoricalClassifier": ("loss", 1, CallRecord(nn.CrossEntropyLoss)),
        "Classifier": ("loss", 1, CallRecord(nn.CrossEntropyLoss)),
        "MultiLabelClassifier": ("loss", 1, CallRecord(nn.BCELoss)),
        "Regressor": ("loss", 1, CallRecord(nn.L1Loss)),
        "SGD": ("lr", 1, 0.1),
    }
)
"""Arguments whose default in Deeplay is another one than here: the name, the position, and Deeplay's default."""


# Reading --------------------------------------------------------------------------------------------------------


class StandIn:
    """Stands for an instance of a class that makes a record of itself; a subclass stands for each such class.

    Attributes:
        origin: The name in the file.
        target: The class to make a model with, or None when there is none.
        state: What the file keeps of the instance.
    """

    origin = ""
    target: Any = None
    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take any call that a pickle makes."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _stand_in(origin: str, target: Any) -> type[StandIn]:
    return type(origin.rpartition(".")[2], (StandIn,), {"origin": origin, "target": target})


class Reader(dill.Unpickler):  # type: ignore[misc] # dill ships no types
    """Unpickles a model as plain data: its modules become stand-ins.

    Args:
        data: The bytes.
        rename: Modules that have another name now.
    """

    def __init__(self, data: bytes, rename: Mapping[str, str]) -> None:
        super().__init__(io.BytesIO(data))
        self._rename = rename

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in the file stands for."""
        module = self._renamed(module)
        origin = f"{module}.{name}"
        if module.partition(".")[0] == DEEPLAY:
            return _stand_in(origin, _ours(name))
        if origin == f"{realize.__module__}.{realize.__qualname__}":
            return _as_it_is
        if origin == "dill._dill._create_type":
            return self._create_type
        try:
            found = super().find_class(module, name)
        except (AttributeError, ImportError):
            return _stand_in(origin, None)
        if isinstance(found, ExtendedConstructorMeta):
            return _stand_in(origin, found)
        return _stand_in(origin, None) if _is_of_deeplay(found) else found

    def _renamed(self, module: str) -> str:
        fitting = [old for old in self._rename if module == old or module.startswith(f"{old}.")]
        if not fitting:
            return module
        old = max(fitting, key=len)
        return self._rename[old] + module[len(old) :]

    def _create_type(self, metaclass: Any, name: str, bases: tuple[type, ...], content: dict[str, Any]) -> Any:
        """Return a class that the file holds as code; one that makes records of its instances has a stand-in."""
        if any(isinstance(kind, type) and issubclass(kind, StandIn) for kind in (metaclass, *bases)):
            module = self._renamed(str(content.get("__module__", "__main__")))
            if module != content.get("__module__"):
                return self.find_class(module, name)
            return _stand_in(f"{module}.{name}", None)
        return dill._dill._create_type(metaclass, name, bases, content)


def _as_it_is(record: Any) -> Any:
    """Stand for ``realize``: a record stays one."""
    return record


def _ours(name: str) -> Any:
    """Return what replayml has under a name of Deeplay's, or None."""
    name = _OTHER_NAMES.get(name, name)
    return getattr(replayml, name) if name in replayml.__all__ else None


def _is_of_deeplay(thing: Any) -> bool:
    return isinstance(thing, type) and type(thing).__module__.partition(".")[0] == DEEPLAY


# Making records -------------------------------------------------------------------------------------------------


class Converter:
    """Makes a record of what was read.

    Attributes:
        problems: What has no counterpart, in words.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._known: dict[int, Any] = {}
        self._kept: list[Any] = []

    def value(self, value: Any) -> Any:
        """Return a value with its stand-ins replaced by records; one object stays one object."""
        if id(value) not in self._known:
            self._kept.append(value)
            self._known[id(value)] = self._value(value)
        return self._known[id(value)]

    def _value(self, value: Any) -> Any:
        if isinstance(value, StandIn):
            return self._record(value)
        if isinstance(value, CallRecord):
            entries = [TapeEntry(e.tags, e.method, self.value(e.args), self.value(dict(e.kwargs))) for e in value.tape]
            return CallRecord(self.value(value.cls), self.value(value.args), self.value(value.kwargs), entries)
        if isinstance(value, type) and issubclass(value, StandIn):
            return self._class(value)
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(self.value(item) for item in value)
        if type(value) is dict:
            return {key: self.value(item) for key, item in value.items()}
        return describe(value) if isinstance(value, replayml.Module) else value

    def _record(self, instance: StandIn) -> CallRecord:
        cls = self._class(type(instance))
        state = instance.state
        if not isinstance(state, dict) or not {"args", "kwargs"} <= state.keys():
            self._tell(f"{instance.origin}: the file does not tell how this object was made")
            return CallRecord(cls)
        record = CallRecord(cls, self.value(tuple(state["args"])), self.value(dict(state["kwargs"])))
        name, position, default = _DEFAULTS.get(instance.origin.rpartition(".")[2], ("", 0, None))
        if name and instance.origin.startswith(f"{DEEPLAY}.") and len(record.args) <= position:
            record.kwargs.setdefault(name, default)
        for tags, method, args, kwargs in state.get("_config_tape") or ():
            if method != "configure" or args or kwargs:  # what delegates is on the tape too, without arguments
                record.tape.append(TapeEntry(_path(tags), method, self.value(tuple(args)), self.value(dict(kwargs))))
        return record

    def _class(self, stand_in: type[StandIn]) -> Any:
        if stand_in.target is None:
            self._tell(_no_counterpart(stand_in.origin))
        return stand_in if stand_in.target is None else stand_in.target

    def _tell(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def _no_counterpart(origin: str) -> str:
    module, _, name = origin.rpartition(".")
    if module.partition(".")[0] == DEEPLAY:
        return f"{origin}: replayml has no {name}"
    if module == "__main__":
        return (
            f"{origin}: a class of a script or notebook. Put it into a module, based on replayml's classes, "
            "and say --rename __main__=THAT_MODULE"
        )
    return (
        f"{origin}: there is no such class that is based on replayml's. Change the import in {module}, or say "
        f"--rename {module}=NEW_MODULE"
    )


def _path(tags: Any) -> tuple[str, ...]:
    """Return the first of the paths at which a module stood."""
    first = tags[0] if tags and not isinstance(tags[0], str) else tags
    return tuple(str(part) for part in first)


# Converting -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What became of a checkpoint.

    Attributes:
        model: The model as the call that makes it, or an empty text.
        written: The file that was written.
        has_structure: Whether the file holds the model, or its weights alone.
        weights: How many tensors it holds.
        kept: What was converted, in words.
        lost: What was not, and why.
    """

    model: str = ""
    written: str = ""
    has_structure: bool = False
    weights: int = 0
    kept: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return {
            "model": self.model,
            "written": self.written,
            "has_structure": self.has_structure,
            "weights": self.weights,
            "converted": list(self.kept),
            "not_converted": list(self.lost),
        }


def convert(source: Path, target: Path, rename: Mapping[str, str]) -> Outcome:
    """Write what can be read of an old checkpoint as a file without pickles.

    Args:
        source: The checkpoint.
        target: What to write: ``NAME.ckpt`` for a checkpoint, anything else for a model file.
        rename: Modules that have another name now.

    Raises:
        RecipeError: When the file is no such checkpoint.
    """
    content = _opened(source)
    parameters = content["hyper_parameters"]
    record, lost = _record_of(parameters[RECIPE_KEY], rename)
    outcome = Outcome(model="" if record is None else str(record))
    app = None
    if record is not None and not lost:
        app, lost = _made(record, parameters, content["state_dict"])
    if app is None:
        return _write_weights(target, content["state_dict"], outcome, lost)
    return _write_model(target, app, content, outcome)


def _opened(source: Path) -> dict[str, Any]:
    try:
        content: Any = torch.load(source, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file makes torch raise whatever it may
        reason = shown(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise RecipeError(
            "unsafe-file",
            str(source),
            f"this is no checkpoint that torch opens without unpickling: {reason}. Only its model may be dill bytes",
        ) from error
    parameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(parameters, dict) or not isinstance(content.get("state_dict"), dict):
        raise RecipeError("not-a-model", str(source), "this is no Lightning checkpoint: it lacks 'hyper_parameters'")
    if isinstance(parameters.get(RECIPE_KEY), str):
        raise RecipeError("not-legacy", str(source), "this checkpoint needs no conversion: its recipe is JSON already")
    if not isinstance(parameters.get(RECIPE_KEY), bytes):
        raise RecipeError("not-legacy", str(source), f"its hyper-parameters hold no model under {RECIPE_KEY!r}")
    opened: dict[str, Any] = content
    return opened


def _record_of(data: bytes, rename: Mapping[str, str]) -> tuple[CallRecord | None, tuple[str, ...]]:
    """Return the record that a pickle holds, and what in it has no counterpart."""
    converter = Converter()
    try:
        found = converter.value(Reader(data, rename).load())
    except Exception as error:  # noqa: BLE001 - the bytes are code, which may raise anything; the reason is told
        return None, (f"the model cannot be unpickled: {type(error).__name__}: {error}",)
    if not isinstance(found, CallRecord):
        return None, (f"the model is a {type(found).__name__}, which tells nothing of how it was made",)
    return found, tuple(converter.problems)


def _made(record: CallRecord, parameters: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Return the trained model that a record makes, or None and the reasons why it makes none."""
    try:
        app = realize(record)
        if not isinstance(app, replayml.Application):
            return None, (f"{type(app).__name__} is no replayml.Application",)
        app = app.build(*parameters.get(ARGS_KEY, ()), **parameters.get(KWARGS_KEY, {}))
        report = app.load_matching(state, at_least=0)
    except Exception as error:  # noqa: BLE001 - the model's own code may raise anything; the reason is told
        return None, (f"the model cannot be made again: {type(error).__name__}: {error}",)
    if not report.is_complete:
        return None, (f"the model that is made again has other weights:\n{report}",)
    return app, ()


# Writing --------------------------------------------------------------------------------------------------------


def _write_model(target: Path, app: Any, content: dict[str, Any], outcome: Outcome) -> Outcome:
    kept, lost = ["model", "weights"], []
    if target.suffix == ".ckpt":
        progress = [name for name in ("epoch", "global_step", "loops", "callbacks") if name in content]
        optimizers = [name for name in ("optimizer_states", "lr_schedulers") if content.get(name)]
        if list(content["state_dict"]) != list(app.state_dict()):
            lost += [f"{name}: the order of the weights is another one" for name in optimizers]
            optimizers = []
        new = {name: content[name] for name in ("pytorch-lightning_version", *progress, *optimizers) if name in content}
        new["state_dict"] = app.state_dict()
        app.on_save_checkpoint(new)
        replace_file(target, lambda file: torch.save(new, file))
        kept += [*progress, *optimizers]
    else:
        app.save(target)
        lost += [name for name in ("optimizer_states", "lr_schedulers", "loops", "callbacks") if content.get(name)]
        lost = [f"{name}: a model file holds a model; name a .ckpt file to keep it" for name in lost]
    outcome.written, outcome.has_structure, outcome.weights = str(target), True, len(app.state_dict())
    outcome.kept, outcome.lost = tuple(kept), tuple(lost)
    return outcome


def _write_weights(target: Path, state: Mapping[str, Any], outcome: Outcome, lost: Sequence[str]) -> Outcome:
    tensors = {name: value.clone().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    others = [f"{name}: no tensor but {type(value).__name__}" for name, value in state.items() if name not in tensors]
    target = target.with_suffix(".safetensors")
    data = to_safetensors(tensors)
    replace_file(target, lambda file: file.write(data))
    outcome.written, outcome.weights = str(target), len(tensors)
    outcome.kept, outcome.lost = ("weights",), (*lost, *others)
    return outcome


def main(words: Sequence[str]) -> None:
    """Convert a checkpoint and write the outcome as JSON, in a file: what runs here may print anything.

    Args:
        words: The file to read, the one to write, the one for the outcome, and renamings ``OLD=NEW``.
    """
    source, target, result, *renamings = words
    rename = {old: new for old, _, new in (word.partition("=") for word in renamings)}
    try:
        data = {"outcome": convert(Path(source), Path(target), rename).as_data()}
    except RecipeError as error:
        data = {"error": {"code": error.code, "where": error.where, "message": error.message}}
    Path(result).write_text(json.dumps(data), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
