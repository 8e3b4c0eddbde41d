"""`Module`: a model before it has weights.

A module records the call that made it, may be configured and edited, copied (`new`), and built (`build`). Building
makes the weights; from then on the module is an ordinary ``torch.nn.Module``.

Invariants:
    * A module needs no ``super().__init__()``; with it, or in any inheritance shape, it works the same.
    * Before the build every change by the user is on the tape, an assignment of an attribute included.
    * After the build no replayml code runs in ``forward``; ``__call__`` is torch's own.
    * A call that raises changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from replayml import module as package  # imports what tells of models, or saves them, when that is used
from replayml import recipe as recipes  # likewise
from replayml.core import rebuilding, tags
from replayml.core.arguments import as_given, fresh
from replayml.core.config import Config, next_serial
from replayml.core.copying import describe
from replayml.core.errors import SelectionError
from replayml.core.hooks import run_hooks
from replayml.core.meta import CALL, ExtendedConstructorMeta, not_top_level, scope
from replayml.core.record import Record
from replayml.core.replay import realize
from replayml.core.settings import config_of, settings_of
from replayml.core.signatures import bind, call_arguments, signature_of
from replayml.core.tape import Path, Tape
from replayml.module import building, matching, wiring
from replayml.module.configuring import Configuring
from replayml.module.evaluating import Evaluating
from replayml.module.matching import MatchReport
from replayml.module.selection import Selection, select
from replayml.module.showing import Showing
from replayml.module.surgery import Replacement
from replayml.module.tasks import Tasks
from replayml.recipe import Codec

if TYPE_CHECKING:
    from replayml.module.checking import Problem
    from replayml.module.explain import Explanation

__all__ = ["Module"]

# What ``torch.nn.Module.__init__`` gives a module, read off one: it sets each by ``__setattr__``, which takes longer.
_TORCH_VALUES = {name: value for name, value in vars(nn.Module()).items() if not isinstance(value, (dict, set))}
_TORCH_TABLES = [(name, type(value)) for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set))]


class Module(Showing, Tasks, Evaluating, wiring.Wiring, Configuring, metaclass=ExtendedConstructorMeta):
    """The base class of everything that replayml records.

    Write it like a ``torch.nn.Module``; use `replayml.Layer` where a torch layer should stay open to change.

    Example:
        >>> import torch, replayml
        >>> from torch import nn
        >>> class Net(replayml.Module):
        ...     def __init__(self, width=8):
        ...         self.hidden = replayml.Layer(nn.Linear, 4, width)
        ...         self.activation = replayml.Layer(nn.ReLU)
        ...         self.out = replayml.Layer(nn.Linear, width, 2)
        ...
        ...     def forward(self, x):
        ...         return self.out(self.activation(self.hidden(x)))
        >>> net = Net().configure(width=16)
        >>> net["activation"].configure(nn.GELU)
        Selection(activation)
        >>> net.build()(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    _init_method: ClassVar[str] = "__init__"
    is_external: ClassVar[bool] = False
    if TYPE_CHECKING:  # TorchScript reads the annotations of a class and knows none of ours
        _record: Record

    # Construction ---------------------------------------------------------------------------------------------

    def __init__(self) -> None:
        """Do nothing: what torch needs is in place before any ``__init__`` runs."""

    def __pre_init__(self, /, *args: Any, **kwargs: Any) -> None:
        """Prepare a new object before its ``__init__``; called with the caller's arguments."""

    def __post_init__(self) -> None:
        """Complete an object after its ``__init__`` and its ``after_init`` hooks."""

    def __construct__(self) -> None:
        """Run ``__init__`` with the arguments in force; what an earlier run made is gone before."""
        record = self._record
        with not_top_level(self):
            if record.constructed:
                rebuilding.reset(self)
                self.__pre_init__(*record.args, **record.kwargs)
            record.constructing = True
            try:
                args, kwargs = self.get_init_args()
                if not self.is_external:  # which hands its arguments on when it is built, and changes none before
                    args, kwargs = fresh(args, kwargs) if record.constructed else as_given(args, kwargs, record.kept)
                getattr(self, self._init_method)(*args, **kwargs)
                if record.hooks is not None:
                    run_hooks(self, "after_init")
            finally:
                record.constructing = False
            record.constructed = True
            record.constructed_at = next_serial()
            self.__post_init__()

    def _init_torch(self) -> None:
        """Put in place what torch expects of a module."""
        if self.call_super_init:
            nn.Module.__init__(self)
        else:
            attributes = self.__dict__
            attributes.update(_TORCH_VALUES)
            for name, empty in _TORCH_TABLES:
                attributes[name] = empty()

    def get_init_args(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments in force: the caller's, and what was configured since."""
        record = self._record
        settings = settings_of(self)
        record.resolved = settings
        if not settings:
            return record.args, dict(record.kwargs)
        values = {name: setting.value for name, setting in settings.items() if self._takes(name)}
        named, surplus = bind(type(self), record.args, dict(record.kwargs))
        return call_arguments(type(self), {**named, **values}, surplus)

    def _takes(self, name: str) -> bool:
        """Tell whether a setting that waits at this place is for a module of this kind."""
        signature = signature_of(type(self))
        return name in signature.names or signature.accepts_kwargs

    @classmethod
    def _from_checkpoint_call(cls, kwargs: dict[str, Any]) -> Any:
        raise TypeError(f"{cls.__name__} is no replayml.Application; only those are loaded from a Lightning checkpoint")

    # Where it stands ------------------------------------------------------------------------------------------

    @property
    def tags(self) -> list[Path]:
        """The paths of this module below its root, one for each place at which it stands."""
        root = tags.root(self)
        return [tags.visible(top, slots) for top, slots in tags.paths(self) if top is root]

    @property
    def root_module(self) -> Any:
        """The topmost module above this one."""
        return tags.root(self)

    @property
    def tape(self) -> Tape:
        """The calls recorded for this hierarchy, as a sequence; for a built model, those before the build."""
        record = self._record
        return Tape(describe(self).tape if record.built else tags.root(self)._record.call.tape)

    @property
    def is_constructing(self) -> bool:
        """Whether the ``__init__`` of this module is running."""
        return self._record.constructing

    @property
    def _has_built(self) -> bool:
        return self._record.built

    @property
    def _actual_init_args(self) -> dict[str, Any]:
        return {"args": self._record.args, "kwargs": dict(self._record.kwargs)}

    @property
    def _config_tape(self) -> list[Any]:
        return list(self.tape)

    @property
    def _is_calling_stateful_method(self) -> bool:
        top = scope()
        return top is not None and top.kind is CALL

    @property
    def _user_config(self) -> Config:
        return config_of(tags.root(self))

    # Copying --------------------------------------------------------------------------------------------------

    def new(self, upto: int | None = None) -> Self:
        """Return an unbuilt copy: the same constructor call, and the tape replayed.

        A module inside a tree keeps what was set from above. Modules among the arguments are copied likewise;
        everything else is deep-copied, except functions, classes and modules of Python.

        Args:
            upto: Replay only that many entries of the tape; a negative number leaves out that many at its end.

        Raises:
            ReplayError: When an entry of the tape cannot be replayed.

        Example:
            >>> import replayml
            >>> mlp = replayml.MultiLayerPerceptron(4, [8], 2).configure(out_features=3)
            >>> mlp.new().out_features, mlp.new(upto=0).out_features
            (3, 2)
        """
        if upto is not None and (not isinstance(upto, int) or isinstance(upto, bool)):
            raise TypeError(
                f"new(upto=...) takes a number of tape entries, not {upto!r}; the tape has {len(self.tape)}"
            )
        copy: Self = realize(describe(self), upto=upto)
        top = scope()
        if top is not None and top.by is not None:
            copy._record.maker = top.by
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        record: Record | None = self.__dict__.get("_record")
        if record is None or record.built:
            return super().__reduce_ex__(protocol)
        return realize, (describe(self),)

    def recipe(
        self,
        *,
        codecs: Sequence[Codec[Any]] = (),
        limits: recipes.Limits | None = None,
        allow_pickle: bool = False,
    ) -> recipes.Recipe:
        """Return this model as data: strict JSON that `Recipe.from_json` reads in another process.

        Args:
            codecs: How to write values of types of your own; reading takes the same as ``trust=``.
            limits: How much the recipe may hold; None for the usual limits.
            allow_pickle: Keep a value without a data form, such as a lambda, as a pickle. Opening the recipe then takes
                ``allow_pickle=True`` as well, since it runs the pickle.

        Raises:
            RecipeError: When an argument has no data form; names the place.

        Example:
            >>> import replayml
            >>> mlp = replayml.MultiLayerPerceptron(4, [8], 2).configure(out_features=3)
            >>> replayml.Recipe.from_json(mlp.recipe().to_json()).model().out_features
            3
        """
        return recipes.Recipe.of(
            describe(self),
            codecs=codecs,
            built=self._record.built,
            limits=recipes.Limits() if limits is None else limits,
            allow_pickle=allow_pickle,
        )

    # Building -------------------------------------------------------------------------------------------------

    def build(
        self,
        *args: Any,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Make the weights: replace every layer below by the real object.

        Args:
            *args: Example inputs. They run through the model once, without gradients, to find the sizes left open.
            device: Where to make the weights; ``"meta"`` allocates nothing.
            dtype: The floating point type of the weights.
            seed: Draw the initial weights of each layer from a generator of its own, derived from the seed and the
                layer's tag. The global generator is not touched then.
            **kwargs: Example inputs by keyword.

        Returns:
            The object to use: the module itself; for a `Layer` or `External`, the object that it stands for.

        Raises:
            BuildError: When a value is missing.

        Example:
            >>> import torch, replayml
            >>> from torch import nn
            >>> replayml.Layer(nn.Linear, None, 2).build(torch.zeros(1, 5))
            Linear(in_features=5, out_features=2, bias=True)
        """
        if self._record.built:
            return self
        return building.build(self, args, kwargs, device=device, dtype=dtype, seed=seed)

    def create(self, *args: Any, **kwargs: Any) -> Any:
        """Return a built copy; this module stays unbuilt. Takes what `build` takes."""
        return self.new().build(*args, **kwargs)

    def _build_self(self, builder: building.Builder) -> Any:
        """Return the object that stands for this module once its children are built."""
        self._connect_maps(self)
        return self

    def _hand_over(self, result: Any) -> None:
        """Give the object that stands for this module what was put on this one; they are the same here."""

    def _take_sizes(self, sizes: Mapping[str, Any]) -> None:
        """Take the settings that were read off an example input."""
        self.configure(**sizes)

    # Files ----------------------------------------------------------------------------------------------------

    def save(
        self, path: str | os.PathLike[str], *, codecs: Sequence[Codec[Any]] = (), allow_pickle: bool = False
    ) -> None:
        """Write this model to a file or a folder, from which `replayml.load` gets it; with its weights, if it is built.

        The model is there as a whole or not at all, and an older one stays until the new one is complete.

        Args:
            path: A file that ends in ``.replayml``; or a folder, by a name without an ending.
            codecs: How to write values of types of your own; loading takes the same as ``trust=``.
            allow_pickle: Keep a value without a data form, such as a lambda, as a pickle; loading must allow it too.

        Raises:
            RecipeError: When something has no data form, or the path is of no such kind.
            CheckpointError: When the model is not what its recipe makes.

        Example:
            >>> import tempfile, replayml
            >>> path = tempfile.mkdtemp() + "/mlp.replayml"
            >>> replayml.MultiLayerPerceptron(4, [8], 2).configure(out_features=3).build().save(path)
            >>> replayml.load(path).out_features
            3
        """
        package.saving.save(self, path, codecs=codecs, allow_pickle=allow_pickle)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> str | None:
        """Write this built model into a folder, as the Hugging Face Hub keeps models.

        Args:
            save_directory: The folder; ``config.json``, ``model.safetensors`` and a model card are written into it.
            **options: ``codecs`` as for `save`; ``push_to_hub=True`` and what `push_to_hub` takes.

        Returns:
            The address of the commit, where one was made.
        """
        return package.hub.save_pretrained(self, save_directory, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Any:
        """Load a model that `save_pretrained` or `push_to_hub` wrote, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository on the Hugging Face Hub.
            **options: ``revision``, ``cache_dir``, ``force_download``, ``local_files_only`` and ``token`` for the Hub;
                ``map_location``, ``trust``, ``rename`` and ``limits`` as for `replayml.load`.

        Raises:
            CheckpointError: When the model is of another class.
        """
        return package.hub.from_pretrained(cls, pretrained_model_name_or_path, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write this built model to the Hugging Face Hub; needs the extra ``hub``.

        Args:
            repo_id: The name of the repository.
            **options: ``codecs`` as for `save`; ``commit_message``, ``private``, ``token``, ``branch``, ``create_pr``.

        Returns:
            The address of the commit.
        """
        return package.hub.push_to_hub(self, repo_id, **options)

    # Changing a built model -----------------------------------------------------------------------------------

    def load_matching(
        self,
        trained: nn.Module | Mapping[str, Any],
        *,
        rename: Mapping[str, str] | None = None,
        at_least: float = matching.LEAST_MATCH,
    ) -> MatchReport:
        """Take the trained weights that this built model has room for: see `replayml.module.matching`.

        Args:
            trained: A built model, or its ``state_dict``.
            rename: Paths in the trained model and the paths at which this one has the same.
            at_least: The share of the weights that must match; 0 allows that none does.

        Raises:
            CheckpointError: When too little matches; nothing is changed then.

        Example:
            >>> import replayml
            >>> trained = replayml.MultiLayerPerceptron(4, [8], 2).build()
            >>> print(trained.new().configure(out_features=3).build().load_matching(trained))
            2 of 4 weights loaded
              loaded: blocks.0.layer (weight, bias)
              of another shape: blocks.1.layer.weight: (2, 8) in the trained model, (3, 8) in this one, ...
        """
        return matching.load_matching(self, trained, rename=rename, at_least=at_least)

    def patched(self, selection: Any, new: Replacement, *args: Any, **kwargs: Any) -> AbstractContextManager[Self]:
        """Put another module in some places of this built model while a block runs: see `replayml.module.surgery`.

        Args:
            selection: A selection of this model, or a selector such as ``(..., "activation")``.
            new: A module, or a function from the module that stands there to the one to put there.
            *args: Example inputs of this model, to build ``new`` with where it is not built.
            **kwargs: Example inputs by keyword.
        """
        chosen = selection if isinstance(selection, Selection) else select(self, selection)
        if chosen._root is not self:
            raise SelectionError(f"{chosen!r} was selected from another model. Select from this one: model[...]")
        return chosen.patched(new, *args, **kwargs)

    # Selecting and telling ------------------------------------------------------------------------------------

    def __getitem__(self, selector: Any) -> Any:
        """Select modules below this one: ``model["blocks", 0, "layer"]``, ``model[..., "activation"]``."""
        return select(self, selector)

    def explain(self, path: str | Path, name: str) -> Explanation:
        """Tell why a setting has its value: see `replayml.module.explain`."""
        return package.explain.explain(self, path, name)

    def check(self, *args: Any, **kwargs: Any) -> list[Problem]:
        """List every unset, mistyped or shape-inconsistent value, without building: see `replayml.module.checking`."""
        return package.checking.check(self, args, kwargs)

    def to_code(self, *, lines: bool = False) -> str:
        """Return the Python code that makes this model: see `replayml.module.code`."""
        return package.code.to_code(self, lines=lines)

    def predict(
        self,
        *inputs: Any,
        batch_size: int = 32,
        device: torch.device | str | None = None,
        output_device: torch.device | str | None = None,
    ) -> Any:
        """Return the output of this built module for many rows, batch by batch: see `replayml.module.predicting`."""
        predict = package.predicting.predict
        return predict(self, *inputs, batch_size=batch_size, device=device, output_device=output_device)
