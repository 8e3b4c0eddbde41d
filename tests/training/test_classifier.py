"""`Classifier` and `Regressor`: what they learn from real data, and which targets they take."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import BinaryAUROC
from torchmetrics.regression import R2Score

import replayml
from tests.training.applications import (
    QUIET,
    best_path,
    diabetes,
    digits,
    loader,
    network,
    plain_trainer,
    saving,
    tumours,
)

# Learning -------------------------------------------------------------------------------------------------------


def test_multiclass() -> None:
    """A multiclass classifier learns the digits, and its accuracy is that of its decisions."""
    x, y = digits()
    app = replayml.Classifier(network(), num_classes=10, optimizer=replayml.Adam(lr=0.02))
    trainer = app.fit((x[:500], y[:500]), (x[500:], y[500:]), max_epochs=10, **QUIET)
    accuracy = float(trainer.callback_metrics["val_accuracy"])
    assert accuracy > 0.75
    assert accuracy == pytest.approx(float((app.predict_class(x[500:]) == y[500:]).float().mean()))
    assert isinstance(app.loss, nn.CrossEntropyLoss)


@pytest.mark.parametrize("outputs", ["one", "none", "float"])
def test_binary(outputs: str) -> None:
    """A binary classifier learns tumours, with logits ``(batch, 1)`` or ``(batch,)`` and targets of any number type."""
    x, y = tumours()
    model: Any = network(1) if outputs == "one" else replayml.Sequential(network(1), replayml.Layer(nn.Flatten, 0))
    app = replayml.Classifier(
        model, task="binary", optimizer=replayml.Adam(lr=0.02), metrics={"auroc": replayml.External(BinaryAUROC)}
    )
    target = y.double()[:, None] if outputs == "float" else y
    trainer = app.fit((x[:300], target[:300]), (x[300:], target[300:]), max_epochs=5, **QUIET)
    assert trainer.callback_metrics["val_auroc"] > 0.97
    assert (app.predict_class(x[300:]).flatten() == y[300:]).float().mean() > 0.9
    assert app.predict_class(x[300:]).shape == app.predict(x[300:]).shape


def test_multilabel() -> None:
    """A multilabel classifier decides each label by itself."""
    x, y = digits()
    labels = torch.stack([y % 2 == 0, y > 4, y == 0], 1)
    app = replayml.Classifier(network(3), task="multilabel", num_classes=3, optimizer=replayml.Adam(lr=0.02))
    trainer = app.fit((x, labels), (x, labels), max_epochs=5, **QUIET)
    accuracy = float(trainer.callback_metrics["val_accuracy"])
    assert accuracy > 0.85
    assert accuracy == pytest.approx(float((app.predict_class(x) == labels).float().mean()))


def test_regression() -> None:
    """A regressor learns the progression of diabetes with targets ``(batch,)`` and predictions ``(batch, 1)``."""
    x, y = diabetes()
    app = replayml.Regressor(
        network(1), optimizer=replayml.Adam(lr=0.01), metrics=[R2Score()], val_metrics={"mae": MeanAbsoluteError}
    )
    trainer = app.fit((x[:350], y[:350]), (x[350:], y[350:]), max_epochs=6, **QUIET)
    assert trainer.callback_metrics["val_r2score"] > 0.3
    assert {"val_mae", "val_loss", "train_r2score"} <= trainer.callback_metrics.keys()
    assert "train_mae" not in trainer.callback_metrics
    assert app.predict(x).shape == (442, 1)


def two_labels() -> tuple[Tensor, Tensor]:
    """Return digits, and whether each is even, and whether it is large."""
    x, y = digits()
    return x, torch.stack([y % 2 == 0, y > 4], 1)


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: replayml.Classifier(network(), num_classes=10), digits),
        (lambda: replayml.CategoricalClassifier(network(), num_classes=10), digits),
        (lambda: replayml.BinaryClassifier(network(1)), tumours),
        (lambda: replayml.MultiLabelClassifier(network(2), num_classes=2), two_labels),
        (lambda: replayml.Regressor(network(1)), diabetes),
    ],
    ids=["classifier", "categorical", "binary", "multilabel", "regressor"],
)
def test_each_trains_under_a_plain_trainer_and_reloads(make: Any, data: Any, tmp_path: Any) -> None:
    """Every ready-made application trains with Lightning's trainer and comes back from its checkpoint."""
    app = make()
    trainer = plain_trainer(**{**saving(tmp_path), "max_epochs": 1})
    trainer.fit(app, loader(data()), loader(data()))
    assert torch.isfinite(trainer.callback_metrics["val_loss"])
    again = replayml.Application.load_from_checkpoint(best_path(trainer))
    assert type(again) is type(app)
    assert torch.equal(again.predict(data()[0]), app.predict(data()[0]))
    assert again.test(data(), **QUIET) == app.test(data(), **QUIET)


# Targets --------------------------------------------------------------------------------------------------------


def loss_of(app: Any, prediction: Tensor, target: Tensor) -> Tensor:
    """Return the loss that a built application computes."""
    result: Tensor = app.build().compute_loss(prediction, target)
    return result


@pytest.mark.parametrize("target", [torch.tensor([1, 0]), torch.tensor([[1], [0]]), torch.tensor([1.0, 0.0])])
def test_class_indices_in_any_form(target: Tensor) -> None:
    """Class indices as integers or floats, with or without a last dimension of one, give the same loss."""
    prediction = torch.tensor([[0.1, 0.9, 0.0], [0.3, 0.3, 0.4]])
    expected = nn.functional.cross_entropy(prediction, torch.tensor([1, 0]))
    app = replayml.Classifier(num_classes=3)
    assert loss_of(app, prediction, target) == expected
    shown, wanted = app.metrics_preprocess(prediction, target)
    assert shown is prediction
    assert wanted.tolist() == [1, 0]


def test_probabilities_are_targets_too() -> None:
    """Targets like the logits are taken as probabilities, and their largest as the class for metrics."""
    prediction = torch.tensor([[0.1, 0.9], [0.3, 0.4]])
    target = torch.tensor([[0.0, 1.0], [0.75, 0.25]], dtype=torch.float64)
    app = replayml.Classifier(num_classes=2)
    assert loss_of(app, prediction, target) == nn.functional.cross_entropy(prediction, target.float())
    assert app.metrics_preprocess(prediction, target)[1].tolist() == [1, 0]


def test_classes_of_pixels() -> None:
    """Logits ``(batch, classes, height, width)`` take indices ``(batch, height, width)``, also made one-hot."""
    prediction = torch.randn(2, 3, 4, 5)
    target = torch.randint(3, (2, 4, 5))
    app = replayml.Classifier(num_classes=3)
    assert loss_of(app, prediction, target) == nn.functional.cross_entropy(prediction, target)
    one_hot = replayml.Classifier(num_classes=3, make_targets_one_hot=True)
    assert loss_of(one_hot, prediction, target) == pytest.approx(float(loss_of(app, prediction, target)))


def test_targets_one_hot_for_losses_that_want_them() -> None:
    """make_targets_one_hot turns indices into rows, for a loss such as the mean squared error."""
    prediction = torch.tensor([[0.1, 0.9, 0.0], [0.3, 0.3, 0.4]])
    app = replayml.Classifier(num_classes=3, loss=nn.MSELoss, make_targets_one_hot=True)
    expected = nn.functional.mse_loss(prediction, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert loss_of(app, prediction, torch.tensor([1, 0])) == expected


@pytest.mark.parametrize(
    ("app", "prediction", "target", "message"),
    [
        (replayml.Classifier, (4, 3), (5,), r"class indices of the shape \(4,\) .* got targets of the shape \(5,\)"),
        (replayml.Classifier, (4,), (4,), r"a multiclass Classifier takes class indices"),
        (replayml.BinaryClassifier, (4, 2), (4,), r"logits are \(4, 2\), targets \(4,\).* That is task='multiclass'"),
        (replayml.MultiLabelClassifier, (4, 2), (4, 3), r"a multilabel MultiLabelClassifier takes one logit for each"),
        (replayml.Regressor, (4, 2), (4,), r"predictions are \(4, 2\), targets \(4,\). Give the model as many outputs"),
        (replayml.Regressor, (4, 2), (2, 4), r"predictions are \(4, 2\), targets \(2, 4\)"),
    ],
)
def test_targets_that_would_be_broadcast_are_refused(app: Any, prediction: Any, target: Any, message: str) -> None:
    """Targets of another shape raise, with both shapes, for loss and metrics alike."""
    built = app().build()
    for method in (built.compute_loss, built.metrics_preprocess):
        with pytest.raises(replayml.ConfigurationError, match=message):
            method(
                torch.zeros(prediction),
                torch.zeros(target).long() if app is replayml.Classifier else torch.zeros(target),
            )


def test_a_regressor_takes_integers_and_surplus_dimensions() -> None:
    """Targets of another number type, or with dimensions of one, give the loss of the same numbers."""
    prediction = torch.tensor([[1.5], [2.0]])
    app = replayml.Regressor()
    for target in (torch.tensor([1, 2]), torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.tensor([[1, 2]])):
        assert loss_of(app, prediction, target) == 0.125


def test_a_loss_of_its_own_kind() -> None:
    """A model that returns several tensors is left to a loss that knows them."""

    def loss(prediction: Any, target: Tensor) -> Tensor:
        mean, deviation = prediction
        return nn.functional.gaussian_nll_loss(mean, target, deviation.exp())

    x, y = diabetes()
    app = replayml.Regressor(TwoHeads(), loss=loss)
    trainer = app.fit((x, y[:, None]), (x, y[:, None]), max_epochs=1, **QUIET)
    assert torch.isfinite(trainer.callback_metrics["val_loss"])
    assert [part.shape for part in app.predict(x)] == [(442, 1), (442, 1)]


class TwoHeads(replayml.Module):
    def __init__(self) -> None:
        self.mean = replayml.Layer(nn.Linear, None, 1)
        self.deviation = replayml.Layer(nn.Linear, None, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.deviation(x)


# Settings -------------------------------------------------------------------------------------------------------


def test_tasks() -> None:
    """The task chooses loss and metric, a wrong one names the right ones, and it can be configured later."""
    with pytest.raises(replayml.ConfigurationError, match=r"task='multi' is none of .* Did you mean 'multilabel'"):
        replayml.Classifier(task="multi")
    app: Any = replayml.Classifier(network(1), num_classes=4)
    assert repr(app.loss) == "Layer(CrossEntropyLoss)"
    app.configure(task="binary")
    assert repr(app.loss) == "Layer(BCEWithLogitsLoss)"
    assert app.val_metrics["accuracy"].classtype.__name__ == "BinaryAccuracy"
    assert list(replayml.Classifier().val_metrics) == []


def test_probabilities_decide_at_one_half() -> None:
    """A binary model trained with nn.BCELoss returns probabilities, and is decided at one half."""
    model = replayml.Sequential(network(1), replayml.Layer(nn.Sigmoid))
    app = replayml.BinaryClassifier(model, loss=nn.BCELoss, optimizer=replayml.Adam(lr=0.02))
    app.fit(tumours(), max_epochs=5, **QUIET)
    classes = app.predict_class(tumours()[0]).flatten()
    assert (classes == tumours()[1]).float().mean() > 0.9
