"""`Regressor`: predicting numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from replayml.layers.optimizer import Optimizer
from replayml.training.application import Application

__all__ = ["Regressor"]


class Regressor(Application):
    """An application that trains a model to predict numbers.

    Args:
        model: The model; it returns ``(batch, targets)`` or ``(batch,)``.
        loss: By default the mean squared error.
        optimizer: An `Optimizer`; by default Adam.
        **kwargs: What `Application` takes.

    Example:
        >>> import replayml
        >>> replayml.Regressor(replayml.MultiLayerPerceptron(4, [8], 1)).loss
        Layer(MSELoss)
    """

    def __init__(self, model: Any = None, loss: Any = None, optimizer: Optimizer | None = None, **kwargs: Any) -> None:
        if model is not None:
            self.model = model
        super().__init__(loss=nn.MSELoss if loss is None else loss, optimizer=optimizer, **kwargs)

    def compute_loss(self, prediction: Any, target: Any) -> torch.Tensor:
        """Return the loss.

        Args:
            prediction: ``(batch, targets)`` or ``(batch,)``.
            target: The same number of values; a missing last dimension of size one is added.
        """
        if isinstance(prediction, torch.Tensor) and prediction.numel() == target.numel():
            target = target.reshape(prediction.shape).to(prediction.dtype)
        return super().compute_loss(prediction, target)

    def metrics_preprocess(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        """Return predictions and targets of one shape, as torchmetrics takes them."""
        if isinstance(prediction, torch.Tensor) and prediction.numel() == target.numel():
            target = target.reshape(prediction.shape)
        return prediction, target
