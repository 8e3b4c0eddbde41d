"""Example inputs for the build, from the first batch of the data that a trainer is about to use.

Invariants:
    * The data is as it was before: no generator has moved on, and an iterator that can be read once is not touched.
    * The example is where the weights are about to be made, and of the type that the trainer's precision gives inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader

from replayml.core.errors import NotBuiltError
from replayml.layers.external import External
from replayml.recipe.randomness import fixed_randomness

__all__ = ["build_from", "example_inputs", "hands_weights_back"]


def example_inputs(app: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the build, none where no size is open; for an application that a trainer has.

    Args:
        app: The unbuilt application.

    Raises:
        NotBuiltError: When sizes are open and there is no data to read them off.
    """
    trainer = app._trainer
    if trainer is None or trainer.state.fn is None:
        return _example(app, None, None)
    if trainer.state.fn is TrainerFn.FITTING and hands_weights_back(trainer):
        raise NotBuiltError(
            f"{type(trainer.strategy).__name__} trains in processes of its own, which can hand weights back only to a "
            "model that is built before. Build it first: app.build(x)"
        )
    loop = {
        TrainerFn.FITTING: trainer.fit_loop,
        TrainerFn.VALIDATING: trainer.validate_loop,
        TrainerFn.TESTING: trainer.test_loop,
        TrainerFn.PREDICTING: trainer.predict_loop,
    }[trainer.state.fn]
    return _example(app, loop._data_source.dataloader, trainer.state.fn)


def build_from(app: Any, loader: Any) -> None:
    """Build an application before its training starts, from the first training batch.

    Args:
        app: The unbuilt application.
        loader: What it will be trained with.
    """
    args, kwargs = _example(app, lambda: loader, TrainerFn.FITTING)
    app.build(*args, **kwargs)


def hands_weights_back(trainer: Any) -> bool:
    """Tell whether a trainer trains a copy of the model in another process, and takes its weights over at the end."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def _example(
    app: Any, get_loader: Callable[[], Any] | None, phase: TrainerFn | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not _needs_example(app):
        return (), {}
    example = app.example_input_array
    if example is None:
        if get_loader is None:
            raise _no_example(app, "there is no data")
        inputs = app._inputs_of(_first_batch(app, get_loader(), phase), phase)
        return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


def _needs_example(app: Any) -> bool:
    return any(
        "_computed" in below.__dict__ or (isinstance(below, External) and below._left_open(below.kwargs))
        for below in app.modules()
    )


def _first_batch(app: Any, loader: Any, phase: TrainerFn | None) -> Any:
    """Return the first batch of a loader, as a step would get it."""
    if isinstance(loader, (list, tuple, dict)):
        loader = CombinedLoader(loader, "max_size_cycle" if phase is TrainerFn.FITTING else "sequential")
    loaders = loader.flattened if isinstance(loader, CombinedLoader) else [loader]
    if any(one is iter(one) for one in loaders if not hasattr(one, "dataset")):
        raise _no_example(app, "the data can be read only once")
    with fixed_randomness(*loaders):
        batch = next(iter(loader), None)
    if batch is None:
        raise _no_example(app, "the data holds no batch")
    if isinstance(loader, CombinedLoader):
        batch = batch[0]
    trainer = app._trainer
    if trainer is None:
        return batch
    batch = app._on_before_batch_transfer(batch)
    batch = app._apply_batch_transfer_handler(batch, torch.get_default_device())
    return trainer.precision_plugin.convert_input(batch)


def _no_example(app: Any, reason: str) -> NotBuiltError:
    return NotBuiltError(
        f"{type(app).__name__} has sizes that are to be read off the input, and {reason}. "
        "Build it with an example: app.build(x)"
    )
