"""`Application`: a model with what is needed to train it.

An application is a replayml module and a Lightning module at once: it is recorded, configured, copied and built like
any other, and trains under its own ``fit`` or a plain ``lightning.Trainer`` alike.

Invariants:
    * It is built once, before training starts; a strategy that shards builds it on its own device.
    * Its checkpoints carry the recipe, so that `Application.load_from_checkpoint` needs neither class nor arguments.
    * A model that could not be loaded again raises before training starts, not after.
    * What waits for training (``@before_fit``, ``@after_fit``) runs once, in the first training.
    * With a `trainset` it is trained by ``update()``, of itself or of a module that it is a part of.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning import LightningModule
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import nn

from replayml.core.hooks import run_waiting
from replayml.core.meta import quiet
from replayml.core.record import Blueprint
from replayml.core.tape import CallRecord, TapeEntry, caller
from replayml.layers.optimizer import Adam, Optimizer
from replayml.module.module import Module
from replayml.recipe import Codec
from replayml.recipe.files import weights
from replayml.training import checkpoint, lifecycle, noting
from replayml.training.arguments import (
    LossLike,
    OptimizerLike,
    as_loss,
    as_optimizer,
    check_keywords,
    require_parameters,
)
from replayml.training.hyperparameters import chosen, readable
from replayml.training.metrics import as_data, named_metrics
from replayml.training.running import Running
from replayml.training.steps import Steps

__all__ = ["Application"]

CHOSEN = "_chosen"

# What Lightning, or a checkpoint, sets on a module while it runs; it is no part of the model.
LIGHTNING_ATTRIBUTES = (frozenset(vars(LightningModule())) - frozenset(vars(nn.Module()))) | {
    "trainer",
    "fabric",
    "_compile_kwargs",
    "_compiler_ctx",
    "_hparams",
    "_hparams_initial",
    "_hparams_name",
    "_is_torch_compile",
    "training",
    "forward",
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
    CHOSEN,
    noting.DEFAULT_DTYPE,
    noting.FAULT,
    noting.EXPECTED,
    weights.MAPPED,
}


class Application(Running, Module, LightningModule):
    """The base class of everything that can be trained.

    A subclass sets ``self.model`` or defines ``forward``, and may override any of Lightning's methods. Where it
    overrides ``configure_model``, ``on_save_checkpoint`` or ``on_load_checkpoint``, it calls ``super()``'s.

    Sizes that are left open are read off the first batch. A batch is ``(inputs, targets)``; ``(x1, x2, targets)`` and
    ``((x1, x2), targets)`` call the model with several inputs, a dict has its targets under ``"y"``, and a tensor alone
    is its own target.

    Args:
        loss: Called with ``(prediction, target)``: a torch loss, its class, a function, or a `Layer`.
        optimizer: An `Optimizer`, such as ``Adam(lr=1e-3)``, or a class of ``torch.optim``; by default Adam with a
            learning rate of 1e-3.
        metrics: torchmetrics to log in every phase: a metric, a list, a dict by name, or a ``MetricCollection``.
        train_metrics: torchmetrics to log while training.
        val_metrics: torchmetrics to log while validating.
        test_metrics: torchmetrics to log while testing.

    Example:
        >>> import torch, replayml
        >>> from torch import nn
        >>> class Autoencoder(replayml.Application):
        ...     def __init__(self, width=2):
        ...         self.model = replayml.MultiLayerPerceptron(None, [width], 8)
        ...         super().__init__(loss=nn.MSELoss)
        >>> app = Autoencoder().configure(width=3)
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = app.fit(torch.randn(16, 8), max_epochs=1, enable_model_summary=False, **quiet)
        >>> app.predict(torch.randn(5, 8)).shape
        torch.Size([5, 8])
    """

    _untracked: ClassVar[frozenset[str]] = LIGHTNING_ATTRIBUTES
    _init_method: ClassVar[str] = "_initialize"

    def __init__(
        self,
        loss: LossLike = None,
        optimizer: OptimizerLike = None,
        metrics: Any = None,
        train_metrics: Any = None,
        val_metrics: Any = None,
        test_metrics: Any = None,
    ) -> None:
        self.loss = as_loss(loss, self._place_of("loss"))
        self.optimizer = Adam(lr=1e-3) if optimizer is None else as_optimizer(optimizer, self._place_of("optimizer"))
        self.train_metrics = self._metrics(metrics=metrics, train_metrics=train_metrics)
        self.val_metrics = self._metrics(metrics=metrics, val_metrics=val_metrics)
        self.test_metrics = self._metrics(metrics=metrics, test_metrics=test_metrics)

    def _initialize(self, *args: Any, **kwargs: Any) -> None:
        """Run ``__init__``, and make up for a ``super().__init__()`` that it did not call."""
        self.__init__(*args, **kwargs)  # type: ignore[misc]
        if not hasattr(self, "loss"):
            self.loss = None
        if not hasattr(self, "optimizer"):
            self.optimizer = Adam(lr=1e-3)
        for name in ("train_metrics", "val_metrics", "test_metrics"):
            if not hasattr(self, name):
                setattr(self, name, nn.ModuleDict())

    def _metrics(self, **given: Any) -> nn.ModuleDict:
        return named_metrics(given, self._place())

    def _place_of(self, argument: str) -> str:
        return f"{argument} of {self._place()}"

    def __pre_init__(self, *args: Any, **kwargs: Any) -> None:
        """Refuse unknown arguments, and record collections of metrics as what is in them, which can be made again."""
        check_keywords(type(self), args, kwargs)
        record = self._record
        for holder in (record, record.call):
            if any(as_data(value) is not value for value in (*holder.args, *holder.kwargs.values())):
                holder.args = tuple(as_data(value) for value in holder.args)
                holder.kwargs = {name: as_data(value) for name, value in holder.kwargs.items()}

    def configure(self, *args: Any, **kwargs: Any) -> Self:
        """Change arguments, of the application or of what is below it; see `Module.configure`."""
        values = {name: as_data(value) for name, value in kwargs.items()}
        return super().configure(*(as_data(value) for value in args), **values)

    # What it calls goes on the tape under the same name, so that a replay may call this one.
    functools.update_wrapper(configure, Module.configure, assigned=())

    def _init_torch(self) -> None:
        with quiet():
            LightningModule.__init__(self)
            self._log_hyperparams = True  # Lightning hands `hparams_initial` to the loggers

    # Lightning's own, where both bases have it ----------------------------------------------------------------

    @property  # type: ignore[misc]
    def device(self) -> torch.device:
        """The device that Lightning put the model on."""
        return LightningModule.device.fget(self)  # type: ignore[attr-defined,no-any-return]

    @property  # type: ignore[misc]
    def dtype(self) -> Any:
        """The floating point type of the model."""
        return LightningModule.dtype.fget(self)  # type: ignore[attr-defined]

    @property
    def hparams_initial(self) -> Any:
        """What loggers are to show: what was chosen for this application, and what it saved itself."""
        saved = LightningModule.hparams_initial.fget(self)  # type: ignore[attr-defined]
        data = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        others = data.hparams_initial if data is not None else {}  # Lightning refuses two of one name
        found = dict(self.__dict__.get(CHOSEN, {})) if self._has_built else chosen(self)
        found |= readable("optimizer", self.optimizer)
        own = {name: value for name, value in found.items() if name not in others}
        return type(saved)({**own, **{name: value for name, value in saved.items() if not name.startswith("__")}})

    def __getstate__(self) -> dict[str, Any]:
        # Lightning finds metrics by identity while it runs; those of a copy are others.
        return {**LightningModule.__getstate__(self), "_metric_attributes": None}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if not self._has_built and self._trainer is not None:
            return self  # Lightning moves what it trained to the CPU, also where the build failed
        return super()._apply(fn, recurse)

    # The learning rate, where Lightning's Tuner looks for it --------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name == "lr":
            optimizer = self.__dict__.get("_modules", {}).get("optimizer")
            if isinstance(optimizer, Optimizer):
                return getattr(optimizer, "lr")  # noqa: B009 - raises where the optimizer has none
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "lr" and "lr" not in self.__dict__ and not self._record.constructing:
            optimizer = self._modules.get("optimizer")
            if isinstance(optimizer, Optimizer):
                _set_learning_rate(self, optimizer, value)
                return
        with quiet() if lifecycle.is_of_run(self, value) else nullcontext():
            super().__setattr__(name, value)

    # Building -------------------------------------------------------------------------------------------------

    def build(self, *args: Any, **kwargs: Any) -> Self:
        """Make the weights, and note the recipe for checkpoints: see `Module.build`."""
        if not self._has_built:
            self.__dict__[CHOSEN] = chosen(self)
            # What was compiled is compiled for weights; the example goes through layers that have none yet.
            stance: AbstractContextManager[Any] = (
                nullcontext() if self._compiler_ctx is None else torch.compiler.set_stance("force_eager")
            )
            with stance:
                super().build(*args, **kwargs)
            noting.note_build(self)
        return self

    def configure_model(self) -> None:
        """Build the model, if it is not built, and make sure that it can be trained; called by Lightning."""
        if not self._has_built:
            lifecycle.build(self)
        trainer: Any = self._trainer
        if trainer is None or trainer.state.fn is not TrainerFn.FITTING:
            return
        run_waiting(self, "before_fit")
        if trainer.checkpoint_callbacks:
            noting.require_recipe(self)
            lifecycle.Start.join(trainer)
        weights.own_memory(self)
        lifecycle.Lifecycle.join(trainer)

    def configure_callbacks(self) -> list[Callback]:
        """Join the training early; called by Lightning before anything is set up."""
        lifecycle.Lifecycle.join(self.trainer)
        return []

    # Training -------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Return the torch optimizer for the trainable parameters, or for those that it was told to take."""
        optimizer = self.optimizer
        if isinstance(optimizer, Optimizer) and optimizer.kwargs.get("params") is not None:
            return optimizer.create(self)
        if not callable(optimizer):
            return optimizer
        trainable = require_parameters(self, has_forward=type(self).forward is not Steps.forward)
        return optimizer.create(trainable) if isinstance(optimizer, Optimizer) else optimizer(trainable)

    # Checkpoints ----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Make sure that the checkpoint can be loaded."""
        checkpoint.complete(self, checkpoint_)

    def on_load_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Let the random generators go on where they stood, if training resumes."""
        checkpoint.resume(self, checkpoint_)

    @classmethod
    def _from_checkpoint_call(cls, kwargs: dict[str, Any]) -> Any:
        return checkpoint.from_call(cls, kwargs)

    def save(
        self, path: str | os.PathLike[str], *, codecs: Sequence[Codec[Any]] = (), allow_pickle: bool = False
    ) -> None:
        """Write a checkpoint without a trainer; `load_from_checkpoint` and ``ckpt_path=`` read it.

        The file is there as a whole or not at all, and an older one stays until the new one is complete. With the
        weights it keeps which parameters are frozen, what is in eval mode, and tensors that no ``state_dict`` has.

        Args:
            path: Where to write it: a name that ends in ``.ckpt``. To a ``.replayml`` file, or to a folder, it is
                written as by `Module.save`.
            codecs: As for `Module.save`; a checkpoint takes none.
            allow_pickle: As for `Module.save`; a checkpoint takes none.

        Raises:
            ConfigurationError: When the name is of no kind that is loaded.
            NotBuiltError: When there are no weights yet.
            RecipeError: When the checkpoint could not be loaded.
            CheckpointError: When the model is not what its recipe makes, or a weight has no values or is not dense.
        """
        if checkpoint.is_checkpoint(path):
            checkpoint.save(self, Path(path), codecs, allow_pickle)
        else:
            super().save(path, codecs=codecs, allow_pickle=allow_pickle)

    @_restricted_classmethod
    def load_from_checkpoint(
        cls,  # noqa: N805 - a class method, which Lightning refuses on an instance
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        *,
        trust: Sequence[object] = (),
        **kwargs: Any,
    ) -> Any:
        """Load a trained application, without knowing its class or its arguments.

        The model is rebuilt without weights, then takes the tensors of the file; on the CPU they stay there until they
        are used.

        Args:
            checkpoint_path: A checkpoint that Lightning wrote: a path, a URL, or an open file.
            map_location: Where to put the tensors; the CPU by default.
            hparams_file: Not used; the checkpoint has all that is needed.
            strict: Whether every key must fit; by default what the application's ``strict_loading`` says, which is
                True if it does not say otherwise.
            weights_only: Kept for Lightning's signature; nothing is ever unpickled.
            trust: Classes and functions of yours that the checkpoint may name, besides the registered ones.
            **kwargs: Settings to change before the weights are loaded.

        Raises:
            RecipeError: When the checkpoint has no recipe, or one that is not safe to follow.
            CheckpointError: When the weights do not fit, or the application is of another class.
        """
        return checkpoint.load(
            cls, checkpoint_path, map_location=map_location, strict=strict, trust=tuple(trust), settings=kwargs
        )


def _set_learning_rate(app: Application, optimizer: Optimizer, value: Any) -> None:
    """Change the learning rate of the next training; on a built application its record follows."""
    if not app._has_built:
        optimizer.configure(lr=value)
        return
    optimizer.__dict__["_named"] = {**optimizer.__dict__["_named"], "lr": value}
    old: Any = app._record.blueprint
    entry = TapeEntry((*app._record.path, "optimizer"), "configure", (), {"lr": value}, caller())
    call = CallRecord(old.call.cls, old.call.args, old.call.kwargs, [*old.call.tape, entry], old.call.where)
    new = Blueprint(call, old.sizes)
    for below in app.modules():
        record = below.__dict__.get("_record")
        if record is not None and record.blueprint is old:
            record.blueprint = new
    noting.note_recipe(app)
