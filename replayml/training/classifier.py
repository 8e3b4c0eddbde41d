"""`Classifier`: binary, multiclass and multilabel classification.

Invariants:
    * The model returns logits in every task; losses and metrics are chosen for logits.
    * `predict` returns what the model returns; `predict_class` the decision.
    * Targets whose shape does not fit the logits are refused: nothing is broadcast.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy

from replayml.core.errors import ConfigurationError, suggestion
from replayml.layers.external import External
from replayml.training.application import Application
from replayml.training.arguments import LossLike, OptimizerLike, checked_model

__all__ = ["BinaryClassifier", "CategoricalClassifier", "Classifier", "MultiLabelClassifier"]

TASKS = ("multiclass", "binary", "multilabel")


class Classifier(Application):
    """An application that trains a model to tell classes apart.

    Args:
        model: The model; it returns logits, ``(batch, classes)``, for a binary task ``(batch,)`` or ``(batch, 1)``.
        loss: By default cross-entropy, or binary cross-entropy on logits.
        optimizer: An `Optimizer`; by default Adam.
        task: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        num_classes: How many classes or labels there are; needed for the default accuracy of two of the tasks.
        make_targets_one_hot: Turn class indices into one-hot rows before the loss, for losses that want them.
        metrics: torchmetrics to log in every phase, by default the accuracy; see `Application`.
        train_metrics: torchmetrics to log while training.
        val_metrics: torchmetrics to log while validating.
        test_metrics: torchmetrics to log while testing.

    Example:
        >>> import replayml
        >>> app = replayml.Classifier(replayml.MultiLayerPerceptron(4, [8], 3), num_classes=3)
        >>> sorted(app.val_metrics)
        ['accuracy']
    """

    _task: ClassVar[str] = "multiclass"
    _needs_targets: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module | None = None,
        loss: LossLike = None,
        optimizer: OptimizerLike = None,
        task: str | None = None,
        num_classes: int | None = None,
        make_targets_one_hot: bool = False,
        metrics: Any = None,
        train_metrics: Any = None,
        val_metrics: Any = None,
        test_metrics: Any = None,
    ) -> None:
        task = task or self._task
        if task not in TASKS:
            raise ConfigurationError(f"task={task!r} is none of {', '.join(TASKS)}.{suggestion(task, TASKS)}")
        self.task = task
        self.num_classes = num_classes
        self.make_targets_one_hot = make_targets_one_hot
        if model is not None:
            self.model = checked_model(model, self._place_of("model"))
        if loss is None:
            loss = nn.CrossEntropyLoss if task == "multiclass" else nn.BCEWithLogitsLoss
        super().__init__(
            loss=loss,
            optimizer=optimizer,
            metrics=_accuracy(task, num_classes) if metrics is None else metrics,
            train_metrics=train_metrics,
            val_metrics=val_metrics,
            test_metrics=test_metrics,
        )

    def compute_loss(self, prediction: Any, target: Any) -> Any:
        """Return the loss.

        Args:
            prediction: Logits, ``(batch, classes, ...)``; for a binary task ``(batch,)`` or ``(batch, 1)``.
            target: Class indices ``(batch, ...)`` or probabilities like ``prediction``; for a multilabel task zeros and
                ones ``(batch, labels)``.
        """
        if self.task != "multiclass":
            return super().compute_loss(prediction, self._like_logits(target, prediction).to(prediction.dtype))
        if target.shape == prediction.shape and prediction.dim() > 1:
            return super().compute_loss(prediction, target.to(prediction.dtype))
        target = self._class_indices(target, prediction)
        if self.make_targets_one_hot:
            target = nn.functional.one_hot(target, prediction.shape[1]).movedim(-1, 1).to(prediction.dtype)
        return super().compute_loss(prediction, target)

    def metrics_preprocess(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        """Return logits and integer targets, as torchmetrics takes them."""
        if self.task != "multiclass":
            return prediction, self._like_logits(target, prediction).long()
        if target.shape == prediction.shape and prediction.dim() > 1:
            return prediction, target.argmax(1)
        return prediction, self._class_indices(target, prediction)

    def _class_indices(self, target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Return class indices of the shape ``(batch, ...)`` for logits ``(batch, classes, ...)``."""
        shape = (prediction.shape[0], *prediction.shape[2:])
        if prediction.dim() < 2 or _without_ones(target.shape) != _without_ones(shape):
            raise ConfigurationError(
                f"a multiclass {type(self).__name__} takes class indices of the shape {shape} for logits of the shape "
                f"{tuple(prediction.shape)}, and got targets of the shape {tuple(target.shape)}"
            )
        return target.reshape(shape).long()

    def _like_logits(self, target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Return targets of the shape of the logits."""
        if _without_ones(target.shape) != _without_ones(prediction.shape):
            hint = (
                " Has the model one output for each class? That is task='multiclass'." if self.task == "binary" else ""
            )
            raise ConfigurationError(
                f"a {self.task} {type(self).__name__} takes one logit for each target; logits are "
                f"{tuple(prediction.shape)}, targets {tuple(target.shape)}.{hint}"
            )
        return target.reshape(prediction.shape)

    def predict_class(self, *inputs: Any, **kwargs: Any) -> torch.Tensor:
        """Return the class of each row; for a multilabel task a row of zeros and ones.

        Args:
            *inputs: What `predict` takes.
            **kwargs: What `predict` takes.
        """
        output = self.predict(*inputs, **kwargs)
        if self.task == "multiclass":
            return output.argmax(1)  # type: ignore[no-any-return]
        # A model that was trained with nn.BCELoss returns probabilities.
        threshold = 0.5 if isinstance(self.loss, nn.BCELoss) else 0.0
        return (output > threshold).long()  # type: ignore[no-any-return]


class BinaryClassifier(Classifier):
    """A `Classifier` with ``task="binary"``."""

    _task: ClassVar[str] = "binary"


class CategoricalClassifier(Classifier):
    """A `Classifier` with ``task="multiclass"``."""


class MultiLabelClassifier(Classifier):
    """A `Classifier` with ``task="multilabel"``."""

    _task: ClassVar[str] = "multilabel"


def _accuracy(task: str, classes: int | None) -> dict[str, External]:
    """Return the default metric of a task, as far as it can be known."""
    if task == "binary":
        return {"accuracy": External(BinaryAccuracy)}
    if classes is None:
        return {}
    if task == "multilabel":
        return {"accuracy": External(MultilabelAccuracy, num_labels=classes)}
    return {"accuracy": External(MulticlassAccuracy, num_classes=classes, average="micro")}


def _without_ones(shape: Iterable[int]) -> list[int]:
    """Return a shape without dimensions of size one, which change no order of the values."""
    return [size for size in shape if size != 1]
