"""Example inputs for the build, from the first batch of the data that a trainer is about to use.

Invariants:
    * The data is as it was before: no generator has moved on, and an iterator that can be read once is not touched.
    * The example is where the weights are about to be made, and of the type that the trainer's precision gives inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader

from replayml.core.errors import NotBuiltError
from replayml.layers.external import External
from replayml.training.randomness import fixed_randomness

__all__ = ["example_inputs"]


def example_inputs(app: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the build: none where no size is open.

    Args:
        app: The unbuilt application.

    Raises:
        NotBuiltError: When the sizes are open and there is no data to read them off.
    """
    if not _needs_example(app):
        return (), {}
    example = app.example_input_array
    if example is None:
        inputs = app._inputs_of(_first_batch(app), app.trainer.state.fn)
        return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


def _needs_example(app: Any) -> bool:
    return any(
        "_computed" in below.__dict__ or (isinstance(below, External) and below._left_open(below.kwargs))
        for below in app.modules()
    )


def _first_batch(app: Any) -> Any:
    """Return the first batch of what the trainer is about to run, as a step would get it."""
    trainer = app._trainer
    if trainer is None or trainer.state.fn is None:
        raise _no_example(app, "there is no data")
    loop = {
        TrainerFn.FITTING: trainer.fit_loop,
        TrainerFn.VALIDATING: trainer.validate_loop,
        TrainerFn.TESTING: trainer.test_loop,
        TrainerFn.PREDICTING: trainer.predict_loop,
    }[trainer.state.fn]
    loader = loop._data_source.dataloader()
    if isinstance(loader, (list, tuple, dict)):
        loader = CombinedLoader(loader, "max_size_cycle" if trainer.state.fn is TrainerFn.FITTING else "sequential")
    loaders = loader.flattened if isinstance(loader, CombinedLoader) else [loader]
    if any(one is iter(one) for one in loaders if not hasattr(one, "dataset")):
        raise _no_example(app, "the data can be read only once")
    with fixed_randomness(*loaders):
        batch = next(iter(loader), None)
    if batch is None:
        raise _no_example(app, "the data holds no batch")
    if isinstance(loader, CombinedLoader):
        batch = batch[0]
    batch = app._on_before_batch_transfer(batch)
    batch = app._apply_batch_transfer_handler(batch, torch.get_default_device())
    return trainer.precision_plugin.convert_input(batch)


def _no_example(app: Any, reason: str) -> NotBuiltError:
    return NotBuiltError(
        f"{type(app).__name__} has sizes that are to be read off the input, and {reason}. "
        "Build it with an example: app.build(x)"
    )
