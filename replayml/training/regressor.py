"""`Regressor`: predicting numbers.

Invariants:
    * Targets whose shape does not fit the predictions are refused: nothing is broadcast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from replayml.core.errors import ConfigurationError
from replayml.training.application import Application
from replayml.training.arguments import LossLike, OptimizerLike, checked_model

__all__ = ["Regressor"]


class Regressor(Application):
    """An application that trains a model to predict numbers.

    Args:
        model: The model; it returns ``(batch, targets)`` or ``(batch,)``.
        loss: By default the mean squared error.
        optimizer: An `Optimizer`; by default Adam.
        metrics: torchmetrics to log in every phase; see `Application`.
        train_metrics: torchmetrics to log while training.
        val_metrics: torchmetrics to log while validating.
        test_metrics: torchmetrics to log while testing.

    Example:
        >>> import replayml, torch
        >>> app = replayml.Regressor(replayml.MultiLayerPerceptron(4, [8], 1), loss=torch.nn.L1Loss)
        >>> app.loss
        Layer(L1Loss)
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        loss: LossLike = None,
        optimizer: OptimizerLike = None,
        metrics: Any = None,
        train_metrics: Any = None,
        val_metrics: Any = None,
        test_metrics: Any = None,
    ) -> None:
        if model is not None:
            self.model = checked_model(model, self._place_of("model"))
        super().__init__(
            loss=nn.MSELoss if loss is None else loss,
            optimizer=optimizer,
            metrics=metrics,
            train_metrics=train_metrics,
            val_metrics=val_metrics,
            test_metrics=test_metrics,
        )

    def compute_loss(self, prediction: Any, target: Any) -> Any:
        """Return the loss.

        Args:
            prediction: ``(batch, targets)`` or ``(batch,)``.
            target: The same; dimensions of size one may be missing or surplus.
        """
        target = _like(prediction, target)
        if isinstance(target, torch.Tensor) and isinstance(prediction, torch.Tensor):
            target = target.to(prediction.dtype)
        return super().compute_loss(prediction, target)

    def metrics_preprocess(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        """Return predictions and targets of one shape, as torchmetrics takes them."""
        return prediction, _like(prediction, target)


def _like(prediction: Any, target: Any) -> Any:
    """Return targets in the shape of the predictions; what is no tensor is left to the loss.

    Raises:
        ConfigurationError: When the shapes differ in more than dimensions of size one, and a loss would broadcast.
    """
    if not isinstance(prediction, torch.Tensor) or not isinstance(target, torch.Tensor):
        return target
    if [size for size in target.shape if size != 1] != [size for size in prediction.shape if size != 1]:
        raise ConfigurationError(
            f"a Regressor takes a target for each predicted number; predictions are {tuple(prediction.shape)}, targets "
            f"{tuple(target.shape)}. Give the model as many outputs as there are targets, or override compute_loss()"
        )
    return target.reshape(prediction.shape)
