"""What an application assigns while its training begins, before it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import replayml
from replayml import RecipeError
from tests.training.applications import QUIET, best_path, saving


class OwnData(replayml.Application):
    """Loads its data in ``setup``, as Lightning's documents show it, and makes its head there."""

    def __init__(self) -> None:
        self.body = replayml.Layer(nn.Linear, 4, 3)
        super().__init__(loss=nn.MSELoss)

    def prepare_data(self) -> None:
        self.is_prepared = True

    def setup(self, stage: str) -> None:
        self.rows = TensorDataset(torch.randn(16, 4), torch.randn(16, 1))
        self.parts = {"train": [self.rows]}
        self.number = 5
        if not self._has_built:
            self.head = replayml.Layer(nn.Linear, 3, 1)

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts["train"][0], batch_size=8)

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.body(x))


@pytest.mark.parametrize("is_updated", [False, True])
def test_data_of_a_setup_is_no_part_of_the_application(is_updated: bool, tmp_path: Path) -> None:
    """What ``setup`` keeps that is no data is there while it trains, and in no copy or file; the rest is recorded."""
    app = OwnData()
    if is_updated:
        app.trainset(None, max_epochs=1, **saving(tmp_path))
        app.update()
    else:
        app.fit(max_epochs=1, **saving(tmp_path))
    assert isinstance(app.rows, TensorDataset)
    assert [entry.args[0] for entry in app.tape if entry.method == "set"] == ["is_prepared", "number", "head"]
    app.save(tmp_path / "app.replayml")
    x = torch.randn(2, 4)
    for path in (tmp_path / "app.replayml", best_path(app.trainer)):
        loaded = replayml.load(path)
        assert torch.equal(loaded(x), app(x))
        assert loaded.number == 5
        assert not hasattr(loaded, "rows")
    again = app.new()
    assert not hasattr(again, "rows")
    again.fit(max_epochs=1, **QUIET)
    assert len(again.rows) == 16


def test_outside_of_a_training_all_is_recorded() -> None:
    """What a person assigns before or after a training is recorded as ever."""
    app = OwnData()
    app.rows = TensorDataset(torch.zeros(1))
    assert [entry.args[0] for entry in app.tape] == ["rows"]
    with pytest.raises(RecipeError, match="TensorDataset has no data form"):
        app.recipe()
