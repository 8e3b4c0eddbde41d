"""`Classifier`: binary, multiclass and multilabel classification.

Invariants:
    * The model returns logits in every task; losses and metrics are chosen for logits.
    * `predict` returns what the model returns; `predict_class` the decision.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy

from replayml.core.errors import ConfigurationError, suggestion
from replayml.layers.external import External
from replayml.layers.optimizer import Optimizer
from replayml.training.application import Application

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
        **kwargs: What `Application` takes.

    Example:
        >>> import replayml
        >>> app = replayml.Classifier(replayml.MultiLayerPerceptron(4, [8], 3), num_classes=3)
        >>> sorted(app.val_metrics)
        ['accuracy']
    """

    _task: ClassVar[str] = "multiclass"

    def __init__(
        self,
        model: Any = None,
        loss: Any = None,
        optimizer: Optimizer | None = None,
        task: str | None = None,
        num_classes: int | None = None,
        make_targets_one_hot: bool = False,
        **kwargs: Any,
    ) -> None:
        task = task or self._task
        if task not in TASKS:
            raise ConfigurationError(f"task={task!r} is none of {', '.join(TASKS)}.{suggestion(task, TASKS)}")
        self.task = task
        self.num_classes = num_classes
        self.make_targets_one_hot = make_targets_one_hot
        if model is not None:
            self.model = model
        if loss is None:
            loss = nn.CrossEntropyLoss if task == "multiclass" else nn.BCEWithLogitsLoss
        metrics = kwargs.pop("metrics", None)
        if metrics is None:
            metrics = _accuracy(task, num_classes)
        super().__init__(loss=loss, optimizer=optimizer, metrics=metrics, **kwargs)

    def compute_loss(self, prediction: Any, target: Any) -> torch.Tensor:
        """Return the loss.

        Args:
            prediction: Logits, ``(batch, classes)``; for a binary task ``(batch,)`` or ``(batch, 1)``.
            target: Class indices ``(batch,)``, or for a multilabel task zeros and ones ``(batch, labels)``.
        """
        if self.task == "multiclass":
            target = target.squeeze(-1) if target.dim() == prediction.dim() and target.shape[-1] == 1 else target
            if self.make_targets_one_hot:
                target = nn.functional.one_hot(target.long(), prediction.shape[-1]).to(prediction.dtype)
            elif not target.is_floating_point():
                target = target.long()
        else:
            target = target.reshape(prediction.shape).to(prediction.dtype)
        return super().compute_loss(prediction, target)

    def metrics_preprocess(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        """Return logits and integer targets of one shape, as torchmetrics takes them."""
        if self.task == "multiclass":
            return prediction, target.reshape(prediction.shape[0], *prediction.shape[2:]).long()
        return prediction, target.reshape(prediction.shape).long()

    def predict_class(self, *inputs: Any, **kwargs: Any) -> torch.Tensor:
        """Return the class of each row; for a multilabel task a row of zeros and ones.

        Args:
            *inputs: What `predict` takes.
            **kwargs: What `predict` takes.
        """
        logits = self.predict(*inputs, **kwargs)
        if self.task == "multiclass":
            return logits.argmax(1)  # type: ignore[no-any-return]
        return (logits > 0).long()  # type: ignore[no-any-return]


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
