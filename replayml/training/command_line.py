"""`CommandLine`: Lightning's command line for applications, with models and optimizers from YAML files.

    python main.py fit --config run.yaml --model.num_classes 10
    python main.py test --config run.yaml --ckpt_path best.ckpt

Invariants:
    * Everything is Lightning's but what the class names.
    * A checkpoint is opened without unpickling.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from lightning.pytorch.cli import LightningCLI

from replayml.training.trainer import Trainer

__all__ = ["CommandLine"]


class CommandLine(LightningCLI):
    """Lightning's ``LightningCLI`` for applications.

    It takes what ``LightningCLI`` takes. A file gives each module by its ``class_path`` and ``init_args``, the
    optimizer as one of ``replayml.Adam``, ``AdamW``, ``SGD`` and ``RMSprop``; ``main.py`` is one line,
    ``CommandLine(replayml.Classifier, MyData)``::

        model:
          num_classes: 10
          model: {class_path: replayml.MultiLayerPerceptron, init_args: {...}}
          optimizer: {class_path: replayml.Adam, init_args: {lr: 0.001}}

    A torch layer is named by its own class, ``class_path: torch.nn.Linear``. `replayml.Layer`, and whatever else takes
    ``*args``, cannot be named, since a file gives arguments by name: write an annotated function,
    ``def linear(width: int) -> nn.Module: return replayml.Layer(nn.Linear, None, width)``, and name that.

    What differs from ``LightningCLI``:

    * ``--ckpt_path`` takes checkpoints of applications, whose recipe is no set of arguments; the files give the model.
    * There is no ``--optimizer``, which would need the weights before they exist; the optimizer is the model's.
    * The trainer is replayml's.

    Raises:
        ImportError: When jsonargparse is not installed, which is part of the extra ``cli``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if importlib.util.find_spec("jsonargparse") is None:
            raise ImportError("CommandLine needs jsonargparse. Install the extra: pip install 'replayml[cli]'")
        super().__init__(*args, **{"trainer_class": Trainer, "auto_configure_optimizers": False, **kwargs})

    def _parse_ckpt_path(self) -> None:
        """Leave the arguments as they are: what a checkpoint holds of its model is a recipe."""
