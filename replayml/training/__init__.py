"""Training: `Application`, `Classifier`, `Regressor`, `Trainer`, checkpoints.

Importing any of it imports all of its applications, so that a checkpoint of each can be loaded by its name.
"""

from replayml.training.application import Application
from replayml.training.classifier import BinaryClassifier, CategoricalClassifier, Classifier, MultiLabelClassifier
from replayml.training.history import LogHistory
from replayml.training.progress import ProgressBar
from replayml.training.regressor import Regressor
from replayml.training.trainer import Trainer

__all__ = [
    "Application",
    "BinaryClassifier",
    "CategoricalClassifier",
    "Classifier",
    "LogHistory",
    "MultiLabelClassifier",
    "ProgressBar",
    "Regressor",
    "Trainer",
]
