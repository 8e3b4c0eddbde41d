"""torch's own layers as arguments: the call that makes each again, and what is refused."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score

import replayml
from replayml.core.errors import RecipeError
from replayml.core.tape import CallRecord
from replayml.recipe import Codec, Recipe
from replayml.recipe.text.torch_names import LAYERS, torchmetrics_classes
from replayml.recipe.values.plain import call_of
from tests.recipe.samples import Net, assert_same


def again(module: nn.Module, **options: Any) -> Any:
    """Return a layer that was written as an argument, read and made."""
    recipe = Recipe.of(CallRecord(Net, (module,)), **options)
    assert Recipe.of(recipe.record()) == recipe
    return Recipe.from_json(recipe.to_json()).model().seen[0][0]


def assert_alike(one: nn.Module, other: nn.Module) -> None:
    """Assert that two modules have the same text, mode, and tensors up to their values."""
    assert str(one) == str(other)
    assert [(name, type(m), m.training) for name, m in one.named_modules(remove_duplicate=False)] == [
        (name, type(m), m.training) for name, m in other.named_modules(remove_duplicate=False)
    ]
    shapes = [{name: (t.shape, t.dtype) for name, t in m.state_dict().items()} for m in (one, other)]
    assert shapes[0] == shapes[1]


# Arguments for the layers that need some; all others are made without.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "AdaptiveAvgPool1d": (2,),
    "AdaptiveAvgPool2d": ((2, None),),
    "AdaptiveAvgPool3d": (2,),
    "AdaptiveLogSoftmaxWithLoss": (16, 20, [4, 10], 2.0),
    "AdaptiveMaxPool1d": (2,),
    "AdaptiveMaxPool2d": (2, True),
    "AdaptiveMaxPool3d": (2,),
    "AvgPool1d": (2,),
    "AvgPool2d": (2, 3),
    "AvgPool3d": (2,),
    "BatchNorm1d": (4,),
    "BatchNorm2d": (4, 1e-3, None),
    "BatchNorm3d": (4, 1e-5, 0.1, False, False),
    "Bilinear": (2, 3, 4),
    "ChannelShuffle": (2,),
    "CircularPad1d": (2,),
    "CircularPad2d": (2,),
    "CircularPad3d": (2,),
    "ConstantPad1d": (2, 3.5),
    "ConstantPad2d": (2, 1),
    "ConstantPad3d": (2, 1),
    "Conv1d": (1, 2, 3),
    "Conv2d": (2, 4, (3, 5), 2, (1, 2), 2, 2, False, "reflect"),
    "Conv3d": (1, 2, 3, 1, "same"),
    "ConvTranspose1d": (1, 2, 3),
    "ConvTranspose2d": (2, 4, 3, 2, 1, 1, 2, False, 2),
    "ConvTranspose3d": (1, 2, 3),
    "CrossMapLRN2d": (3,),
    "Embedding": (5, 3, 1, 2.0),
    "EmbeddingBag": (5, 3, None, 2.0, False, "sum"),
    "Fold": (4, 2),
    "FractionalMaxPool2d": (2, 3),
    "FractionalMaxPool3d": (2, None, 0.5),
    "GRU": (2, 3, 2, False, True, 0.5, True),
    "GRUCell": (2, 3, False),
    "GroupNorm": (2, 4),
    "InstanceNorm1d": (3,),
    "InstanceNorm2d": (3, 1e-5, 0.1, True, True),
    "InstanceNorm3d": (3,),
    "LPPool1d": (2, 3),
    "LPPool2d": (2, 3),
    "LPPool3d": (2, 3),
    "LSTM": (2, 3, 2, True, False, 0.0, False, 2),
    "LSTMCell": (2, 3),
    "LayerNorm": ((4, 2), 1e-3, True, False),
    "LeakyReLU": (0.3, True),
    "Linear": (2, 3, False),
    "LocalResponseNorm": (2,),
    "MaxPool1d": (2,),
    "MaxPool2d": (2, 1, 1, 1, True, True),
    "MaxPool3d": (2,),
    "MaxUnpool1d": (2,),
    "MaxUnpool2d": (2,),
    "MaxUnpool3d": (2,),
    "ModuleDict": ({"b": nn.ReLU(), "a": nn.Linear(1, 2)},),
    "ModuleList": ([nn.ReLU(), nn.Linear(1, 2)],),
    "MultiheadAttention": (4, 2, 0.1, False, True, True, 3, 5, True),
    "PixelShuffle": (2,),
    "PixelUnshuffle": (2,),
    "RMSNorm": (4,),
    "RNN": (2, 3, 1, "relu"),
    "RNNCell": (2, 3, True, "relu"),
    "ReflectionPad1d": (2,),
    "ReflectionPad2d": ((1, 2, 3, 4),),
    "ReflectionPad3d": (2,),
    "ReplicationPad1d": (2,),
    "ReplicationPad2d": (2,),
    "ReplicationPad3d": (2,),
    "Sequential": (nn.ReLU(), nn.Sequential(nn.Linear(2, 3)), nn.Sequential()),
    "SyncBatchNorm": (3,),
    "Threshold": (0.1, 20),
    "TransformerDecoderLayer": (4, 2, 8, 0.2, F.gelu, 1e-3, True, True, False),
    "TransformerEncoderLayer": (4, 2, 8, 0.2, "gelu", 1e-3, True, True, False),
    "Unflatten": (1, (2, 3)),
    "Unfold": (2,),
    "ZeroPad1d": (2,),
    "ZeroPad2d": (2,),
    "ZeroPad3d": (2,),
}
# Not remade: layers without sizes, and those that copy or hold other modules' weights in ways of their own.
NOT_REMADE = {"ParameterDict", "ParameterList", "Transformer", "TransformerDecoder", "TransformerEncoder"}
REMADE = [
    name
    for name in (key.removeprefix("torch.nn.") for key in LAYERS)
    if not name.startswith("Lazy") and name not in NOT_REMADE
]


@pytest.mark.parametrize("name", REMADE)
def test_each_layer_of_torch_is_made_again(name: str) -> None:
    """A layer, with arguments that are not the default where it takes some, comes back alike."""
    module = getattr(nn, name)(*REQUIRED.get(name, ()))
    assert_alike(again(module), module)


MORE: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(2, 3, dtype=torch.float64),
    lambda: nn.Conv1d(1, 1, 1).half(),
    lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]), label_smoothing=0.1, ignore_index=3),
    lambda: nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0])),
    lambda: nn.PReLU(3, 0.1),
    lambda: nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True),
    lambda: nn.Upsample(size=(4, 5)),
    lambda: nn.GELU(approximate="tanh"),
    lambda: nn.LayerNorm(3, elementwise_affine=False),
    lambda: nn.RNN(2, 3, dtype=torch.float64),
    lambda: nn.Sequential(OrderedDict(second=nn.ReLU(), first=nn.Linear(1, 2))),
    lambda: nn.Sequential(OrderedDict([("1", nn.ReLU()), ("0", nn.Linear(1, 2))])),
]


@pytest.mark.parametrize("make", MORE)
def test_arguments_of_each_kind_are_found(make: Callable[[], nn.Module]) -> None:
    """Dtypes, tensors, names of children and texts among the arguments come back."""
    module = make()
    assert_alike(again(module), module)


def test_the_tensors_of_a_loss_keep_their_values() -> None:
    """The class weights of a loss are an argument, not a weight."""
    assert again(nn.NLLLoss(torch.tensor([0.25, 4.0]))).weight.tolist() == [0.25, 4.0]


def test_a_layer_in_two_places_stays_one() -> None:
    """One activation twice in a container, or in two arguments, is one module afterwards."""
    activation = nn.ReLU()
    stack = nn.Sequential(activation, nn.Linear(2, 2), activation)
    first, second, third = Recipe.of(CallRecord(Net, (stack, activation, [stack]))).model().seen[0]
    assert first[0] is first[2] is second
    assert third[0] is first


def test_the_call_is_a_record_like_any_other() -> None:
    """A layer given as an object reads back as the record of its call, with what differs from the default only."""
    record = Recipe.of(CallRecord(Net, (nn.Linear(2, 3), nn.Dropout(0.5), nn.Dropout(0.1)))).record()
    assert_same(record.args[0], CallRecord(nn.Linear, (), {"in_features": 2, "out_features": 3}))
    assert record.args[1].kwargs == {}
    assert record.args[2].kwargs == {"p": 0.1}


def test_finding_the_call_leaves_no_trace() -> None:
    """No random number is drawn, nothing is allocated for the comparison, and the layer stays as it is."""
    state = torch.get_rng_state()
    layer = nn.TransformerEncoderLayer(4, 2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    torch.set_rng_state(state)
    call_of(layer)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    huge = torch.nn.Linear(10**6, 10**6, device="meta")
    assert call_of(huge).kwargs["in_features"] == 10**6


# Refusals -----------------------------------------------------------------------------------------------------------


class Custom(nn.Module):
    """A plain module of a user's."""


class Derived(nn.Linear):
    """Has an ``__init__`` that nobody knows."""


def _with_hook() -> nn.Module:
    layer = nn.Linear(1, 1)
    layer.register_forward_hook(lambda module, args, output: None)
    return layer


def _with_tensor_hook() -> Any:
    layer: Any = nn.Linear(1, 1)
    layer.weight.register_hook(lambda grad: grad)
    return layer


def _with_attribute() -> nn.Module:
    layer = nn.Linear(1, 1)
    layer.note = "mine"  # type: ignore[assignment]
    return layer


def _with_other_forward() -> Any:
    layer: Any = nn.ReLU()
    layer.forward = torch.tanh
    return layer


def _with_child() -> nn.Module:
    layer = nn.ReLU()
    layer.add_module("inner", nn.ReLU())
    return layer


def _with_other_weight() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(3, 3))
    return layer


def _with_buffer() -> nn.Module:
    layer = nn.ReLU()
    layer.register_buffer("mask", torch.ones(1))
    return layer


def _mixed() -> nn.Module:
    layer = nn.MultiheadAttention(4, 2)
    layer.out_proj.half()
    return layer


REFUSED: list[tuple[Callable[[], nn.Module], str, str]] = [
    (Custom, "no-data-form", r"Custom is a plain torch module.*replayml\.Layer\(cls, \.\.\.\).*codecs="),
    (lambda: Derived(1, 1), "no-data-form", "Derived is a plain torch module"),
    (lambda: nn.DataParallel(nn.ReLU()), "no-data-form", "DataParallel is a plain torch module"),
    (lambda: parametrizations.weight_norm(nn.Linear(1, 1)), "no-data-form", "is a plain torch module"),
    (lambda: nn.LazyLinear(3), "bare-module", r"not known before the first input.*replayml\.Layer\(nn\.LazyLinear"),
    (_with_hook, "bare-module", r"it has hooks \(_forward_hooks\)"),
    (_with_tensor_hook, "bare-module", "'weight' has hooks"),
    (_with_attribute, "bare-module", "its 'note' is not that of a new one"),
    (_with_other_forward, "bare-module", "its 'forward' is not that of a new one"),
    (_with_child, "bare-module", "its children are inner"),
    (_with_other_weight, "bare-module", r"'weight' is torch\.float32 of shape \(3, 3\)"),
    (_with_buffer, "bare-module", "mask"),
    (_mixed, "bare-module", "torch.float16"),
    (lambda: nn.Dropout().eval(), "bare-module", "it is in evaluation mode"),
    (lambda: nn.Linear(1, 1).requires_grad_(False), "bare-module", "requires_grad=False"),
    (lambda: nn.ParameterList([torch.ones(1)]), "bare-module", "ParameterList"),
    (lambda: nn.Sequential(nn.ReLU(), _with_hook()), "bare-module", "it has hooks"),
]


@pytest.mark.parametrize(("make", "code", "message"), REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_a_module_that_cannot_be_made_again_is_refused(make: Callable[[], nn.Module], code: str, message: str) -> None:
    """What differs from a new layer in anything but its weights is refused, with the difference and the way out."""
    with pytest.raises(RecipeError, match=rf"(?s)^\[{code}\] at model\.args\[0\].*{message}"):
        Recipe.of(CallRecord(Net, (make(),)))


def test_a_codec_makes_a_plain_module_writable() -> None:
    """A codec gives a data form to a module that has none."""
    codec = Codec(Derived, lambda layer: layer.out_features, lambda size: Derived(1, size))
    assert Recipe.of(CallRecord(Net, (Derived(1, 3),)), codecs=[codec]).record([codec]).args[0].out_features == 3


def test_weights_that_two_layers_share_are_refused() -> None:
    """A tie between two layers is no part of their calls, so it is refused; within one module it is the module's."""
    encoder, decoder = nn.Linear(2, 2), nn.Linear(2, 2)
    decoder.weight = encoder.weight
    for value in (nn.Sequential(encoder, decoder), [encoder, decoder], [encoder, encoder.weight]):
        with pytest.raises(RecipeError, match=r"shared-memory.*is also that of model\.args\[0\]"):
            Recipe.of(CallRecord(Net, (value,)))
    tied = nn.MultiheadAttention(4, 2, kdim=4, vdim=4)
    tied.out_proj.bias = tied.in_proj_bias
    with pytest.raises(RecipeError, match="bare-module"):
        Recipe.of(CallRecord(Net, (tied,)))


def test_the_life_of_a_built_model_is_not_its_recipe() -> None:
    """With ``built=True``, evaluation mode and frozen weights, which training leaves behind, are not compared."""
    layer = nn.Sequential(nn.Linear(1, 1).requires_grad_(False), nn.Dropout()).eval()
    fresh = Recipe.of(CallRecord(Net, (nn.Sequential(nn.Linear(1, 1), nn.Dropout()),)))
    assert Recipe.of(CallRecord(Net, (layer,)), built=True) == fresh
    with pytest.raises(RecipeError, match="evaluation mode"):
        Recipe.of(CallRecord(Net, (layer,)))
    with pytest.raises(RecipeError, match="hooks"):
        Recipe.of(CallRecord(Net, (_with_hook(),)), built=True)


def test_a_live_replayml_module_without_its_call_is_refused() -> None:
    """A replayml module inside a torch container is not seen by the recorder, so its call is not known."""
    with pytest.raises(RecipeError, match=r"the call of this Layer is not known here.*module\.new\(\)"):
        Recipe.of(CallRecord(Net, (nn.Sequential(replayml.Layer(nn.ReLU)),)))


# Metrics ------------------------------------------------------------------------------------------------------------

METRIC_ARGUMENTS = {"num_classes": 4, "num_labels": 4, "beta": 2.0, "min_precision": 0.5, "p": 3.0, "min_recall": 0.5}


NOT_ALONE = ("KendallRankCorrCoef", "RunningMean", "RunningSum")  # these change or wrap their arguments


def _table_of_metrics() -> list[Any]:
    """Return the classes of the table whose instances are their own."""
    classes: list[Any] = list(torchmetrics_classes().values())
    return [cls for cls in classes if "__new__" not in vars(cls) and cls.__name__ not in NOT_ALONE]


@pytest.mark.filterwarnings("ignore:Metric `.*` will save all targets:UserWarning")
@pytest.mark.parametrize("cls", _table_of_metrics(), ids=lambda cls: cls.__name__)
def test_a_metric_is_made_again(cls: Any) -> None:
    """A metric of torchmetrics, given as it is, comes back with its arguments and without what it has seen."""
    parameters = inspect.signature(cls.__init__).parameters
    metric = cls(**{name: METRIC_ARGUMENTS[name] for name in parameters if name in METRIC_ARGUMENTS})
    remade = again(metric)
    assert type(remade) is type(metric)
    assert remade._defaults.keys() == metric._defaults.keys()
    assert call_of(remade).kwargs.keys() == call_of(metric).kwargs.keys()


@pytest.mark.parametrize(
    "metric",
    [
        BinaryAUROC(thresholds=torch.tensor([0.1, 0.5, 0.9]), max_fpr=0.4, sync_on_compute=False),
        MulticlassF1Score(3, average=None, ignore_index=1, top_k=2, compute_with_cache=False),
        torchmetrics.Accuracy(task="multilabel", num_labels=3),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_every_argument_of_a_metric_comes_back(metric: Any) -> None:
    """Arguments beside the usual ones, those of every metric included, are those of the one that was given."""
    remade = again(metric)
    given = call_of(metric).kwargs
    assert given
    for name, value in given.items():
        found = getattr(remade, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


@pytest.mark.parametrize("name", NOT_ALONE)
def test_a_metric_that_wraps_its_arguments_is_refused(name: str) -> None:
    """A metric whose call cannot be read off it names External."""
    cls: Any = {key.rsplit(".", 1)[1]: cls for key, cls in torchmetrics_classes().items()}[name]
    with pytest.raises(RecipeError, match=rf"Use replayml.External\({name}, ...\)"):
        again(cls())


def test_what_a_metric_has_seen_is_its_state() -> None:
    """A metric in use is written like a new one, and computes the same on the same data."""
    metric = MulticlassF1Score(3)
    metric.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    remade = again(metric)
    assert remade.update_count == 0
    remade.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    assert remade.compute() == metric.compute()


def _with_an_attribute(metric: Any) -> None:
    metric.beta = 7.0


def _with_a_hook(metric: Any) -> None:
    metric.register_forward_hook(print)


def _with_another_start(metric: Any) -> None:
    metric._defaults["tp"] = torch.ones(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_an_attribute, "its 'beta' is not that of a new one"),
        (_with_a_hook, r"it has hooks \(_forward_hooks\)"),
        (_with_another_start, "its state 'tp' does not start like that of a new one"),
    ],
)
def test_a_metric_that_differs_from_a_new_one_is_refused(change: Any, message: str) -> None:
    """A metric that was changed by hand is refused with the difference and External as the way out."""
    metric = MulticlassF1Score(3)
    change(metric)
    with pytest.raises(RecipeError, match=message + r".* Use replayml.External\(MulticlassF1Score, ...\)"):
        again(metric)


def test_a_metric_of_ones_own_is_refused() -> None:
    """The call of a metric that torchmetrics does not have is not known; External and Layer are the ways out."""

    class Own(torchmetrics.MeanMetric):
        pass

    with pytest.raises(RecipeError, match=r"replayml.Layer\(cls, ...\) or replayml.External\(cls, ...\)"):
        again(Own())
