"""`Application`: a model with what is needed to train it.

An application is a replayml module and a Lightning module at once: it is recorded, configured, copied and built like
any other, and trains under its own ``fit`` or a plain ``lightning.Trainer`` alike.

Invariants:
    * It is built once, before training starts; a strategy that shards builds it on its own device.
    * Its checkpoints carry the recipe, so that `Application.load_from_checkpoint` needs neither class nor arguments.
    * A model that could not be loaded again raises before training starts, not after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from torch import nn

from replayml.core.errors import NotBuiltError
from replayml.core.meta import quiet
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.layers.optimizer import Adam, Optimizer
from replayml.module.building import forked_rng
from replayml.module.module import Module
from replayml.module.predicting import predict
from replayml.training import checkpoint
from replayml.training.data import as_loader
from replayml.training.trainer import Trainer

__all__ = ["Application"]

# What Lightning itself sets on a module while it runs; it is no part of the model.
LIGHTNING_ATTRIBUTES = (frozenset(vars(LightningModule())) - frozenset(vars(nn.Module()))) | {
    "trainer",
    "fabric",
    "_hparams",
    "_hparams_initial",
    "_hparams_name",
}


class Application(Module, LightningModule):  # type: ignore[misc]
    """The base class of everything that can be trained.

    A subclass sets ``self.model`` or defines ``forward``, and may override any of Lightning's methods.

    Args:
        loss: Called with ``(prediction, target)``: a torch loss, its class, or a function.
        optimizer: An `Optimizer`, such as ``Adam(lr=1e-3)``; by default Adam with a learning rate of 1e-3.
        metrics: torchmetrics to log in every phase.
        train_metrics: torchmetrics to log while training.
        val_metrics: torchmetrics to log while validating.
        test_metrics: torchmetrics to log while testing.
    """

    _untracked: ClassVar[frozenset[str]] = LIGHTNING_ATTRIBUTES

    def __init__(
        self,
        loss: Any = None,
        optimizer: Optimizer | None = None,
        metrics: Any = None,
        train_metrics: Any = None,
        val_metrics: Any = None,
        test_metrics: Any = None,
    ) -> None:
        self.loss = Layer(loss) if isinstance(loss, type) else loss
        self.optimizer = Adam(lr=1e-3) if optimizer is None else optimizer
        self.train_metrics = _metrics(metrics, train_metrics)
        self.val_metrics = _metrics(metrics, val_metrics)
        self.test_metrics = _metrics(metrics, test_metrics)

    def _init_torch(self) -> None:
        with quiet():
            LightningModule.__init__(self)

    # Lightning's own, where both bases have it ----------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device that Lightning put the model on."""
        return LightningModule.device.fget(self)  # type: ignore[attr-defined,no-any-return]

    @property
    def dtype(self) -> Any:
        """The floating point type of the model."""
        return LightningModule.dtype.fget(self)  # type: ignore[attr-defined]

    # Building -------------------------------------------------------------------------------------------------

    def build(self, *args: Any, **kwargs: Any) -> Self:
        """Make the weights, and note the recipe for checkpoints: see `Module.build`."""
        if not self._has_built:
            super().build(*args, **kwargs)
            checkpoint.note_recipe(self)
        return self

    def configure_model(self) -> None:
        """Build the model, if it is not built; called by Lightning where a strategy wants the weights made."""
        if not self._has_built:
            example = _example(self)
            self.build(*example)

    # Steps ----------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call ``self.model``."""
        model = self._modules.get("model")
        if model is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no 'model'; assign one in __init__ or define forward()"
            )
        return model(*args, **kwargs)

    def batch_preprocess(self, batch: Any) -> Any:
        """Return a batch as ``(inputs, targets)``; a tuple of more than two has its last item as the target."""
        if isinstance(batch, (tuple, list)) and len(batch) > 2:
            return tuple(batch[:-1]), batch[-1]
        if isinstance(batch, (tuple, list)) and len(batch) == 1:
            return batch[0], batch[0]
        return batch

    def forward_with(self, inputs: Any) -> Any:
        """Call the model with the inputs of a batch: several when they are a tuple."""
        return self(*inputs) if isinstance(inputs, tuple) else self(inputs)

    def compute_loss(self, prediction: Any, target: Any) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            prediction: What the model returned, ``(batch, ...)``.
            target: The target, ``(batch, ...)``.
        """
        if self.loss is None:
            raise NotImplementedError(f"{type(self).__name__} has no loss: give loss=..., or define compute_loss()")
        return self.loss(prediction, target)  # type: ignore[no-any-return]

    def metrics_preprocess(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        """Return the predictions and targets as the metrics take them."""
        return prediction, target

    def _step(self, stage: str, batch: Any) -> torch.Tensor:
        inputs, target = self.batch_preprocess(batch)
        prediction = self.forward_with(inputs)
        loss = self.compute_loss(prediction, target)
        size = target.shape[0] if isinstance(target, torch.Tensor) and target.dim() else None
        training = stage == "train"
        self.log(
            f"{stage}_loss",
            loss,
            on_step=training,
            on_epoch=True,
            prog_bar=True,
            batch_size=size,
            sync_dist=not training,
        )
        metrics = getattr(self, f"{stage}_metrics")
        shown, wanted = self.metrics_preprocess(prediction, target)
        for name, metric in metrics.items():
            metric(shown, wanted)
            self.log(f"{stage}_{name}", metric, on_step=False, on_epoch=True, prog_bar=True, batch_size=size)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss of a training batch; logs ``train_loss`` and the metrics."""
        return self._step("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss of a validation batch; logs ``val_loss`` and the metrics."""
        return self._step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss of a test batch; logs ``test_loss`` and the metrics."""
        return self._step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return the model's output for a batch; a pair is taken as inputs and targets."""
        inputs = self.batch_preprocess(batch)[0] if isinstance(batch, (tuple, list)) else batch
        return self.forward_with(inputs)

    def configure_optimizers(self) -> Any:
        """Return the torch optimizer for the trainable parameters."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = self.optimizer
        if isinstance(optimizer, Optimizer):
            return optimizer.create(trainable)
        return optimizer(trainable) if callable(optimizer) else optimizer

    # Running --------------------------------------------------------------------------------------------------

    def create_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer that `fit` uses; takes what `replayml.Trainer` takes."""
        return Trainer(**kwargs)

    def fit(
        self,
        data: Any,
        val_data: Any = None,
        *,
        max_epochs: int | None = None,
        batch_size: int = 32,
        val_batch_size: int | None = None,
        ckpt_path: str | Path | None = None,
        trainer: LightningTrainer | None = None,
        **trainer_kwargs: Any,
    ) -> LightningTrainer:
        """Train the model.

        Args:
            data: ``(x, y)`` of tensors or arrays, a dataset, a DataLoader or a LightningDataModule.
            val_data: The same, for validation after each epoch.
            max_epochs: How often to go through the data.
            batch_size: Rows in a batch, where ``data`` is no loader.
            val_batch_size: The same for ``val_data``; by default ``batch_size``.
            ckpt_path: Resume from this checkpoint; ``"last"`` and so on as in Lightning.
            trainer: Train with this trainer; else one is made with ``trainer_kwargs``.
            **trainer_kwargs: What `replayml.Trainer` takes.

        Returns:
            The trainer; its ``history`` has what was logged.
        """
        if trainer is None:
            trainer = self.create_trainer(
                **({} if max_epochs is None else {"max_epochs": max_epochs}), **trainer_kwargs
            )
        loader = as_loader(data, batch_size=batch_size, shuffle=True)
        val_loader = None if val_data is None else as_loader(val_data, batch_size=val_batch_size or batch_size)
        trainer.fit(self, **_loaders(loader, train_dataloaders=loader, val_dataloaders=val_loader), ckpt_path=ckpt_path)
        return trainer

    def validate(self, data: Any, **kwargs: Any) -> Mapping[str, float]:
        """Return the validation loss and metrics over data; takes what `test` takes."""
        return self._evaluate("validate", data, **kwargs)

    def test(self, data: Any, **kwargs: Any) -> Mapping[str, float]:
        """Return the test loss and metrics over data.

        Args:
            data: What `fit` takes.
            **kwargs: ``batch_size``, ``ckpt_path``, ``trainer``, or what `replayml.Trainer` takes.
        """
        return self._evaluate("test", data, **kwargs)

    def _evaluate(
        self,
        phase: str,
        data: Any,
        *,
        batch_size: int = 32,
        ckpt_path: str | Path | None = None,
        trainer: LightningTrainer | None = None,
        **trainer_kwargs: Any,
    ) -> Mapping[str, float]:
        trainer = trainer or self.create_trainer(**{"logger": False, "enable_checkpointing": False, **trainer_kwargs})
        loader = as_loader(data, batch_size=batch_size)
        results = getattr(trainer, phase)(
            self, **_loaders(loader, dataloaders=loader), ckpt_path=ckpt_path, verbose=False
        )
        return {name: value for result in results for name, value in result.items()}

    def predict(self, *inputs: Any, batch_size: int = 32, **kwargs: Any) -> Any:
        """Return the model's output for inputs of many rows, batch by batch: see `Module.predict`."""
        return predict(self, *inputs, batch_size=batch_size, **kwargs)

    # Lightning's hooks ----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Refuse to train what a checkpoint could not give back."""
        super().on_fit_start()
        if self.trainer.checkpoint_callbacks:
            checkpoint.require_recipe(self)

    def on_save_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Make sure that the recipe is in the checkpoint."""
        checkpoint.add_recipe(self, checkpoint_)

    # Checkpoints ----------------------------------------------------------------------------------------------

    @classmethod
    def _from_checkpoint_call(cls, kwargs: dict[str, Any]) -> Any:
        return checkpoint.from_hyper_parameters(cls, kwargs)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        *,
        trust: tuple[object, ...] | list[object] = (),
        **kwargs: Any,
    ) -> Any:
        """Load a trained application, without knowing its class or its arguments.

        The model is rebuilt without allocating anything, then takes the tensors of the file.

        Args:
            checkpoint_path: A checkpoint that Lightning wrote.
            map_location: Where to put the tensors.
            hparams_file: Not used; the checkpoint has all that is needed.
            strict: Whether every key must fit; by default True.
            weights_only: Kept for Lightning's signature; nothing is ever unpickled.
            trust: Classes and functions of yours that the checkpoint may name, besides the registered ones.
            **kwargs: Settings to change before the weights are loaded.

        Raises:
            RecipeError: When the checkpoint has no recipe, or one that is not safe to follow.
            CheckpointError: When the weights do not fit, or the application is of another class.
        """
        return checkpoint.load(
            cls,
            checkpoint_path,
            map_location=map_location,
            strict=strict is not False,
            trust=tuple(trust),
            settings=kwargs,
        )


def _metrics(*groups: Any) -> nn.ModuleDict:
    """Return metrics under their names; each phase has objects of its own."""
    found: dict[str, nn.Module] = {}
    for group in groups:
        items = group.items() if isinstance(group, Mapping) else [(None, metric) for metric in _listed(group)]
        for name, metric in items:
            one = metric.new() if isinstance(metric, External) else metric.clone()
            cls = one.classtype if isinstance(one, External) else type(one)
            key = str(name or cls.__name__).lower()
            found[key] = one
    return nn.ModuleDict(found)


def _listed(group: Any) -> list[Any]:
    if group is None:
        return []
    return list(group) if isinstance(group, (list, tuple)) else [group]


def _loaders(loader: Any, **loaders: Any) -> dict[str, Any]:
    """Return Lightning's keyword for what `as_loader` returned."""
    if hasattr(loader, "train_dataloader"):
        return {"datamodule": loader}
    return loaders


def _example(app: Application) -> tuple[Any, ...]:
    """Return example inputs for the build: none where no size is open, else those of the first batch."""
    if not any(isinstance(module, Layer) and module._left_open(module.kwargs) for module in app.modules()):
        return ()
    batch = app.example_input_array
    if batch is None:
        batch = app.batch_preprocess(_first_batch(app))
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
    return batch if isinstance(batch, tuple) else (batch,)


def _first_batch(app: Application) -> Any:
    """Return the first batch of what the trainer is about to run."""
    trainer = app._trainer
    if trainer is None:
        raise NotBuiltError(f"{type(app).__name__} has open sizes. Build it with an example: app.build(x)")
    loops = {"fit": trainer.fit_loop, "validate": trainer.validate_loop, "test": trainer.test_loop}
    loop = loops.get(trainer.state.fn.value, trainer.predict_loop) if trainer.state.fn else trainer.fit_loop
    loader = loop._data_source.dataloader()
    while isinstance(loader, (list, tuple, dict)):
        loader = next(iter(loader.values() if isinstance(loader, dict) else loader))
    with forked_rng():
        return next(iter(loader))
