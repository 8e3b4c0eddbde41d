"""What an application is given is checked when it is given, not in the middle of a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MulticlassAccuracy

import replayml
from tests.training.applications import QUIET, classifier, digits, network

WRONG_OPTIMIZERS = [
    (torch.optim.Adam([torch.zeros(1)]), r"cannot be an optimizer that exists \(Adam\): the parameters are made later"),
    ("adam", r"cannot be 'adam'. Did you mean torch.optim.Adam\? Give a replayml.Optimizer, such as replayml.Adam"),
    (0.1, r"cannot be 0.1. Give a replayml.Optimizer"),
    (nn.Linear, r"cannot be the class Linear. Give a replayml.Optimizer"),
    (torch.optim.lr_scheduler.StepLR, r"cannot be the class StepLR. Give"),
    (network(), r"cannot be Sequential\("),
]
WRONG_LOSSES = [
    ("CrossEntropy", r"which 'CrossEntropy' cannot be. Did you mean nn.CrossEntropyLoss\? Give a torch loss"),
    (3, r"which 3 cannot be. Give a torch loss, its class or a function"),
    (torch.zeros(1), r"which tensor\(\[0.\]\) cannot be"),
    (str, r"which the class str cannot be"),
    (replayml.Adam(lr=0.1), r"which Adam\(Adam, lr=0.1\) cannot be"),
    (torch.optim.Adam, r"which the class Adam cannot be"),
]
WRONG_METRICS = [
    ("accuracy", r"metrics of Classifier is 'accuracy', which is no metric"),
    (nn.ReLU, r"metrics of Classifier is the class ReLU, which is no metric"),
    ([MeanAbsoluteError, 3], r"metrics\[1\] of Classifier is 3, which is no metric"),
    ({"a": {"b": 3}}, r"metrics\['a'\] of Classifier is \{'b': 3\}, which is no metric"),
    ([{"a": 3}], r"metrics\[0\]\['a'\] of Classifier is 3, which is no metric"),
    ([("a", 3)], r"metrics\[0\]\[1\] of Classifier is 3, which is no metric"),
]
WRONG_MODELS = [
    (replayml.MultiLayerPerceptron, r"not the class MultiLayerPerceptron. Make one of it: MultiLayerPerceptron\(...\)"),
    (nn.Linear, r"not the class Linear. Make one of it: Layer\(Linear, ...\)"),
    ("mlp", r"model of Classifier is a module, such as replayml.MultiLayerPerceptron\(None, \[64\], 10\), not 'mlp'"),
    (len, r"not <built-in function len>"),
]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(("optimizer", *case) for case in WRONG_OPTIMIZERS),
        *(("loss", *case) for case in WRONG_LOSSES),
        *(("metrics", *case) for case in WRONG_METRICS),
        *(("model", *case) for case in WRONG_MODELS),
    ],
)
def test_what_cannot_work_is_refused_at_once(name: str, value: Any, message: str) -> None:
    """A wrong kind of model, loss, optimizer or metric is named with its place, given or configured."""
    with pytest.raises(replayml.ArgumentError, match=message):
        replayml.Classifier(**{"model": network(), name: value})
    if name == "model" and isinstance(value, str):
        return
    app = replayml.Classifier(network())
    before = repr(app)
    with pytest.raises((replayml.ArgumentError, replayml.ConfigurationError)):
        app.configure(**{name: value})
    assert repr(app) == before


@pytest.mark.parametrize(
    ("cls", "typo", "meant"),
    [
        (replayml.Classifier, "num_clases", "num_classes"),
        (replayml.BinaryClassifier, "num_clases", "num_classes"),
        (replayml.Regressor, "los", "loss"),
        (replayml.Regressor, "val_metric", "val_metrics"),
        (replayml.Application, "optimiser", "optimizer"),
    ],
)
def test_a_typo_is_told_with_the_class_and_the_nearest_name(cls: Any, typo: str, meant: str) -> None:
    """An unknown argument names the class that was called and what was meant, given or configured."""
    with pytest.raises(
        replayml.ArgumentError, match=f"{cls.__name__} takes no '{typo}'. Did you mean '{meant}'\\? It takes: "
    ):
        cls(**{typo: 10})
    with pytest.raises(replayml.ConfigurationError, match=f"{cls.__name__} has no setting '{typo}'. Did you mean"):
        cls().configure(**{typo: 10})


def test_every_argument_is_a_setting() -> None:
    """What an application takes can be configured, one by one, and copies have it."""
    app = classifier().configure(test_metrics=[MeanAbsoluteError()], task="binary")
    assert sorted(app.test_metrics) == ["accuracy", "meanabsoluteerror"]
    assert sorted(app.new().test_metrics) == ["accuracy", "meanabsoluteerror"]
    assert "val_metrics" in app.configurables


class Forgetful(replayml.Application):
    """An application that calls no ``super().__init__()``."""

    def __init__(self, width: int = 8, loss: Any = nn.functional.cross_entropy) -> None:
        self.model = network(width=width)
        if loss is not None:
            self.loss = loss


def test_without_a_call_of_super_the_defaults_are_there() -> None:
    """A class that calls no super().__init__() trains with Adam and without metrics, and is copied and configured."""
    app = Forgetful()
    assert (app.optimizer.classtype, app.lr) == (torch.optim.Adam, 1e-3)
    app.configure("optimizer", lr=0.03).configure(width=12)
    assert app.new().lr == 0.03
    trainer = app.fit(digits(), max_epochs=1, **QUIET)
    assert trainer.optimizers[0].defaults["lr"] == 0.03
    assert app.test(digits(), **QUIET).keys() == {"test_loss"}
    with pytest.raises(NotImplementedError, match="Forgetful has no loss: give loss="):
        Forgetful(loss=None).fit(digits(), max_epochs=1, **QUIET)


def test_an_attribute_of_the_class_is_no_gap() -> None:
    """A class that says itself what its optimizer is keeps it."""

    class Own(replayml.Application):
        optimizer = staticmethod(lambda parameters: torch.optim.SGD(parameters, lr=0.5))

        def __init__(self) -> None:
            self.model = network(inputs=64)

    made = Own().build().configure_optimizers()
    assert (type(made), made.defaults["lr"]) == (torch.optim.SGD, 0.5)


def test_nothing_to_train_names_the_reason() -> None:
    """An application without a model, or whose parameters are all frozen, says so before the first step."""
    with pytest.raises(
        replayml.BuildError, match=r"Classifier has no parameters to train: it has no model. Give one, Classifier\(mod"
    ):
        replayml.Classifier(num_classes=10).fit(digits(), max_epochs=1, **QUIET)
    app = classifier().build(digits()[0][:1])
    app.requires_grad_(False)
    with pytest.raises(replayml.BuildError, match=r"requires a gradient. Let some: app.model.requires_grad_\(\)"):
        app.fit(digits(), max_epochs=1, **QUIET)


class Generator(replayml.Application):
    """An application with networks of other names."""

    def __init__(self) -> None:
        self.maker = replayml.Layer(nn.Linear, 64, 10)
        super().__init__(loss=nn.CrossEntropyLoss)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.maker(x)
        return result


def test_a_model_may_have_another_name() -> None:
    """An application with its own forward needs no 'model', and trains what it has."""
    assert len(Generator().build().configure_optimizers().param_groups[0]["params"]) == 2


def test_data_without_targets_is_told() -> None:
    """A classifier says that targets are missing, in every phase, instead of comparing inputs with themselves."""
    x, _ = digits()
    with pytest.raises(replayml.ConfigurationError, match=r"the train data of Classifier has no targets. Give inputs"):
        classifier().fit(x, max_epochs=1, **QUIET)
    app = classifier().build(x[:1])
    with pytest.raises(replayml.ConfigurationError, match="the test data of Classifier has no targets"):
        app.test((x,), **QUIET)


def test_inputs_of_another_type_are_told() -> None:
    """Where inputs and weights differ in type, torch's error names both types and two ways out, which work."""
    x, y = digits()
    with pytest.raises(RuntimeError, match="same dtype") as caught:
        classifier().fit((x.double(), y), max_epochs=1, **QUIET)
    assert "the inputs are torch.float64 and the weights torch.float32: give x.to(torch.float32)" in "".join(
        caught.value.__notes__
    )
    app = classifier().build(x[:1].double(), dtype=torch.float64)
    app.fit((x.double(), y), max_epochs=1, **QUIET)
    classifier().fit((x.numpy().astype("float64"), y), max_epochs=1, **QUIET)


@given(st.sampled_from([1, 2, 5]), st.booleans())
def test_a_regressor_never_broadcasts(outputs: int, surplus: bool) -> None:
    """Targets take the shape of the predictions where only ones differ, and are refused otherwise."""
    app = replayml.Regressor(replayml.Layer(nn.Linear, 3, outputs), loss=nn.MSELoss())
    prediction = torch.randn(4, outputs)
    target = prediction.unsqueeze(0) if surplus else prediction.squeeze(-1)
    assert float(app.compute_loss(prediction, target)) == 0
    assert app.metrics_preprocess(prediction, target)[1].shape == prediction.shape
    with pytest.raises(replayml.ConfigurationError, match=r"predictions are \(4, \d\), targets \(3, \d\)"):
        app.compute_loss(prediction, prediction[:3])


def test_metrics_say_their_place_in_a_test() -> None:
    """A wrong metric of one test is told with the call."""
    app = classifier(metrics=[MulticlassAccuracy(10)]).build(digits()[0][:1])
    with pytest.raises(replayml.ArgumentError, match=r"metrics of test\(\) of Classifier is 3, which is no metric"):
        app.test(digits(), metrics=3, **QUIET)
    assert list(app.test_metrics) == ["multiclassaccuracy"]
