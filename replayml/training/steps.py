"""What happens to a batch: from the loader's structure to inputs and targets, through the model, to losses and metrics.

Invariants:
    * Every phase takes the same batches; one that overrides ``train_preprocess`` changes training alone.
    * A metric counts each batch once, and each of several loaders has metrics of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn

from replayml.core.errors import ConfigurationError

__all__ = ["Stage", "Steps"]

Stage = Literal["train", "val", "test"]

_STAGES: Mapping[TrainerFn, Stage] = MappingProxyType(
    {TrainerFn.FITTING: "train", TrainerFn.VALIDATING: "val", TrainerFn.TESTING: "test"}
)


class Steps:
    """The part of `Application` that this file is about."""

    loss: Any
    _modules: dict[str, Any]
    _needs_targets: ClassVar[bool] = False
    _metric_attributes: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call ``self.model``."""
        model = self._modules.get("model")
        if model is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no 'model'; assign one in __init__ or define forward()"
            )
        return model(*args, **kwargs)

    def _asks(self) -> Any:
        """Return what gets the arguments of a call as they are."""
        return self._modules.get("model")

    def batch_preprocess(self, batch: Any) -> Any:
        """Return a batch as ``(inputs, targets)``; inputs in a tuple or list are several arguments of ``forward``."""
        if isinstance(batch, Mapping):
            if "y" not in batch:
                raise ConfigurationError(
                    f"a batch that is a dict has its targets under 'y'; this one has {', '.join(map(repr, batch))}. "
                    "Override batch_preprocess(batch) to return (inputs, targets)"
                )
            inputs = {name: value for name, value in batch.items() if name != "y"}
            return (inputs["x"] if inputs.keys() == {"x"} else inputs), batch["y"]
        if not isinstance(batch, (tuple, list)):
            return batch, batch
        if len(batch) == 1:
            return batch[0], batch[0]
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]

    def train_preprocess(self, batch: Any) -> Any:
        """Return a training batch as ``(inputs, targets)``."""
        return self.batch_preprocess(batch)

    def val_preprocess(self, batch: Any) -> Any:
        """Return a validation batch as ``(inputs, targets)``."""
        return self.batch_preprocess(batch)

    def test_preprocess(self, batch: Any) -> Any:
        """Return a test batch as ``(inputs, targets)``."""
        return self.batch_preprocess(batch)

    def _inputs_of(self, batch: Any, phase: TrainerFn | None) -> Any:
        """Return the inputs in a batch; for prediction they may stand alone, and a dict without targets is one."""
        if phase is not None and phase in _STAGES:
            return getattr(self, f"{_STAGES[phase]}_preprocess")(batch)[0]
        if isinstance(batch, Mapping) and "y" not in batch:
            return batch["x"] if batch.keys() == {"x"} else batch
        return self.batch_preprocess(batch)[0]

    def forward_with(self, inputs: Any) -> Any:
        """Call the model with the inputs of a batch: several when they are a tuple or a list."""
        model: Any = self
        return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)

    def compute_loss(self, prediction: Any, target: Any) -> Any:
        """Return the loss of a batch; or a dict of losses, whose sum is minimised and which are logged by name.

        Args:
            prediction: What the model returned, ``(batch, ...)``.
            target: The target, ``(batch, ...)``.
        """
        if self.loss is None:
            raise NotImplementedError(f"{type(self).__name__} has no loss: give loss=..., or define compute_loss()")
        return self.loss(prediction, target)

    def metrics_preprocess(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        """Return the predictions and targets as the metrics take them."""
        return prediction, target

    # Logging is Python; torch.compile cannot trace it, and stops before it instead.
    log = torch.compiler.disable(LightningModule.log)  # type: ignore[no-untyped-call]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def log_metrics(
        self, stage: Stage, prediction: Any, target: Any, *, dataloader_idx: int = 0, **options: Any
    ) -> None:
        """Update the metrics of a stage and log them, each as ``{stage}_{name}``.

        Args:
            stage: ``"train"``, ``"val"`` or ``"test"``.
            prediction: What the model returned.
            target: The target.
            dataloader_idx: From which of several loaders the batch is; each has metrics of its own.
            **options: What ``self.log`` takes.
        """
        shown, wanted = self.metrics_preprocess(prediction, target)
        for name, metric in self._metrics_of(stage, dataloader_idx).items():
            metric.update(shown, wanted)
            self.log(f"{stage}_{name}", metric, **{"on_step": False, "on_epoch": True, **options})

    def _metrics_of(self, stage: Stage, dataloader_idx: int) -> Any:
        """Return the metrics of a stage for one of several loaders, which are made when they are first needed."""
        metrics: Any = self._modules[f"{stage}_metrics"]
        if dataloader_idx == 0:
            return metrics
        name = f"{stage}_metrics_{dataloader_idx}"
        if name not in self._modules or self._modules[name].keys() != metrics.keys():
            copies = copy.deepcopy(metrics).train()
            for metric in copies.values():
                metric.reset()
            self._modules[name] = copies
            self._metric_attributes = None  # Lightning looks for its metrics again
        return self._modules[name]

    def _step(self, stage: Stage, batch: Any, dataloader_idx: int = 0) -> torch.Tensor:
        inputs, target = getattr(self, f"{stage}_preprocess")(batch)
        if self._needs_targets and target is inputs:
            raise ConfigurationError(
                f"the {stage} data of {type(self).__name__} has no targets. Give inputs and targets: (x, y)"
            )
        try:
            prediction = self.forward_with(inputs)
        except RuntimeError as error:
            _note_types(error, self, inputs)
            raise
        losses = self.compute_loss(prediction, target)
        rows = target.shape[0] if isinstance(target, torch.Tensor) and target.dim() else None
        options: dict[str, Any] = {"on_epoch": True, "prog_bar": True, "batch_size": rows, "sync_dist": True}
        named = dict(losses) if isinstance(losses, Mapping) else {"loss": losses}
        total: Any = sum(named.values())
        for name, value in {**named, "loss": total}.items():
            self.log(f"{stage}_{name}", value, on_step=stage == "train", **options)
        self.log_metrics(stage, prediction, target, dataloader_idx=dataloader_idx, prog_bar=True, batch_size=rows)
        return total  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss of a training batch; logs ``train_loss`` and the metrics."""
        return self._step("train", batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> torch.Tensor:
        """Return the loss of a validation batch; logs ``val_loss`` and the metrics."""
        return self._step("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> torch.Tensor:
        """Return the loss of a test batch; logs ``test_loss`` and the metrics."""
        return self._step("test", batch, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return the model's output for a batch; a pair is taken as inputs and targets."""
        return self.forward_with(self._inputs_of(batch, TrainerFn.PREDICTING))


def _note_types(error: RuntimeError, app: Any, inputs: Any) -> None:
    """Add to an error of the forward pass that inputs and weights differ in type, if they do."""
    listed = inputs if isinstance(inputs, (tuple, list)) else [inputs]
    given = {one.dtype for one in listed if isinstance(one, torch.Tensor) and one.is_floating_point()}
    made = {parameter.dtype for parameter in app.parameters() if parameter.is_floating_point()}
    if len(given) == len(made) == 1 and given != made:
        (given_type,), (made_type,) = given, made
        error.add_note(
            f"the inputs are {given_type} and the weights {made_type}: give x.to({made_type}), or build the "
            f"application for such inputs: build(x, dtype={given_type})"
        )
