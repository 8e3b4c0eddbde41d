"""Services that several tests call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import replayml
from replayml.serving.server import ServerModule
from tests.serving import services


@pytest.fixture(scope="session")
def model() -> replayml.Module:
    """A built model."""
    return replayml.MultiLayerPerceptron(4, [8], 2).build(seed=0)


@pytest.fixture(scope="session")
def batched(model: replayml.Module) -> Iterator[ServerModule]:
    """The model as a service that runs batches."""
    service = ServerModule(model, example=torch.zeros(2, 4), batch=8).start()
    yield service
    service.stop()


@pytest.fixture(scope="session")
def echo() -> Iterator[ServerModule]:
    """A service that returns what it gets."""
    service = ServerModule(services.echo).start()
    yield service
    service.stop()


@pytest.fixture(scope="session")
def failing() -> Iterator[ServerModule]:
    """A service that raises."""
    service = ServerModule(services.fail).start()
    yield service
    service.stop()
