"""Applications in the lifecycle: ``update`` trains with the recorded data and evaluates as ``test`` does."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import replayml
from tests.training.applications import QUIET, Digits, best_path, classifier, digits, loader, network, saving

EVENTS: list[str] = []


def some_digits() -> Any:
    """Return data to train with; recorded by its name."""
    EVENTS.append("data")
    return digits(200)


class Service(replayml.Module):
    """Stands above an application, as a server does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def _get_deploy_tasks(self) -> Any:
        return lambda: EVENTS.append("deployed" if self.app._has_built else "too early")


@pytest.fixture(autouse=True)
def _no_events() -> None:
    EVENTS.clear()


def test_update_trains_and_evaluates() -> None:
    """``update`` fits with the recorded data, then has the loss and metrics of the test set as its result."""
    app = classifier()
    assert app.trainset(digits(), max_epochs=8, **QUIET) is None
    app.evalset(digits())
    result = app.update().eval_result
    assert result["test_accuracy"] > 0.7
    assert result == app.test(digits(), **QUIET)
    assert app.trainer.current_epoch == 8


def test_update_is_fit() -> None:
    """``update`` leaves the very weights that ``fit`` with the same arguments leaves."""
    first, second = classifier(), classifier()
    torch.manual_seed(1)
    first.trainset(digits(200), digits(100), max_epochs=2, batch_size=50, **QUIET)
    first.update()
    torch.manual_seed(1)
    trainer = second.fit(digits(200), digits(100), max_epochs=2, batch_size=50, **QUIET)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert first.trainer.callback_metrics["val_loss"] == trainer.callback_metrics["val_loss"]


def test_a_copy_of_a_configured_application_trains_too() -> None:
    """The data of training and evaluation is on the tape: copies and pickles have it, before and after training."""
    app = classifier()
    app.trainset(digits(100), max_epochs=1, **QUIET)
    app.evalset(digits(100))
    app.configure(optimizer=replayml.Adam(lr=0.01))
    assert [entry.method for entry in app.tape] == ["trainset", "evalset", "configure"]
    for copy in (app.new(), pickle.loads(pickle.dumps(app)), app.update().new()):
        assert not copy._has_built
        assert set(copy.update().eval_result) == {"test_loss", "test_accuracy"}
        assert copy.optimizer.lr == 0.01


@pytest.mark.parametrize("data", [some_digits, Digits, loader(digits(100))], ids=["function", "class", "loader"])
def test_data_may_be_made_when_it_is_needed(data: Any) -> None:
    """A function or class that makes the data is called when the training, or the evaluation, starts."""
    app = classifier()
    app.trainset(data, max_epochs=1, **QUIET)
    app.evalset(data)
    assert EVENTS == []
    assert set(app.update().eval_result) == {"test_loss", "test_accuracy"}
    assert (["data", "data"] if data is some_digits else []) == EVENTS


def test_a_checkpoint_of_an_update_is_loaded(tmp_path: Path) -> None:
    """A checkpoint that ``update`` wrote is loaded, with what to train and to evaluate with."""
    app = classifier()
    app.trainset(some_digits, max_epochs=1, **saving(tmp_path))
    app.evalset(some_digits)
    result = app.update().eval_result
    path = best_path(app.trainer)
    loaded = replayml.Application.load_from_checkpoint(path, trust=[some_digits, network])
    assert loaded.eval_result == result
    assert loaded.new()._get_train_tasks() is not None


@pytest.mark.parametrize("form", ["arrays", "loader"])
def test_files_of_an_application_have_no_data_sets(form: str, tmp_path: Path) -> None:
    """An application that has data sets is saved and loaded, as a model file and by its trainer, without them."""
    data = digits() if form == "arrays" else loader(digits(100))
    app = classifier()
    app.trainset(data, max_epochs=1, **saving(tmp_path))
    app.evalset(data)
    app.save(tmp_path / "unbuilt.replayml")
    assert not replayml.load(tmp_path / "unbuilt.replayml", trust=[network]).tape
    app.update()
    app.save(tmp_path / "app.replayml")
    app.save(tmp_path / "app.ckpt")
    x, _ = digits(20)
    for path in (tmp_path / "app.replayml", tmp_path / "app.ckpt", best_path(app.trainer)):
        loaded = replayml.load(path, trust=[network])
        assert torch.equal(loaded(x), app(x))
        assert not loaded.tape
        assert loaded._get_train_tasks() is loaded.eval_result is None
    assert [entry.method for entry in app.tape] == [entry.method for entry in app.new().tape] == ["trainset", "evalset"]


def test_an_application_is_trained_as_a_part() -> None:
    """``update`` of a module trains the applications in it before anything is deployed; a copy can be updated too."""
    app = classifier()
    app.trainset(some_digits, max_epochs=1, **QUIET)
    service = Service(app)
    copy = service.new()
    assert service.update().app._has_built
    assert EVENTS == ["data", "deployed"]
    assert not copy.app._has_built
    copy.update()
    assert EVENTS == ["data", "deployed"] * 2
    assert not service.new().app._has_built


def test_outputs_where_there_are_no_targets() -> None:
    """A tensor gives the outputs for its rows, and a list of items one output for each."""
    app = classifier().build(digits()[0])
    x, _ = digits(50)
    app.evalset(x)
    assert torch.equal(app.eval_result, app.predict(x))
    app.evalset(list(x[:3]), load_f=torch.Tensor.double, collect_f=len)
    app.double()
    assert app.eval_result == 3


def test_results_follow_the_training() -> None:
    """After another training the result is computed again."""
    app = classifier()
    app.evalset(digits(200))
    app.fit(digits(200), max_epochs=1, **QUIET)
    before = app.eval_result["test_loss"]
    app.fit(digits(200), max_epochs=5, **QUIET)
    assert app.eval_result["test_loss"] < before


def test_what_cannot_have_an_effect_is_refused() -> None:
    """A trainer on the tape, and a function for items of data with targets, are refused at once."""
    app = classifier()
    with pytest.raises(replayml.ConfigurationError, match="records how to train, and a trainer is no setting"):
        app.trainset(digits(), trainer=replayml.Trainer(**QUIET))
    with pytest.raises(replayml.ConfigurationError, match="load_f would have no effect: a tuple has inputs"):
        app.evalset(digits(), load_f=str)
    assert not app.tape
    app.evalset(some_digits, load_f=str)
    app.build(digits()[0])
    with pytest.raises(replayml.ConfigurationError, match="load_f would have no effect"):
        app.evaluate()


def test_without_training_there_is_nothing_to_evaluate() -> None:
    """``update`` of an application without weights says what is missing, and where."""
    app = classifier()
    app.evalset(digits())
    with pytest.raises(replayml.NotBuiltError, match=r"has no weights to test\. Train it first") as caught:
        Service(app).update()
    assert caught.value.__notes__ == ["while evaluating model.app (Classifier)"]


def test_what_waits_for_training_finds_the_weights() -> None:
    """What waits for training runs once in an update, on the built application."""

    class Noting(replayml.Application):
        def __init__(self) -> None:
            self.model = network()
            super().__init__(loss=nn.CrossEntropyLoss)

        @replayml.before_fit
        def before(self) -> None:
            EVENTS.append(f"before, built: {self._has_built}")

        @replayml.after_fit
        def after(self) -> None:
            EVENTS.append("after")

    app = Noting()
    app.before()
    app.after()
    app.trainset(digits(100), max_epochs=1, **QUIET)
    app.update().update()
    assert EVENTS == ["before, built: True", "after"]
