"""`fit`, `test` and `validate` leave the trainer of the training, and its history, where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import replayml
from tests.training.applications import QUIET, classifier, digits, plain_trainer, saving


@pytest.mark.parametrize("phase", ["test", "validate"])
def test_an_evaluation_leaves_the_trainer_of_the_training(phase: str, tmp_path: Path) -> None:
    """After test and validate, app.trainer is that of fit: its history has the curves, its checkpoints resume."""
    app = classifier()
    trainer = app.fit(digits(), digits(), max_epochs=2, **QUIET)
    before = trainer.history.to_dict()
    getattr(app, phase)(digits(), **QUIET)
    assert app.trainer is trainer
    assert app.trainer.history.to_dict() == before
    with pytest.raises(replayml.ArgumentError, match="no metric"):
        getattr(app, phase)(digits(), metrics=3, **QUIET)
    assert app.trainer is trainer
    app.trainer.save_checkpoint(tmp_path / "after.ckpt")
    content = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert content["optimizer_states"][0]["state"]
    again = classifier().fit(digits(), max_epochs=3, ckpt_path=tmp_path / "after.ckpt", **QUIET)
    assert again.current_epoch == 3
    assert again.history["train_loss"][:2] == before["epoch"]["train_loss"]["value"]


def test_an_evaluation_with_a_given_trainer_is_lightnings() -> None:
    """A trainer that the user gives stays the application's, as in Lightning."""
    app = classifier()
    app.fit(digits(), max_epochs=1, **QUIET)
    own = plain_trainer()
    app.test(digits(), trainer=own)
    assert app.trainer is own


def test_without_weights_nothing_is_evaluated(tmp_path: Path) -> None:
    """An application without weights is not tested with random ones; one is, from the weights of a checkpoint."""
    for phase in ("test", "validate"):
        with pytest.raises(
            replayml.NotBuiltError, match=rf"Classifier has no weights to {phase}. Train it first: app.fit\(...\), give"
        ):
            getattr(classifier(), phase)(digits(), **QUIET)
    app = classifier()
    app.fit(digits(), max_epochs=1, **QUIET)
    app.save(tmp_path / "app.ckpt")
    assert classifier().test(digits(), ckpt_path=tmp_path / "app.ckpt", **QUIET) == app.test(digits(), **QUIET)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")  # a test keeps no checkpoints
def test_best_is_the_best_of_the_last_training(tmp_path: Path) -> None:
    """test(ckpt_path="best") takes the checkpoint that the last training kept, and says so where there is none."""
    app = classifier()
    trainer = app.fit(digits(), max_epochs=1, **saving(tmp_path))
    expected = app.test(digits(), **QUIET)
    with torch.no_grad():
        app.model[0].weight.zero_()
    assert app.test(digits(), **QUIET) != expected
    assert app.test(digits(), ckpt_path="best", **QUIET) == expected
    assert app.trainer is trainer
    other = classifier()
    other.fit(digits(), max_epochs=1, **QUIET)
    with pytest.raises(replayml.ConfigurationError, match="the best checkpoint of the last training, and there is non"):
        other.test(digits(), ckpt_path="best", **QUIET)
