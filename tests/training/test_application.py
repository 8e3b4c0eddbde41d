"""`Application`: trained with any data, any metrics and any steps, by itself or by Lightning's own trainer."""

import copy
import pickle
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
import torch
from lightning import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

import replayml
from tests.training.applications import (
    QUIET,
    Digits,
    Hooked,
    Scaled,
    best_path,
    classifier,
    digits,
    loader,
    network,
    plain_trainer,
    saving,
)

# Data -----------------------------------------------------------------------------------------------------------


def _data(kind: str) -> Any:
    x, y = digits()
    return {
        "tensors": (x, y),
        "numpy": (x.numpy().astype(np.float64), y.numpy()),
        "dict": {"x": x, "y": y},
        "dataset": TensorDataset(x, y),
        "loader": loader((x, y)),
        "datamodule": Digits(),
    }[kind]


@pytest.mark.parametrize("kind", ["tensors", "numpy", "dict", "dataset", "loader", "datamodule"])
def test_every_kind_of_data_serves_every_phase(kind: str) -> None:
    """The same data trains, validates, tests and predicts, and the model learns from it."""
    app = classifier()
    val_data = None if kind == "datamodule" else _data(kind)
    trainer = app.fit(_data(kind), val_data, max_epochs=4, batch_size=100, **QUIET)
    accuracy = trainer.callback_metrics["val_accuracy"]
    assert accuracy > 0.8
    found = app.validate(_data(kind), batch_size=100, **QUIET)
    assert found["val_accuracy"] == pytest.approx(float(accuracy))
    assert app.test(_data(kind), batch_size=100, **QUIET)["test_accuracy"] == pytest.approx(float(accuracy))
    if kind == "loader":
        data: Any = loader(digits())
    elif kind == "dict":
        data = digits()[0]
    else:
        data = _data(kind)[0] if isinstance(_data(kind), tuple) else _data(kind)
    classes = app.predict_class(data)
    assert (classes == digits()[1]).float().mean() == pytest.approx(float(accuracy))


@pytest.mark.parametrize("kind", ["loader", "datamodule"])
def test_a_plain_trainer_does_the_same(kind: str) -> None:
    """Lightning's own trainer trains, validates, tests and predicts with an unbuilt application."""
    app, data = classifier(), _data(kind)
    trainer = plain_trainer(max_epochs=4)
    trainer.fit(app, data, *([data] if kind == "loader" else []))
    accuracy = float(trainer.callback_metrics["val_accuracy"])
    assert accuracy > 0.8
    assert trainer.validate(app, data, verbose=False)[0]["val_accuracy"] == pytest.approx(accuracy)
    assert trainer.test(app, data, verbose=False)[0]["test_accuracy"] == pytest.approx(accuracy)
    batches: Any = trainer.predict(app, loader(digits()) if kind == "loader" else data)
    assert torch.equal(torch.cat(batches), app.predict(digits()[0], batch_size=100))


@pytest.mark.parametrize("phase", ["fit", "validate", "test", "predict"])
def test_each_phase_builds_from_its_first_batch(phase: str) -> None:
    """Whichever phase comes first reads the open sizes off its first batch."""
    app = classifier()
    data = [loader(digits())] * (2 if phase == "fit" else 1)
    getattr(plain_trainer(), phase)(app, *data)
    assert app.model[0].in_features == 64
    assert app._has_built


def test_a_model_without_open_sizes_is_built_without_a_batch() -> None:
    """A dataset whose first batch would fail is not asked for it when no size is open."""

    class Counted(Dataset[Any]):
        def __init__(self) -> None:
            self.read = 0

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            self.read += 1
            return digits()[0][index], digits()[1][index]

    for inputs, expected in ((64, 4), (None, 8)):
        data = Counted()
        app = replayml.Classifier(network(inputs=inputs), num_classes=10)
        plain_trainer().fit(app, DataLoader(data, batch_size=4), loader(digits()))
        assert data.read == expected


def test_looking_at_the_first_batch_changes_no_order() -> None:
    """A model that is built from the first batch trains exactly like one that was built before."""

    def weights(built: bool, generator: bool) -> Tensor:
        torch.manual_seed(3)
        options: Any = {"generator": torch.Generator().manual_seed(1)} if generator else {}
        app = classifier()
        if built:
            app.build(digits()[0][:1])
        app.fit(loader(digits(), shuffle=True, **options), max_epochs=1, **QUIET)
        result: Tensor = app.model[2].weight.detach()
        return result

    for generator in (False, True):
        assert torch.equal(weights(built=True, generator=generator), weights(built=False, generator=generator))


def test_data_that_can_be_read_once_is_left_alone() -> None:
    """An iterator loses no batch to the build: the error says to build with an example, and that works."""
    app = classifier()
    batches = iter(list(loader(digits())))
    with pytest.raises(
        replayml.NotBuiltError, match=r"can be read only once. Build it with an example: app.build\(x\)"
    ):
        plain_trainer().fit(app, batches, loader(digits()))
    assert len(list(batches)) == 6


def test_without_data_the_example_is_asked_for() -> None:
    """An application with open sizes that meets no data says how to build it."""
    app = classifier()
    with pytest.raises(replayml.NotBuiltError, match="sizes that are to be read off the input, and there is no data"):
        app.configure_model()
    with pytest.raises(replayml.NotBuiltError, match=r"Build it first: model.build\(example_input\)"):
        app.predict(digits()[0])


def test_an_example_input_array_builds_the_model() -> None:
    """Lightning's example_input_array serves as the example, as a tensor, a tuple or a dict of arguments."""
    x = digits()[0][:2]
    examples: list[Any] = [x, (x,), {"x": x}]
    for example in examples:
        app = Scaled(8)
        app.example_input_array = example
        app.configure_model()
        assert app.layers[0].in_features == 64


class TwoInputs(replayml.Module):
    def __init__(self) -> None:
        self.left = replayml.Layer(nn.Linear, None, 10)
        self.right = replayml.Layer(nn.Linear, None, 10)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        result: Tensor = self.left(left) + self.right(right)
        return result


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_several_inputs(nested: bool, as_dataset: bool) -> None:
    """(x1, x2, y) and ((x1, x2), y) call the model with two inputs, in arrays and in the lists that torch collates."""
    x, y = digits()
    left, right = x[:, :40], x[:, 40:]
    data: Any = ((left, right), y) if nested else (left, right, y)
    if as_dataset:
        data = [((a, b), c) if nested else (a, b, c) for a, b, c in zip(left, right, y, strict=True)]
        data = DataLoader(data, batch_size=50)
    app = replayml.Classifier(TwoInputs(), num_classes=10)
    app.fit(data, max_epochs=1, **QUIET)
    assert (app.model.left.in_features, app.model.right.in_features) == (40, 24)
    assert app.predict(left, right).shape == (600, 10)
    if not as_dataset:
        assert torch.equal(app.predict(DataLoader(TensorDataset(left, right, y), 60)), app.predict(left, right))


def test_inputs_alone_are_their_own_targets() -> None:
    """A tensor alone trains an autoencoder, and predicts with a loader of it."""
    x = digits()[0]
    app = replayml.Regressor(network(outputs=64))
    trainer = app.fit(x, x, max_epochs=2, **QUIET)
    assert float(trainer.callback_metrics["val_loss"]) < 0.5
    assert torch.equal(app.predict(loader((x,))), app.predict(x, batch_size=100))


def test_a_dict_without_targets_names_what_it_has() -> None:
    """A batch that is a dict without 'y' is refused for training, with its keys and the way out."""
    app = replayml.Classifier(network(inputs=64), num_classes=10)
    with pytest.raises(replayml.ConfigurationError, match=r"this one has 'x', 'label'. Override batch_preprocess"):
        app.fit({"x": digits()[0], "label": digits()[1]}, max_epochs=1, **QUIET)


def test_an_application_brings_its_own_loaders() -> None:
    """fit() without data uses the loaders that the application defines, as in Lightning."""

    class WithData(replayml.Classifier):
        def train_dataloader(self) -> DataLoader[Any]:
            return loader(digits())

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    app = WithData(network(), num_classes=10)
    trainer = app.fit(max_epochs=1, **QUIET)
    assert "val_accuracy" in trainer.callback_metrics
    assert "test_accuracy" in app.test(**QUIET)


def test_arguments_without_effect_are_refused() -> None:
    """Validation data beside a data module, and options beside a trainer, are refused instead of ignored."""
    app = classifier()
    with pytest.raises(replayml.ConfigurationError, match="brings its own validation data; leave val_data out"):
        app.fit(Digits(), digits(), **QUIET)
    with pytest.raises(replayml.ConfigurationError, match="max_epochs would have no effect, for the trainer was given"):
        app.fit(digits(), max_epochs=2, trainer=plain_trainer())  # type: ignore[call-overload]


def test_a_stream_trains_the_model() -> None:
    """An IterableDataset that starts anew each time builds and trains the model."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return zip(*digits(100), strict=True)

    app = classifier()
    app.fit(Stream(), max_epochs=1, batch_size=20, **QUIET)
    assert app.model[0].in_features == 64


def test_prediction_runs_where_it_is_told() -> None:
    """Predict moves inputs to ``device`` and outputs to ``output_device``, for arrays and loaders alike."""
    app = classifier().build(digits()[0][:1])
    for data in (digits()[0], loader(digits())):
        assert app.predict(data, device="cpu", output_device="meta").is_meta
        assert app.predict(data, device="cpu").device.type == "cpu"
    meta = classifier().build(digits()[0][:1], device="meta")
    assert meta.predict(digits()[0], device="meta").is_meta
    with pytest.raises(replayml.ConfigurationError, match="predict got no batch"):
        app.predict(DataLoader(TensorDataset(*digits()), batch_size=700, drop_last=True))


def test_prediction_leaves_modes_and_gradients_alone() -> None:
    """Predict runs in evaluation mode without gradients, and puts every mode back."""
    app = replayml.Classifier(replayml.Sequential(network(), replayml.Layer(nn.Dropout, 0.5)), num_classes=10)
    app.build(digits()[0][:1])
    app.model[0].eval()
    first = app.predict(loader(digits()))
    assert torch.equal(first, app.predict(digits()[0], batch_size=100))
    assert not first.requires_grad
    assert app.training
    assert app.model[1].training
    assert not app.model[0].training


# Metrics --------------------------------------------------------------------------------------------------------

ACCURACY: dict[str, Any] = {"num_classes": 10, "average": "micro"}


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        (MulticlassAccuracy(**ACCURACY), ["multiclassaccuracy"]),
        (replayml.External(MulticlassAccuracy, **ACCURACY), ["multiclassaccuracy"]),
        ([MulticlassAccuracy(**ACCURACY), MulticlassF1Score(10)], ["multiclassaccuracy", "multiclassf1score"]),
        ([("mine", MulticlassAccuracy(**ACCURACY))], ["mine"]),
        ({"one": MulticlassAccuracy(**ACCURACY), "two": replayml.External(MulticlassF1Score, 10)}, ["one", "two"]),
        (MetricCollection([MulticlassAccuracy(**ACCURACY)], prefix="my_"), ["my_MulticlassAccuracy"]),
        ([MetricCollection([MulticlassAccuracy(**ACCURACY)])], ["MulticlassAccuracy"]),
    ],
    ids=["instance", "external", "list", "pairs", "dict", "collection", "listed collection"],
)
def test_every_form_of_metrics(metrics: Any, names: list[str], tmp_path: Path) -> None:
    """Metrics in every form are logged in every phase under their names, with the right values, after a reload too."""
    app = classifier(metrics=metrics, val_metrics={"extra": MulticlassF1Score(10)})
    trainer = app.fit(digits(), digits(), max_epochs=1, **saving(tmp_path))
    expected = float((app.predict_class(digits()[0]) == digits()[1]).float().mean())
    found = {name for name in trainer.callback_metrics if "loss" not in name}
    assert found == {f"{phase}_{name}" for phase in ("train", "val") for name in names} | {"val_extra"}
    assert trainer.callback_metrics[f"val_{names[0]}"] == pytest.approx(expected)
    again = replayml.Application.load_from_checkpoint(best_path(trainer))
    for one in (app, again):
        results = one.test(digits(), **QUIET)
        assert set(results) == {"test_loss", *(f"test_{name}" for name in names)}
        assert results[f"test_{names[0]}"] == pytest.approx(expected)


def test_a_class_is_a_metric_too() -> None:
    """A metric class stands for a metric without arguments."""
    app = replayml.Regressor(network(1), metrics=[MeanAbsoluteError]).build(digits()[0][:1])
    assert app.test((digits()[0], digits()[1].float()), **QUIET)["test_meanabsoluteerror"] > 0


def test_metrics_of_one_name_are_refused() -> None:
    """Two metrics of one name, or one that takes the name of the loss, are refused instead of overwritten."""
    with pytest.raises(
        replayml.ConfigurationError, match=r"two metrics of Application are called 'meanabsoluteerror'. Give them names"
    ):
        replayml.Application(metrics=[MeanAbsoluteError()], val_metrics=MeanAbsoluteError())
    with pytest.raises(replayml.ConfigurationError, match="cannot be called 'loss'"):
        replayml.Application(metrics={"loss": MeanAbsoluteError()})
    with pytest.raises(
        replayml.ArgumentError, match=r"metrics\[0\] of Application is 'accuracy', which is no metric. "
    ):
        replayml.Application(metrics=["accuracy"])


def test_metrics_can_be_chosen_for_one_test() -> None:
    """test(metrics=...) logs other metrics once, and the application keeps its own."""
    app = classifier().build(digits()[0][:1])
    found = app.test(digits(), metrics={"f1": replayml.External(MulticlassF1Score, 10)}, **QUIET)
    assert set(found) == {"test_loss", "test_f1"}
    assert set(app.test(digits(), **QUIET)) == {"test_loss", "test_accuracy"}


def test_each_of_several_loaders_has_metrics_of_its_own() -> None:
    """Validation with several loaders gives the metrics of each, not of all together."""
    x, y = digits()
    app = classifier().build(x[:1])
    parts = [(x[:200], y[:200]), (x[200:], y[200:])]
    for _ in range(2):
        found = app.validate([loader(part) for part in parts], **QUIET)
        for index, (inputs, target) in enumerate(parts):
            expected = float((app.predict_class(inputs) == target).float().mean())
            assert found[f"val_accuracy/dataloader_idx_{index}"] == pytest.approx(expected)
    app.fit((x, y), [loader(part) for part in parts], max_epochs=1, **QUIET)


def test_metrics_are_configured_like_any_module() -> None:
    """An External metric is a part of the tree: it is selected and configured before the build."""
    app = classifier(metrics={"top": replayml.External(MulticlassAccuracy, 10, average="micro")})
    app["val_metrics", "top"].configure(top_k=10)
    app.build(digits()[0][:1])
    assert app.validate(digits(), **QUIET)["val_top"] == 1.0
    assert app.test(digits(), **QUIET)["test_top"] < 1.0


# Losses ---------------------------------------------------------------------------------------------------------


class SumOfErrors(replayml.Module):
    def __init__(self, power: float = 2.0) -> None:
        self.power = power

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return ((prediction - target).abs() ** self.power).mean()


class NoModule:
    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return ((prediction - target) ** 2).mean()


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss,
        nn.MSELoss(),
        nn.functional.mse_loss,
        replayml.Layer(nn.MSELoss),
        SumOfErrors(2.0),
        SumOfErrors,
        NoModule,
    ],
    ids=["class", "instance", "function", "layer", "module", "module class", "other class"],
)
def test_every_form_of_losses(loss: Any, tmp_path: Path) -> None:
    """A loss may be a class, an instance, a function, a Layer or a module of one's own; all train to the same loss."""
    x, y = digits()
    app = replayml.Regressor(network(1), loss=loss).build(x[:1], seed=1)
    trusted = [NoModule] if loss is NoModule else []
    trainer = app.fit(loader((x, y.float())), max_epochs=1, **saving(tmp_path))
    assert trainer.history.epoch["train_loss"]["value"] == pytest.approx([29.247], abs=0.01)
    again = replayml.Application.load_from_checkpoint(best_path(trainer), trust=trusted)
    assert again.test((x, y.float()), **QUIET) == app.test((x, y.float()), **QUIET)


def test_without_a_loss_training_says_so() -> None:
    """An application without a loss or a model names what is missing."""
    with pytest.raises(NotImplementedError, match=r"has no loss: give loss=..., or define compute_loss\(\)"):
        Bare().fit(digits(), max_epochs=1, **QUIET)
    with pytest.raises(NotImplementedError, match="has no 'model'; assign one in __init__ or define forward"):
        replayml.Application().build()(digits()[0])


class Bare(replayml.Application):
    def __init__(self) -> None:
        super().__init__()
        self.model = network(10)


class TwoLosses(Bare):
    def compute_loss(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"fit": nn.functional.cross_entropy(prediction, target), "size": 0.1 * prediction.pow(2).mean()}


def test_several_losses_are_logged_by_name_and_summed() -> None:
    """compute_loss may return a dict: each loss is logged, and their sum is minimised."""
    trainer = TwoLosses().fit(digits(), digits(), max_epochs=1, **QUIET)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found["val_loss"] == pytest.approx(found["val_fit"] + found["val_size"], abs=1e-5)
    assert {"train_fit", "train_size", "train_loss"} <= found.keys()


# Subclasses -----------------------------------------------------------------------------------------------------


def test_an_application_with_its_own_steps_optimizer_and_arguments(tmp_path: Path) -> None:
    """A subclass with its own steps, optimizer, scheduler and arguments trains, and reloads as itself."""
    app = Scaled(12, scale=2.0, depth=2, metrics=[MulticlassAccuracy(**ACCURACY)])
    trainer = app.fit(digits(), digits(), max_epochs=2, **saving(tmp_path))
    assert {"my_loss", "val_loss", "val_multiclassaccuracy"} <= trainer.callback_metrics.keys()
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**2)
    again = replayml.Application.load_from_checkpoint(best_path(trainer))
    assert type(again) is Scaled
    assert (again.scale, len(again.layers)) == (2.0, 2)
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))


def test_it_is_configured_and_edited_like_any_module() -> None:
    """Arguments, layers and the optimizer are configured before the build, and the model trains as configured."""
    app: Any = Scaled(12, depth=1).configure(width=7, depth=2, scale=0.5)
    app["layers", 0].configure(bias=False)
    app.fit(digits(), max_epochs=1, **QUIET)
    assert [tuple(layer.weight.shape) for layer in app.layers] == [(7, 64), (7, 7)]
    assert (app.layers[0].bias, app.scale) == (None, 0.5)


class Saver(replayml.Classifier):
    def __init__(self, model: Any, width: int = 3, table: Any = None, ignoring: bool = True) -> None:
        super().__init__(model, num_classes=10)
        self.save_hyperparameters(ignore=["model"] if ignoring else None)


@pytest.mark.parametrize("ignoring", [True, False])
@pytest.mark.filterwarnings("ignore:Attribute 'model' is an instance of `nn.Module`:UserWarning")
def test_hyper_parameters_that_a_user_saves_stay_readable(ignoring: bool, tmp_path: Path) -> None:
    """save_hyperparameters() keeps its plain values in the checkpoint, whose recipe has all the rest."""
    app = Saver(network(), width=4, table=(1, 2), ignoring=ignoring)
    assert app.hparams["width"] == 4
    trainer = app.fit(digits(), max_epochs=1, **saving(tmp_path))
    content = torch.load(best_path(trainer), weights_only=True)
    assert content["hyper_parameters"]["width"] == 4
    assert "model" not in content["hyper_parameters"]
    again = replayml.Application.load_from_checkpoint(best_path(trainer))
    assert (again.hparams["width"], again.hparams["table"]) == (4, (1, 2))
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))


class Manual(replayml.Classifier):
    def __init__(self) -> None:
        super().__init__(network(), num_classes=10)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()


def test_manual_optimization_works() -> None:
    """A subclass may turn Lightning's automatic optimization off in its __init__, also when it is configured later."""
    app = Manual().configure(loss=nn.CrossEntropyLoss)
    before = app.build(digits()[0][:1]).model[0].weight.clone()
    app.fit(digits(), max_epochs=1, **QUIET)
    assert not app.automatic_optimization
    assert not torch.equal(before, app.model[0].weight)


class OnlyHead(replayml.Classifier):
    def __init__(self) -> None:
        optimizer = replayml.SGD(lr=0.5).params(lambda module: module.model[2].parameters())
        super().__init__(network(), num_classes=10, optimizer=optimizer)


def test_the_optimizer_takes_the_parameters_that_it_was_told() -> None:
    """Parameters chosen with Optimizer.params are the ones trained; by default all that are trainable."""
    app = OnlyHead().build(digits()[0][:1])
    before = copy.deepcopy(app.state_dict())
    app.fit(digits(), max_epochs=1, **QUIET)
    changed = {name for name, value in app.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"model.2.weight", "model.2.bias"}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, lambda parameters: torch.optim.SGD(parameters, lr=0.1)])
def test_other_forms_of_optimizers(optimizer: Any) -> None:
    """A class of torch.optim, and a function of the parameters, serve as the optimizer."""
    app = classifier(optimizer=optimizer)
    trainer = app.fit(digits(), max_epochs=1, **QUIET)
    assert type(trainer.optimizers[0]) is torch.optim.SGD


# Hooks of the training ------------------------------------------------------------------------------------------


def test_hooks_run_once_around_the_first_training() -> None:
    """@before_fit runs on the built model before there is an optimizer, @after_fit at the end; neither runs twice."""
    app = Hooked()
    app.still(0)
    app.thaw(0)
    assert app.seen == []
    app.build(digits()[0][:1]).validate(digits(), **QUIET)
    assert app.seen == []
    before = app.model[0].weight.clone()
    app.fit(digits(), max_epochs=2, batch_size=100, **QUIET)
    assert app.seen == [("still", True, 0, 0), ("thaw", True, 12, True)]
    assert torch.equal(before, app.model[0].weight)
    app.fit(digits(), max_epochs=1, batch_size=100, **QUIET)
    assert len(app.seen) == 2
    assert not torch.equal(before, app.model[0].weight)


def test_hooks_wait_in_copies_too() -> None:
    """A copy of a built model has its own waiting hooks, and new() and a tree around the model have them as well."""
    app = Hooked()
    app.still(0)
    app.build(digits()[0][:1])
    for other in (copy.deepcopy(app), pickle.loads(pickle.dumps(app)), dill.loads(dill.dumps(app)), app.new(), app):
        other.fit(digits(), max_epochs=1, **QUIET)
        assert [name for name, *_ in other.seen] == ["still"]


class FrozenLayer(replayml.Layer):
    @replayml.before_fit
    def freeze(self) -> None:
        self.requires_grad_(False)


def test_hooks_of_layers_reach_what_replaced_them() -> None:
    """A hook that waits on a layer runs on the torch layer that the build made of it."""
    app = replayml.Classifier(replayml.Sequential(FrozenLayer(nn.Linear, None, 16), network()), num_classes=10)
    app.model[0].freeze()
    app.build(digits()[0][:1])
    assert app.model[0].weight.requires_grad
    copied = copy.deepcopy(app)
    app.fit(digits(), max_epochs=1, **QUIET)
    assert not app.model[0].weight.requires_grad
    assert copied.model[0].weight.requires_grad


def test_hooks_run_where_a_user_overrides_lightnings() -> None:
    """A subclass that overrides on_fit_start and on_fit_end without super() still gets its recorded hooks."""

    class Own(Hooked):
        def on_fit_start(self) -> None: ...

        def on_fit_end(self) -> None: ...

    app = Own()
    app.still(0)
    app.thaw(0)
    app.fit(digits(), max_epochs=1, **QUIET)
    assert [name for name, *_ in app.seen] == ["still", "thaw"]


# Copies ---------------------------------------------------------------------------------------------------------


class Copying(Callback):
    """Copies the application in every way while it trains."""

    def __init__(self) -> None:
        self.copies: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.copies += _copies(module)
            self.prediction = module.predict(digits()[0])
            module.train()
            self.blank = module.new()


def _copies(app: Any) -> list[Any]:
    return [copy.deepcopy(app), pickle.loads(pickle.dumps(app)), dill.loads(dill.dumps(app))]


def test_copies_during_and_after_training() -> None:
    """new(), deepcopy, pickle and dill work in the middle of a training and after it, and the copies train on."""
    app, callback = classifier(), Copying()
    app.fit(digits(), digits(), max_epochs=1, callbacks=[callback], **QUIET)
    for one in callback.copies:
        assert torch.equal(one.predict(digits()[0]), callback.prediction)
    for one in _copies(app):
        assert torch.equal(one.predict(digits()[0]), app.predict(digits()[0]))
    for one in (callback.copies[0], callback.copies[1], copy.deepcopy(app), callback.blank, app.new()):
        before = None if not one._has_built else one.model[0].weight.clone()
        trainer = one.fit(digits(), digits(), max_epochs=1, **QUIET)
        assert "val_accuracy" in trainer.callback_metrics
        assert before is None or not torch.equal(before, one.model[0].weight)
    assert app.new()[..., "1"].configure(nn.Tanh)


def test_the_tape_ends_with_the_build() -> None:
    """Training, predicting and what Lightning sets leave no entry on the tape."""
    app = classifier()
    app.configure(num_classes=10)
    tape = app.tape
    assert len(tape) == 1
    app.fit(digits(), digits(), max_epochs=1, **QUIET)
    app(digits()[0])
    app.extra = 3
    assert app.tape == tape
    assert len(app.new().tape) == 1


def test_what_lightning_sets_on_an_unbuilt_application_is_not_recorded() -> None:
    """A trainer that was attached, and a failed training, leave neither entry nor fault on an unbuilt application."""
    app = classifier()
    with pytest.raises(replayml.NotBuiltError):
        plain_trainer().fit(app, iter(list(loader(digits()))), loader(digits()))
    assert len(app.tape) == 0
    assert app.new().create(digits()[0][:1])(digits()[0]).shape == (600, 10)


# Compiling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own look
def test_a_compiled_application_trains(built: bool, tmp_path: Path) -> None:
    """trainer.fit(torch.compile(app)) trains, and writes a checkpoint that loads like any other."""
    app = classifier()
    if built:
        app.build(digits()[0][:1])
    trainer = plain_trainer(enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(torch.compile(app, backend="eager"), loader(digits()), loader(digits()))  # type: ignore[arg-type]
    assert len(app.tape) == 0
    again = replayml.Application.load_from_checkpoint(best_path(trainer))
    assert torch.equal(again.predict(digits()[0]), app.predict(digits()[0]))
