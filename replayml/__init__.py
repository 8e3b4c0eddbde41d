"""replayml makes PyTorch models replayable: a model is a constructor call plus a tape of edits.

    construct ──► configure ──► build ──► train ──► checkpoint ──► reload ──► deploy

The names below are the public ones. Those that need Lightning, or read and write models as data, are imported when
they are first used.
"""

from __future__ import annotations

import importlib
import importlib.util
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
    LifecycleError,
    NotBuiltError,
    RecipeError,
    ReplayError,
    ReplaymlError,
    SelectionError,
)
from replayml.core.errors import suggestion as _suggestion
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
    from replayml.lifecycle.action import ActionModule
    from replayml.lifecycle.binding import bind
    from replayml.lifecycle.branches import barrier, diverter, parallel, warp
    from replayml.lifecycle.choices import ifs, switch
    from replayml.lifecycle.flows import loop, pipeline
    from replayml.lifecycle.graphs import graph
    from replayml.lifecycle.packages import package
    from replayml.lifecycle.registry import module_register
    from replayml.module.saving import load
    from replayml.module.showing import make_repr
    from replayml.recipe.recipe import Recipe
    from replayml.recipe.views.diff import RecipeDiff
    from replayml.recipe.views.inspection import Inspection, inspect
    from replayml.serving.errors import ServingError
    from replayml.serving.server import ServerModule, UrlModule
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
    "ActionModule": "lifecycle.action",
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
    "barrier": "lifecycle.branches",
    "bind": "lifecycle.binding",
    "diverter": "lifecycle.branches",
    "graph": "lifecycle.graphs",
    "ifs": "lifecycle.choices",
    "inspect": "recipe.views.inspection",
    "ServerModule": "serving.server",
    "ServingError": "serving.errors",
    "UrlModule": "serving.server",
    "load": "module.saving",
    "loop": "lifecycle.flows",
    "make_repr": "module.showing",
    "module_register": "lifecycle.registry",
    "package": "lifecycle.packages",
    "parallel": "lifecycle.branches",
    "pipeline": "lifecycle.flows",
    "switch": "lifecycle.choices",
    "warp": "lifecycle.branches",
}

__all__ = [
    "SGD",
    "ActionModule",
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
    "LifecycleError",
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
    "ServerModule",
    "ServingError",
    "SmallMLP",
    "Tape",
    "TapeEntry",
    "Trainer",
    "UrlModule",
    "XLargeMLP",
    "after_build",
    "after_deploy",
    "after_fit",
    "after_init",
    "barrier",
    "before_build",
    "before_deploy",
    "before_fit",
    "bind",
    "diverter",
    "edit",
    "graph",
    "ifs",
    "initializers",
    "inspect",
    "load",
    "loop",
    "make_repr",
    "module_register",
    "package",
    "parallel",
    "pipeline",
    "stateful",
    "switch",
    "warp",
]


# The placeholders of `bind`, `_0` to `_9`.
_LATER |= {f"_{number}": "lifecycle.binding" for number in range(10)}

_GROUPS = "replayml.lifecycle.registry"


def __getattr__(name: str) -> Any:
    """Import a name of `_LATER` when it is first used, and find a group of modules: `replayml.mymodules`."""
    if name in _LATER:
        value = getattr(importlib.import_module(f"replayml.{_LATER[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is None:
        try:
            return importlib.import_module(_GROUPS).module_register.group(name)
        except ConfigurationError as error:
            hint = _suggestion(name, __all__)
            raise AttributeError(f"module 'replayml' has no attribute {name!r}.{hint} As a group: {error}") from error
    raise AttributeError(f"module 'replayml' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
