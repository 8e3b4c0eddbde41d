"""replayml makes PyTorch models replayable: a model is a constructor call plus a tape of edits.

    construct ──► configure ──► build ──► train ──► checkpoint ──► reload

The names below are the public ones. Those that need Lightning, or read and write models as data, are imported when
they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from replayml.blocks.base import BaseBlock
from replayml.blocks.components import ConvolutionalNeuralNetwork, MultiLayerPerceptron
from replayml.blocks.conv import Conv1dBlock, Conv2dBlock, Conv3dBlock
from replayml.blocks.linear import LinearBlock
from replayml.blocks.merge import Add, Cat
from replayml.blocks.plain import (
    LayerActivation,
    LayerActivationNormalization,
    LayerActivationNormalizationDropout,
    LayerActivationNormalizationUpsample,
    LayerSkip,
    PoolLayerActivationNormalization,
)
from replayml.blocks.sequential import SequentialBlock
from replayml.blocks.sized import LargeMLP, MediumMLP, SmallMLP, XLargeMLP
from replayml.core.config import Config, ConfigItem, DetachedConfigItem
from replayml.core.errors import (
    AlreadyBuiltError,
    ArgumentError,
    BuildError,
    CheckpointError,
    ConfigurationError,
    NotBuiltError,
    RecipeError,
    ReplayError,
    ReplaymlError,
    SelectionError,
)
from replayml.core.hooks import (
    after_build,
    after_deploy,
    after_fit,
    after_init,
    before_build,
    before_deploy,
    before_fit,
    edit,
    stateful,
)
from replayml.core.meta import ExtendedConstructorMeta
from replayml.core.tape import Tape, TapeEntry
from replayml.layers import initializers
from replayml.layers.containers import LayerList, Parallel, Sequential
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.layers.optimizer import SGD, Adam, AdamW, Optimizer, RMSprop
from replayml.module.matching import MatchReport
from replayml.module.module import Module
from replayml.module.selection import Selection
from replayml.recipe import Codec, Limits

if TYPE_CHECKING:
    from replayml.module.saving import load
    from replayml.recipe.recipe import Recipe
    from replayml.recipe.views.diff import RecipeDiff
    from replayml.recipe.views.inspection import Inspection, inspect
    from replayml.training.application import Application
    from replayml.training.classifier import BinaryClassifier, CategoricalClassifier, Classifier, MultiLabelClassifier
    from replayml.training.command_line import CommandLine
    from replayml.training.history import LogHistory
    from replayml.training.progress import ProgressBar
    from replayml.training.regressor import Regressor
    from replayml.training.trainer import Trainer

__version__ = "0.1.0"

# Where each name stands that is imported when it is first used.
_LATER = {
    "Application": "training.application",
    "BinaryClassifier": "training.classifier",
    "CategoricalClassifier": "training.classifier",
    "Classifier": "training.classifier",
    "CommandLine": "training.command_line",
    "Inspection": "recipe.views.inspection",
    "LogHistory": "training.history",
    "MultiLabelClassifier": "training.classifier",
    "ProgressBar": "training.progress",
    "Recipe": "recipe.recipe",
    "RecipeDiff": "recipe.views.diff",
    "Regressor": "training.regressor",
    "Trainer": "training.trainer",
    "inspect": "recipe.views.inspection",
    "load": "module.saving",
}

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Add",
    "AlreadyBuiltError",
    "Application",
    "ArgumentError",
    "BaseBlock",
    "BinaryClassifier",
    "BuildError",
    "Cat",
    "CategoricalClassifier",
    "CheckpointError",
    "Classifier",
    "Codec",
    "CommandLine",
    "Config",
    "ConfigItem",
    "ConfigurationError",
    "Conv1dBlock",
    "Conv2dBlock",
    "Conv3dBlock",
    "ConvolutionalNeuralNetwork",
    "DetachedConfigItem",
    "ExtendedConstructorMeta",
    "External",
    "Inspection",
    "LargeMLP",
    "Layer",
    "LayerActivation",
    "LayerActivationNormalization",
    "LayerActivationNormalizationDropout",
    "LayerActivationNormalizationUpsample",
    "LayerList",
    "LayerSkip",
    "Limits",
    "LinearBlock",
    "LogHistory",
    "MatchReport",
    "MediumMLP",
    "Module",
    "MultiLabelClassifier",
    "MultiLayerPerceptron",
    "NotBuiltError",
    "Optimizer",
    "Parallel",
    "PoolLayerActivationNormalization",
    "ProgressBar",
    "RMSprop",
    "Recipe",
    "RecipeDiff",
    "RecipeError",
    "Regressor",
    "ReplayError",
    "ReplaymlError",
    "Selection",
    "SelectionError",
    "Sequential",
    "SequentialBlock",
    "SmallMLP",
    "Tape",
    "TapeEntry",
    "Trainer",
    "XLargeMLP",
    "after_build",
    "after_deploy",
    "after_fit",
    "after_init",
    "before_build",
    "before_deploy",
    "before_fit",
    "edit",
    "initializers",
    "inspect",
    "load",
    "stateful",
]


def __getattr__(name: str) -> Any:
    """Import a name of `_LATER` when it is first used."""
    if name not in _LATER:
        raise AttributeError(f"module 'replayml' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"replayml.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
