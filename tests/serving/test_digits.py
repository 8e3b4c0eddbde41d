"""A classifier of real handwritten digits: trained, deployed and evaluated by one call, and asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sklearn.datasets import load_digits

import replayml
from replayml.serving.server import ServerModule
from tests.serving.http import ask

TRAINED = 1500


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The images as rows, and what they show."""
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


@pytest.fixture(scope="module")
def service(digits: tuple[torch.Tensor, torch.Tensor]) -> Iterator[ServerModule]:
    """A service that was trained and deployed."""
    x, y = digits
    torch.manual_seed(0)
    app = replayml.Classifier(
        replayml.MultiLayerPerceptron(64, [128, 64], 10), num_classes=10, optimizer=replayml.Adam(lr=3e-3)
    )
    app.trainset((x[:TRAINED], y[:TRAINED]), max_epochs=12, batch_size=64, enable_progress_bar=False)
    service = ServerModule(app, example=x[:1], batch=True)
    service.update()
    yield service
    service.stop()


def local(service: ServerModule, x: torch.Tensor) -> torch.Tensor:
    """Return what the trained model gives in this process."""
    with torch.no_grad():
        result: torch.Tensor = service.module.eval()(x)
    return result


def test_it_reads_digits(service: ServerModule, digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The trained weights are served: most digits that it has not seen are told rightly."""
    x, y = (values[TRAINED:] for values in digits)
    assert (service(x).argmax(1) == y).float().mean() > 0.85


def test_tensors_are_equal_to_the_last_bit(service: ServerModule, digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The same batch gives the same bits over HTTP as in this process."""
    for rows in (digits[0][:1], digits[0][:7], digits[0][TRAINED:]):
        assert torch.equal(service(rows), local(service, rows))


def test_json_has_the_digits_of_float32(service: ServerModule, digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The numbers of a JSON answer are read back as the float32 that the model gave."""
    rows = digits[0][TRAINED:][:40]
    reply = ask(service.url, body=json.dumps({"args": [rows.tolist()]}).encode())
    assert torch.equal(torch.tensor(reply.json["result"]), local(service, rows))


def test_requests_that_run_together_agree(service: ServerModule, digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Rows asked for one by one and run in batches agree with the whole batch, within 1e-6 of the largest score."""
    rows = digits[0][TRAINED:]
    with ThreadPoolExecutor(16) as pool:
        found = torch.cat(list(pool.map(service, rows.split(1))))
    expected = local(service, rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), rtol=0, atol=1e-6)
