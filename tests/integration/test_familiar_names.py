"""A script written for Deeplay runs when its import, and the name of its base class, are changed.

Everything is reached through one name, as such scripts do: ``import replayml as dl``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import replayml as dl
from replayml.blocks.plain import (
    LayerActivationNormalizationUpsample,
    LayerSkip,
    PoolLayerActivationNormalization,
)
from replayml.blocks.sized import LargeMLP, MediumMLP, SmallMLP, XLargeMLP

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}


class Encoder(dl.Module):
    """A model in the style of the scripts: layers, a list of layers, and arguments that shape them."""

    def __init__(self, width: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.width = width
        self.stem = dl.Layer(nn.Linear, 3, width)
        self.blocks = dl.LayerList()
        for _ in range(depth):
            self.blocks.append(dl.LayerActivation(dl.Layer(nn.Linear, width, width), dl.Layer(nn.ReLU)))
        self.head = dl.Layer(nn.Linear, width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Normalizer(dl.Module):
    """A model whose own methods are recorded."""

    def __init__(self) -> None:
        self.layers = dl.LayerList(dl.Layer(nn.Linear, 2, 2))

    @dl.stateful
    def deepen(self, layers: int) -> Normalizer:
        for _ in range(layers):
            self.layers.append(dl.Layer(nn.Linear, 2, 2))
        return self

    @dl.after_init
    def without_bias(self) -> Normalizer:
        self.layers.configure(bias=False)
        return self

    @dl.before_build
    def close(self) -> Normalizer:
        self.layers.append(dl.Layer(nn.Tanh))
        return self

    @dl.after_build
    def zero(self) -> Normalizer:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        return self


def rows(count: int = 24, features: int = 3, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs ``(count, features)`` and class indices ``(count,)``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, features, generator=generator), torch.arange(count) % classes


@pytest.mark.parametrize(
    "name",
    [
        *("Layer", "External", "LayerList", "Sequential", "Parallel", "Optimizer", "Adam", "AdamW", "SGD", "RMSprop"),
        *("MultiLayerPerceptron", "ConvolutionalNeuralNetwork", "LinearBlock", "Conv2dBlock", "LayerActivation"),
        *("LayerActivationNormalization", "LayerActivationNormalizationDropout", "Add", "Cat", "initializers"),
        *("Application", "Regressor", "Classifier", "Trainer", "LogHistory", "Module"),
        *("stateful", "after_init", "before_build", "after_build"),
    ],
)
def test_names_are_at_the_top_level(name: str) -> None:
    """Each name that scripts use stands at the top level and is listed as public."""
    assert hasattr(dl, name)
    assert name in dl.__all__


def test_layer_defers_a_torch_layer() -> None:
    """A layer keeps its class and arguments open to change until it is built."""
    layer = dl.Layer(nn.Linear, 3, 4)
    assert layer.classtype is nn.Linear
    assert not layer._has_built
    layer.configure(out_features=5, bias=False)
    built = layer.create()
    assert type(built) is nn.Linear
    assert built.weight.shape == (5, 3)
    assert built.bias is None
    assert not layer._has_built
    assert type(layer.configure(nn.Tanh).build()) is nn.Tanh


def test_layer_takes_another_class_with_its_arguments() -> None:
    """Configuring another class keeps what the new class also takes and drops the rest."""
    layer = dl.Layer(nn.Conv2d, 1, 2, 3).configure(nn.Conv1d, out_channels=4)
    built = layer.build()
    assert type(built) is nn.Conv1d
    assert (built.in_channels, built.out_channels, built.kernel_size) == (1, 4, (3,))


def test_external_defers_any_class() -> None:
    """An external object is made from its class and arguments when it is built."""
    external = dl.External(torchmetrics.MeanMetric, nan_strategy="ignore")
    assert external.classtype is torchmetrics.MeanMetric
    external.configure(nan_strategy="error")
    assert external.build().nan_strategy == "error"


def test_module_is_built_in_place_or_created_as_a_copy() -> None:
    """``build`` makes the weights of the module itself, ``create`` those of a copy."""
    model = Encoder()
    created = model.create()
    assert created._has_built
    assert not model._has_built
    assert model.build() is model
    assert model._has_built
    assert model(torch.zeros(1, 3)).shape == (1, 2)


def test_configure_takes_every_form() -> None:
    """A setting is configured by keyword, by name and value, or through the name of a child."""
    model = Encoder().configure(depth=3).configure("width", 6)
    model.configure("stem", bias=False)
    model.head.configure(out_features=7)
    built = model.build()
    assert len(built.blocks) == 3
    assert built.stem.bias is None
    assert built.head.weight.shape == (7, 6)


def test_unknown_and_late_settings_are_refused() -> None:
    """An unknown name raises a ValueError, a setting on a built model a RuntimeError."""
    model = Encoder()
    with pytest.raises(ValueError, match=r"'widht'.*Did you mean 'width'"):
        model.configure(widht=3)
    model.build()
    with pytest.raises(RuntimeError, match=r"is built.*new\(\)"):
        model.configure(width=3)


def test_new_is_an_independent_copy() -> None:
    """A copy has the same configuration, and is changed without the original."""
    model = Encoder(width=5)
    model.blocks.configure("layer", bias=False)
    copy = model.new()
    assert repr(copy) == repr(model)
    copy.configure(width=9)
    assert (copy.stem.kwargs["out_features"], model.stem.kwargs["out_features"]) == (9, 5)


def test_configuration_can_be_read_back() -> None:
    """A module tells which names it takes and what the user configured."""
    model = Encoder()
    assert {"width", "depth"} <= model.configurables
    assert {"in_features", "out_features", "bias"} <= model.stem.configurables
    model.configure(width=8)
    model.stem.configure(bias=False)
    settings = model.get_user_configuration()
    assert settings["width",] == 8
    assert settings["stem", "bias"] is False


def test_children_are_replaced_and_set() -> None:
    """A replaced or assigned child, and a set attribute, are part of every copy."""
    model = Encoder()
    model.replace("head", dl.Layer(nn.Linear, 4, 1))
    model.set("stem", dl.Layer(nn.Linear, 3, 4, bias=False))
    model.set("scale", 2.0)
    built = model.create()
    assert built.head.out_features == 1
    assert built.stem.bias is None
    assert built.scale == 2.0


def test_lists_are_edited_and_configured() -> None:
    """Layer lists are edited like Python lists and configured as a whole or by index, slice or list of indices."""
    layers: Any = dl.LayerList(dl.Layer(nn.Linear, 2, 2), dl.Layer(nn.Linear, 2, 2))
    layers.append(dl.Layer(nn.Linear, 2, 2))
    layers.insert(0, dl.Layer(nn.Linear, 2, 2))
    layers.extend([dl.Layer(nn.Linear, 2, 2), dl.Layer(nn.ReLU)])
    layers.pop(-1)
    layers.remove(layers[0])
    assert len(layers) == 4
    layers.configure(bias=False)
    layers.configure(0, out_features=3)
    layers.configure(slice(1, 2), in_features=3)
    layers.configure([2, 3], out_features=5)
    built = layers.create()
    assert [(layer.in_features, layer.out_features) for layer in built] == [(2, 3), (3, 2), (2, 5), (2, 5)]
    assert all(layer.bias is None for layer in built)


def test_lists_reach_into_their_elements() -> None:
    """A name on a list, or on a part of one, stands for what its elements call so."""
    model = Encoder(depth=3)
    model.blocks.activation.configure(nn.Tanh)
    model.blocks[:2].layer.configure(bias=False)
    model.blocks[-1].activation.configure(nn.GELU)
    assert [block.activation.classtype for block in model.blocks] == [nn.Tanh, nn.Tanh, nn.GELU]
    assert [block.layer.bias is None for block in model.build().blocks] == [True, True, False]


def test_containers_run_their_modules() -> None:
    """``Sequential`` chains modules, ``Parallel`` gives each the same input and names or lists their outputs."""
    net = dl.Sequential(dl.Layer(nn.Linear, 3, 4), dl.Layer(nn.ReLU)).build()
    assert net(torch.zeros(2, 3)).shape == (2, 4)
    both = dl.Parallel(dl.Layer(nn.Linear, 3, 4), dl.Layer(nn.Linear, 3, 5)).build()
    assert [tuple(output.shape) for output in both(torch.zeros(2, 3))] == [(2, 4), (2, 5)]
    named = dl.Parallel(
        a=dl.Layer(nn.Linear, 3, 4).set_input_map("x"), b=dl.Layer(nn.Linear, 3, 5).set_input_map("x")
    ).build()
    outputs = named({"x": torch.zeros(2, 3)})
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {"x": (2, 3), "a": (2, 4), "b": (2, 5)}


def test_plain_blocks_run_in_their_order() -> None:
    """A block of layer, activation, normalization and dropout runs them in ``order``, which can be configured."""
    block = dl.LayerActivationNormalizationDropout(
        dl.Layer(nn.Linear, 3, 4), dl.Layer(nn.ReLU), dl.Layer(nn.BatchNorm1d, 4), dl.Layer(nn.Dropout, 0.1)
    )
    block.configure(order=["layer", "normalization", "activation"])
    block.activation.configure(nn.Tanh)
    built = block.build()
    x = torch.randn(5, 3)
    expected = torch.tanh(nn.functional.batch_norm(built.layer(x), None, None, training=True))
    torch.testing.assert_close(built(x), expected)


def test_blocks_grow_by_methods() -> None:
    """Blocks gain activations, normalizations, dropout, pooling and shortcuts by chained calls, which copies repeat."""
    linear = dl.LinearBlock(4, 4).activated(nn.GELU).normalized().set_dropout(0.2)
    assert linear.order == ["layer", "activation", "normalization", "dropout"]
    copy = linear.new()
    assert copy.order == linear.order
    assert copy.build()(torch.zeros(3, 4)).shape == (3, 4)
    conv = dl.Conv2dBlock(1, 8, padding=1).normalized(nn.BatchNorm2d).activated(nn.ReLU).pooled()
    assert conv.create()(torch.zeros(2, 1, 8, 8)).shape == (2, 8, 4, 4)
    residual = dl.LinearBlock(4, 4).shortcut()
    built = residual.create()
    x = torch.randn(2, 4)
    torch.testing.assert_close(built(x), built.layer(x) + x)


def test_multilayer_perceptron_has_its_shorthands() -> None:
    """The parts of a perceptron are reached as input, hidden, output, layer and activation."""
    mlp = dl.MultiLayerPerceptron(3, [8, 6], 2, out_activation=nn.Softmax)
    mlp.input.layer.configure(bias=False)
    mlp.hidden.activation.configure(nn.Tanh)
    mlp.output.activation.configure(dim=-1)
    mlp.configure(hidden_features=[16, 6])
    built = mlp.build()
    assert [type(block.activation) for block in built.blocks] == [nn.Tanh, nn.Tanh, nn.Softmax]
    assert built.blocks[0].layer.weight.shape == (16, 3)
    assert built.blocks[0].layer.bias is None
    torch.testing.assert_close(built(torch.zeros(4, 3)).sum(dim=-1), torch.ones(4))


def test_convolutional_network_pools_between_blocks() -> None:
    """A convolutional network takes its channels as a list and a pooling layer."""
    cnn = dl.ConvolutionalNeuralNetwork(1, [4, 8], 2, pool=dl.Layer(nn.MaxPool2d, 2))
    cnn[..., "activation"].first.configure(nn.LeakyReLU)
    built = cnn.build()
    assert type(built.blocks[0].activation) is nn.LeakyReLU
    assert built(torch.zeros(2, 1, 8, 8)).shape[:2] == (2, 2)


def test_selections_configure_many_modules() -> None:
    """A selector reaches modules at any depth, narrowed by index, name, class, attribute or a function."""
    model = Encoder(depth=3)
    model[..., "activation"].configure(nn.Tanh)
    model["blocks", :-1, "layer"].configure(bias=False)
    model["blocks", -1, "layer|activation"].isinstance(nn.Tanh).configure(nn.GELU)
    assert [block.activation.classtype for block in model.blocks] == [nn.Tanh, nn.Tanh, nn.GELU]
    assert model[..., "layer#0:2"].list_names() == [("blocks", "0", "layer"), ("blocks", "1", "layer")]
    assert len(model[...].filter(lambda name, module: name.endswith("layer")).list_names()) == 3
    assert len(model[...].hasattr("activation").list_names()) >= 3
    assert [block.layer.bias is None for block in model.build().blocks] == [True, True, False]


def test_dicts_flow_through_maps() -> None:
    """With an input and an output map a module reads from a dict and writes into a copy of it."""
    net = dl.Sequential(dl.Layer(nn.Linear, 3, 4), dl.Layer(nn.Linear, 4, 5))
    net[0].set_input_map("x").set_output_map("h")
    net[1].set_input_map(input="h").set_output_map(y=0)
    given = {"x": torch.zeros(2, 3)}
    for built in (net.create(), net.new().create()):
        outputs = built(given)
        assert {key: tuple(value.shape) for key, value in outputs.items()} == {"x": (2, 3), "h": (2, 4), "y": (2, 5)}
    assert list(given) == ["x"]


def test_activations_are_logged() -> None:
    """Inputs, outputs and tensors from inside ``forward`` are kept in the logs of the model."""

    class Logged(dl.Module):
        def __init__(self) -> None:
            self.layer = dl.Layer(nn.Linear, 3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            self.log_tensor("mean", y.mean())
            return y

    model = Logged()
    model["layer"].log_output("out")
    model.layer.log_input("in")
    built = model.create()
    x = torch.randn(2, 3)
    y = built(x)
    assert set(built.logs) == {"in", "out", "mean"}
    assert built.logs["out"] is y
    torch.testing.assert_close(built.logs["mean"], y.mean())


def test_sizes_are_computed_from_the_input() -> None:
    """A missing size is read off the example input, or computed by a function of it."""
    layer = dl.Layer(nn.Linear, None, 2)
    assert layer.create(torch.zeros(1, 5)).in_features == 5

    @layer.computed("in_features")
    def _(x: torch.Tensor) -> int:
        return x.shape[-1] * x.shape[-2]

    layer.configure(out_features=3)
    assert layer.computed("out_features", lambda x: x.shape[0]).configurables >= {"in_features", "out_features"}

    class Flat(dl.Module):
        def __init__(self, size: int | None = None) -> None:
            self.size = size
            self.layer = dl.Layer(nn.Linear, size, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1))

    flat = Flat()
    flat.computed("size", lambda x: x.flatten(1).shape[1])
    assert flat.build(torch.zeros(2, 3, 4)).layer.in_features == 12


def test_weights_are_initialized() -> None:
    """An initializer given to a module sets the weights of everything below it once they exist."""
    model = Encoder()
    model.blocks.initialize(dl.initializers.Constant((nn.Linear,), weight=0.5, bias=0.25))
    model.head.initialize(dl.initializers.Normal((nn.Linear,), mean=3.0, std=0.0))
    for built in (model.create(), model.new().create()):
        assert all(bool((block.layer.weight == 0.5).all()) for block in built.blocks)
        assert all(bool((block.layer.bias == 0.25).all()) for block in built.blocks)
        assert bool((built.head.weight == 3.0).all())


def test_styles_are_registered_and_applied() -> None:
    """A style is a named function of a class; what it configures is part of every copy."""

    class Styled(Encoder):
        pass

    @Styled.register_style
    def bottleneck(model: Any, width: int = 2) -> None:
        model.configure(width=width)
        model.blocks.configure("layer", bias=False)

    assert "bottleneck" in Styled.available_styles()
    assert "bottleneck" not in Encoder.available_styles()
    model = Styled().style("bottleneck", width=3)
    copy = model.new().build()
    assert copy.stem.out_features == 3
    assert copy.blocks[0].layer.bias is None
    with pytest.raises(ValueError, match=r"no style 'botleneck'.*Did you mean 'bottleneck'"):
        model.style("botleneck")


def test_recorded_methods_are_repeated_by_copies() -> None:
    """Decorated methods run at their time, in copies too, and leave the original list of layers alone."""
    model = Normalizer().deepen(2).without_bias().close().zero()
    assert len(model.layers) == 3
    for built in (model.create(), model.new().create()):
        assert [type(layer) for layer in built.layers] == [nn.Linear] * 3 + [nn.Tanh]
        assert all(layer.bias is None for layer in built.layers[:3])
        assert all(bool((parameter == 0).all()) for parameter in built.parameters())


def test_hooks_run_on_the_built_object() -> None:
    """Functions registered for the build run before it and on the objects that it makes."""
    model = Encoder()
    seen: list[str] = []
    model.register_before_build_hook(lambda module: seen.append(f"before {type(module).__name__}"))
    model.head.register_after_build_hook(lambda module: seen.append(f"after {type(module).__name__}"))
    model.build()
    assert seen == ["before Encoder", "after Linear"]


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (dl.Adam(lr=0.1), torch.optim.Adam),
        (dl.AdamW(lr=0.1), torch.optim.AdamW),
        (dl.SGD(lr=0.1, momentum=0.9), torch.optim.SGD),
        (dl.RMSprop(lr=0.1), torch.optim.RMSprop),
        (dl.Optimizer(torch.optim.Adagrad, lr=0.1), torch.optim.Adagrad),
    ],
    ids=["Adam", "AdamW", "SGD", "RMSprop", "Optimizer"],
)
def test_optimizers_are_configured_before_the_parameters_exist(optimizer: Any, expected: type) -> None:
    """An optimizer is described first and made for the parameters of a model later."""
    optimizer = optimizer.new().configure(lr=0.25)
    app = dl.Regressor(Encoder(), optimizer=optimizer).build()
    made = app.configure_optimizers()
    assert type(made) is expected
    assert made.defaults["lr"] == 0.25
    assert len(made.param_groups[0]["params"]) == len(list(app.parameters()))


def test_optimizer_parameters_are_chosen_by_a_function() -> None:
    """A function of the application chooses which parameters are optimized."""
    app = dl.Regressor(Encoder(), optimizer=dl.Adam(lr=0.1).params(lambda app: app.model.head.parameters()))
    made = app.create().configure_optimizers()
    assert [tuple(parameter.shape) for parameter in made.param_groups[0]["params"]] == [(2, 4), (2,)]


def test_blocks_with_fixed_names_take_their_modules_by_position_and_by_name() -> None:
    """The blocks of a layer and what stands around it take modules in their order, and are configured by name."""
    layer, activation, normalization = dl.Layer(nn.Conv2d, 1, 2, 3), dl.Layer(nn.ReLU), dl.Layer(nn.BatchNorm2d, 2)
    up = LayerActivationNormalizationUpsample(layer, activation, normalization, upsample=dl.Layer(nn.Upsample, None, 2))
    pooled = PoolLayerActivationNormalization(
        dl.Layer(nn.MaxPool2d, 2), layer.new(), activation.new(), normalization=normalization.new()
    )
    for block, side in ((up, 12), (pooled, 2)):
        block.configure(activation=nn.GELU)
        block.configure("normalization", nn.InstanceNorm2d, num_features=2)
        built = block.create()
        assert type(built.activation) is nn.GELU
        assert type(built.normalization) is nn.InstanceNorm2d
        assert built(torch.zeros(1, 1, 8, 8)).shape == (1, 2, side, side)


def test_a_skip_connection_merges_what_a_layer_gives_with_what_it_gets() -> None:
    """A layer with a skip connection takes a merge operation, and another one when it is configured."""
    block = LayerSkip(dl.Layer(nn.Linear, 3, 3), dl.Add())
    x = torch.ones(2, 3)
    built = block.create()
    torch.testing.assert_close(built(x), built.layer(x) + x)
    block.configure(skip=dl.Cat())
    assert block.build()(x).shape == (2, 6)


@pytest.mark.parametrize(
    ("cls", "sizes"),
    [
        (SmallMLP, [32, 32]),
        (MediumMLP, [64, 128]),
        (LargeMLP, [128, 128, 128]),
        (XLargeMLP, [128, 256, 512, 512]),
    ],
)
def test_sized_perceptrons(cls: Any, sizes: list[int]) -> None:
    """A perceptron of each size has its hidden layers, leaky and normalized, and is changed like any other."""
    mlp = cls(3, 2)
    assert [block.layer.out_features for block in mlp.blocks] == [*sizes, 2]
    assert all(block.activation.negative_slope == 0.05 for block in mlp.blocks[:-1])
    assert "normalization" not in mlp.blocks[-1].order
    mlp["blocks", 0, "activation"].configure(nn.GELU)
    copy = dl.Recipe.from_json(mlp.configure(out_features=4).recipe().to_json()).model()
    assert repr(copy) == repr(mlp)
    assert copy.build()(torch.zeros(5, 3)).shape == (5, 4)


def test_a_history_is_left_out_and_a_progress_bar_exchanged() -> None:
    """The trainer's history is disabled, and its progress bar disabled or exchanged, after it was made."""
    trainer = dl.Trainer(max_epochs=1, **{**QUIET, "enable_progress_bar": True})
    trainer.tqdm_progress_bar(refresh_rate=2)
    trainer.rich_progress_bar(leave=True)
    trainer.disable_progress_bar()
    trainer.disable_history()
    trainer.fit(dl.Regressor(Encoder()), DataLoader(TensorDataset(rows()[0], rows()[0][:, :2]), batch_size=8))
    with pytest.raises(ValueError, match="keeps no history"):
        _ = trainer.history


def test_predict_runs_in_batches() -> None:
    """``predict`` takes tensors and NumPy arrays of any number of rows, in evaluation mode and without gradients."""
    model = dl.Sequential(Encoder(), dl.Layer(nn.Dropout, 0.5)).build()
    x, _ = rows(50)
    expected = model.eval()(x)
    model.train()
    for given in (x, x.numpy(), x.double().numpy()):
        output = model.predict(given, batch_size=16)
        torch.testing.assert_close(output, expected)
        assert not output.requires_grad
    assert model.training


def test_classifier_fits_tests_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier is trained on arrays or tensors, keeps a history, and is tested with its accuracy."""
    monkeypatch.chdir(tmp_path)
    x, y = rows()
    app = dl.Classifier(dl.MultiLayerPerceptron(3, [8], 2), num_classes=2, optimizer=dl.Adam(lr=1e-2))
    trained = app.fit((x, y), (x, y), max_epochs=2, batch_size=8, **QUIET)
    history = trained.history
    assert isinstance(history, dl.LogHistory)
    assert {"train_loss", "val_loss", "val_accuracy"} <= set(history.history)
    assert len(history.history["val_loss"]["value"]) == 2
    assert "test_accuracy" in app.test((x, y), **QUIET)
    assert app.predict(x).shape == (24, 2)
    assert app(x).shape == (24, 2)


def test_regressor_trains_with_any_loss_and_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regressor takes a torch loss, torchmetrics and NumPy arrays."""
    monkeypatch.chdir(tmp_path)
    x, _ = rows()
    target = x.sum(dim=1, keepdim=True).repeat(1, 2)
    app = dl.Regressor(
        Encoder(), loss=nn.MSELoss(), optimizer=dl.SGD(lr=0.05), metrics=[torchmetrics.MeanAbsoluteError()]
    )
    trained = app.fit((np.asarray(x), np.asarray(target)), max_epochs=4, **QUIET)
    values = trained.history.history["train_loss"]["value"]
    assert values[-1] < values[0]
    assert any("absolute" in name.lower() for name in trained.history.history)


def test_application_is_subclassed_and_trained_by_a_trainer() -> None:
    """An application of one's own, with its steps, is trained with the trainer and a data loader."""

    class Autoencoder(dl.Application):
        def __init__(self, encoder: Any, **kwargs: Any) -> None:
            super().__init__(loss=nn.MSELoss(), optimizer=dl.Adam(lr=1e-2), **kwargs)
            self.encoder = encoder
            self.decoder = dl.Layer(nn.Linear, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.decoder(self.encoder(x))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            (x,) = batch
            loss = self.compute_loss(self(x), x)
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            return loss

    app = Autoencoder(Encoder()).create()
    before = [parameter.clone() for parameter in app.parameters()]
    trainer = dl.Trainer(max_epochs=1, **QUIET)
    trainer.fit(app, DataLoader(TensorDataset(rows()[0]), batch_size=8))
    assert len(trainer.history.step_history["train_loss"]["value"]) == 3
    assert len(trainer.history.history["train_loss"]["value"]) == 1
    assert any(not torch.equal(old, new) for old, new in zip(before, app.parameters(), strict=True))


def test_checkpoint_is_loaded_by_its_class(tmp_path: Path) -> None:
    """A checkpoint is loaded by the application's class without its arguments, and predicts the same."""
    x, y = rows()
    app = dl.Classifier(dl.MultiLayerPerceptron(3, [8], 2), num_classes=2)
    app.model.hidden.activation.configure(nn.Tanh)
    trainer = dl.Trainer(max_epochs=1, **QUIET)
    trainer.fit(app.build(), DataLoader(TensorDataset(x, y), batch_size=8))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = dl.Classifier.load_from_checkpoint(tmp_path / "model.ckpt")
    assert type(loaded.model.blocks[0].activation) is nn.Tanh
    torch.testing.assert_close(loaded.predict(x), app.predict(x))
