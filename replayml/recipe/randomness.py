"""The global random generators: leaving them as they were, and resuming where they stood.

Invariants:
    * A state is plain data: ``torch.load(weights_only=True)`` opens it.
    * CUDA is not initialised by looking at its generators.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["fixed_randomness", "random_state", "resume_randomness"]


def random_state() -> dict[str, Any]:
    """Return the state of the global generators of torch, Python and NumPy."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the generator that data sets draw from
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
    }


def resume_randomness(state: Mapping[str, Any]) -> None:
    """Put the global generators into a state that `random_state` returned.

    Example:
        >>> state = random_state()
        >>> first = torch.rand(2), random.random()
        >>> resume_randomness(state)
        >>> (torch.rand(2) == first[0]).all().item(), random.random() == first[1]
        (True, True)
    """
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002 - as in `random_state`


@contextmanager
def fixed_randomness(*loaders: Any) -> Iterator[None]:
    """Leave the global generators, and those of some loaders, as they were before the block."""
    generators = {id(generator): generator for loader in loaders for generator in _generators(loader)}
    states = [(generator, generator.get_state()) for generator in generators.values()]
    state = random_state()
    try:
        yield
    finally:
        resume_randomness(state)
        for generator, own in states:
            generator.set_state(own)


def _generators(loader: Any) -> Iterator[torch.Generator]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    for holder in (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            yield generator
