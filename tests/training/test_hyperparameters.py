"""What loggers show of an application: its choices, flat and readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

import replayml
from replayml.training.hyperparameters import readable
from tests.training.applications import QUIET, Digits, Scaled, classifier, digits, network

EXPECTED = {
    "classtype": "Classifier",
    "loss.classtype": "CrossEntropyLoss",
    "make_targets_one_hot": False,
    "model.blocks.0.layer.bias": False,
    "model.classtype": "MultiLayerPerceptron",
    "model.flatten_input": True,
    "model.in_features": 64,
    "model.hidden_features": [8],
    "model.out_features": 10,
    "num_classes": 10,
    "optimizer.classtype": "SGD",
    "optimizer.lr": 0.25,
    "optimizer.momentum": 0.9,
}


def perceptron() -> replayml.Classifier:
    """Return an application whose model is configured from outside."""
    optimizer = replayml.SGD(lr=0.1, momentum=0.9)
    app = replayml.Classifier(replayml.MultiLayerPerceptron(64, [8], 10), num_classes=10, optimizer=optimizer)
    app["model", "blocks", 0, "layer"].configure(bias=False)
    return app.configure("optimizer", lr=0.25)


def test_loggers_get_the_choices(tmp_path: Path) -> None:
    """CSV and TensorBoard show each choice under its path, and nothing of the recipe."""
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="board")]
    perceptron().fit(digits(), max_epochs=1, **{**QUIET, "logger": loggers})
    for logger in loggers:
        text = (Path(str(logger.log_dir)) / "hparams.yaml").read_text()
        assert yaml.safe_load(text) == EXPECTED


def test_they_are_the_same_before_and_after_the_build_and_the_reload(tmp_path: Path) -> None:
    """What is shown depends neither on the build nor on the way back from a checkpoint; a new rate is shown."""
    app = perceptron()
    assert dict(app.hparams_initial) == EXPECTED
    app.build()
    assert dict(app.hparams_initial) == EXPECTED
    app.lr = 0.5
    app.save(tmp_path / "app.ckpt")
    again = replayml.Application.load_from_checkpoint(tmp_path / "app.ckpt")
    assert dict(again.hparams_initial) == {**EXPECTED, "optimizer.lr": 0.5}
    assert dict(app.new().hparams_initial) == {**EXPECTED, "optimizer.lr": 0.5}


def test_a_subclass_shows_its_arguments() -> None:
    """The arguments of one's own application are shown, defaults included, and metrics by their place."""
    shown = Scaled(12, depth=2, metrics=[MeanSquaredError()]).hparams_initial
    assert (shown["width"], shown["scale"], shown["depth"]) == (12, 1.0, 2)
    assert shown["metrics.0.classtype"] == "MeanSquaredError"
    assert shown["loss"] == "cross_entropy"
    assert "optimizer.betas" not in shown


class NamedData(Digits):
    """A data module that has hyper-parameters of the same names."""

    def __init__(self, num_classes: int = 3, batch_size: int = 100) -> None:
        super().__init__(batch_size)
        self.save_hyperparameters()


def test_a_data_module_may_use_the_same_names(tmp_path: Path) -> None:
    """Where a data module has a hyper-parameter of the same name, its value is shown, and training goes on."""
    logger = CSVLogger(tmp_path)
    perceptron().fit(NamedData(), max_epochs=1, **{**QUIET, "logger": logger})
    shown = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert shown == {**EXPECTED, "num_classes": 3, "batch_size": 100}


class Tagged(replayml.Classifier):
    """Saves its hyper-parameters itself."""

    def __init__(self, tag: str, logged: bool = True) -> None:
        super().__init__(network(), num_classes=10)
        self.save_hyperparameters("tag", logger=logged)


def test_what_a_class_saves_itself_goes_first() -> None:
    """Hyper-parameters that a class saves are shown as it saved them, besides the choices."""
    app = Tagged("first").build(digits()[0][:1])
    shown = app.hparams_initial
    assert (shown["tag"], shown["optimizer.lr"]) == ("first", 1e-3)
    assert not any("ckpt" in name for name in shown)


def test_many_settings_are_cut_short() -> None:
    """Of more than 200 lines the first ones are shown, the optimizer's among them, with the number of the others."""
    app = replayml.Regressor(replayml.Sequential(*[replayml.Layer(nn.Linear, 1, 1) for _ in range(250)]))
    app["model", :].configure(bias=False)
    shown = app.hparams_initial
    assert len(shown) == 201
    assert shown["further_settings"] > 500
    assert shown["optimizer.lr"] == 1e-3


def test_an_application_that_is_part_of_another_is_built_by_it() -> None:
    """An application inside of another model shows its optimizer, also where the other one built it."""
    outer = replayml.Sequential(classifier()).build(digits()[0][:1])
    assert outer[0].hparams_initial["optimizer.lr"] == 0.03


class Odd:
    def __repr__(self) -> str:
        return "odd " * 500


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.sampled_from([nn.ReLU, torch.relu, torch.float32, torch.Size([2, 3]), np.float32(1.5), Odd(), nn.ReLU()]),
        st.builds(torch.zeros, st.integers(0, 3)),
        st.sampled_from([replayml.Layer(nn.Linear, 2, 3), replayml.LinearBlock(2, 3), replayml.Adam(lr=0.1)]),
    ),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text("ab"), inner)),
    max_leaves=8,
)


@given(values)
def test_everything_has_a_readable_form(value: Any) -> None:
    """Whatever an argument is, it is shown as numbers, short texts or lists of those, which YAML takes."""

    def plain(shown: Any) -> bool:
        if isinstance(shown, list):
            return all(plain(item) for item in shown)
        return type(shown) in (bool, int, float) or (type(shown) is str and len(shown) <= 200)

    found = readable("path", value)
    assert all(name.startswith("path") and plain(shown) for name, shown in found.items())
    assert not isinstance(found, Tensor)
    yaml.safe_dump(found)


def test_logging_them_is_left_to_the_user(tmp_path: Path) -> None:
    """A class that says logger=False logs no hyper-parameters, as in Lightning."""
    logger = CSVLogger(tmp_path)
    Tagged("quiet", logged=False).fit(digits(), max_epochs=1, **{**QUIET, "logger": logger})
    written = Path(logger.log_dir) / "hparams.yaml"
    assert not written.exists() or yaml.safe_load(written.read_text()) in (None, {})
