"""Surgery: trained weights for a changed model, modules put in the place of others, seeds by place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.blocks.components import ConvolutionalNeuralNetwork, MultiLayerPerceptron
from replayml.core.errors import (
    ArgumentError,
    BuildError,
    CheckpointError,
    ConfigurationError,
    NotBuiltError,
    SelectionError,
)
from replayml.layers.containers import Sequential
from replayml.layers.layer import Layer
from replayml.module.matching import load_matching
from replayml.module.module import Module
from replayml.module.selection import select
from replayml.testing import assert_rebuilds


class Net(Module):
    """An encoder, an activation that stands twice, and a head."""

    def __init__(self, width: int = 8, classes: int = 2) -> None:
        self.encoder = Layer(nn.Linear, 4, width)
        self.activation = Layer(nn.PReLU)
        self.norm = Layer(nn.BatchNorm1d, width)
        self.again = self.activation
        self.head = Layer(nn.Linear, width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, classes)``."""
        logits: torch.Tensor = self.head(self.again(self.norm(self.activation(self.encoder(x)))))
        return logits


class Tied(Module):
    """Two layers; the second has the weight of the first where they are tied."""

    def __init__(self, tied: bool = True) -> None:
        self.encoder = Layer(nn.Linear, 4, 4)
        self.decoder = Layer(nn.Linear, 4, 4)
        if tied:
            self.decoder.register_after_build_hook(self.tie)

    def tie(self, decoder: Any) -> None:
        """Give the decoder the weight of the encoder."""
        decoder.weight = self.encoder.weight


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the tensors of a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    """Tell whether two dicts of tensors are equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Weights that match -----------------------------------------------------------------------------------------------


def test_everything_is_loaded_into_an_equal_model() -> None:
    """All weights and buffers of an equal model are taken, and the report says so."""
    trained, model = Net().create(seed=1), Net().create(seed=2)
    trained.norm.running_mean += 3
    report = model.load_matching(trained)
    assert report.is_complete
    assert same(model.state_dict(), trained.state_dict())
    assert set(report.loaded) == set(model.state_dict())
    assert str(report).startswith(f"{len(report.loaded)} of {len(report.loaded)} weights loaded")


def test_the_parameters_stay_the_same_objects() -> None:
    """An optimizer that was made before still trains the model: the values are copied into its parameters."""
    model = Net().create()
    before = [id(parameter) for parameter in model.parameters()]
    model.encoder.weight.requires_grad_(False)
    model.load_matching(Net().create())
    assert [id(parameter) for parameter in model.parameters()] == before
    assert not model.encoder.weight.requires_grad


def test_surgery_after_training_keeps_what_fits_and_reports_the_rest() -> None:
    """A model with another head keeps the trained encoder; what is new, gone or of another shape is told by path."""
    trained = Net(classes=2).create(seed=1)
    new: Any = trained.new().configure(classes=5)
    new.extra = Layer(nn.Linear, 5, 5)
    model = new.build(seed=2)
    fresh = values(model)
    report = model.load_matching({**trained.state_dict(), "gone.weight": torch.zeros(1)})
    assert torch.equal(model.encoder.weight, trained.encoder.weight)
    assert torch.equal(model.head.weight, fresh["head.weight"])
    assert report.paths["of another shape"] == {"head": ("weight", "bias")}
    assert report.paths["missing"] == {"extra": ("weight", "bias")}
    assert report.paths["unexpected"] == {"gone": ("weight",)}
    assert not report.is_complete
    assert "head.weight: (2, 8) in the trained model, (5, 8) in this one" in str(report)


def test_a_renaming_takes_paths_as_they_are_printed() -> None:
    """``blocks[0]`` is ``blocks.0``, in the trained model and in this one."""
    trained, model = MultiLayerPerceptron(4, [8], 4).create(seed=1), MultiLayerPerceptron(2, [4, 8], 4).create(seed=2)
    report = model.load_matching(trained, rename={"blocks[0]": "blocks[1]", "blocks.1": "blocks[2]"})
    assert report.paths["loaded"] == {"blocks.1.layer": ("weight", "bias"), "blocks.2.layer": ("weight", "bias")}


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_what_agrees_is_taken_and_nothing_else(first: list[int], second: list[int]) -> None:
    """For any two networks: a tensor is the trained one exactly where name and shape agree, and every name is told."""
    trained = MultiLayerPerceptron(2, first, 2).create(seed=1)
    model = MultiLayerPerceptron(2, second, 2).create(seed=2)
    fresh, old = values(model), trained.state_dict()
    report = model.load_matching(trained, at_least=0)
    for name, tensor in model.state_dict().items():
        fits = name in old and old[name].shape == tensor.shape
        assert torch.equal(tensor, old[name] if fits else fresh[name])
        assert (name in report.loaded) == fits
    told = {*report.loaded, *report.missing, *(mismatch.name for mismatch in report.mismatched)}
    assert told == fresh.keys()
    assert {*report.unexpected} == old.keys() - fresh.keys()


def test_the_names_of_a_compiled_model_are_understood_on_both_sides() -> None:
    """What ``torch.compile`` puts into the names does not keep weights from matching."""
    trained, model = Net().create(seed=1), Net().create(seed=2)
    model.encoder = torch.compile(model.encoder, backend="eager")
    compiled = torch.compile(trained, backend="eager")
    report = model.load_matching(compiled)
    assert report.is_complete
    assert "encoder.weight" in report.loaded
    assert torch.equal(model.encoder.weight, trained.encoder.weight)


def test_a_lower_precision_is_kept_and_other_kinds_of_numbers_do_not_match() -> None:
    """The model keeps its own precision; a whole-number tensor is no replacement for a real one."""
    trained, model = Net().create(), Net().create(dtype=torch.float16)
    assert model.load_matching(trained).is_complete
    assert model.encoder.weight.dtype is torch.float16
    state = {**trained.state_dict(), "head.bias": torch.zeros(2, dtype=torch.int64)}
    assert model.load_matching(state).paths["of another shape"] == {"head": ("bias",)}


# Renaming ---------------------------------------------------------------------------------------------------------


def test_rename_moves_paths() -> None:
    """The longest path that fits is moved, whole path elements only."""
    trained, model = Net().create(seed=1), Net().create(seed=2)
    moved = {f"model.net.{name}".replace("head", "output"): value for name, value in trained.state_dict().items()}
    report = model.load_matching(moved, rename={"model.net": "", "model.net.output": "head"})
    assert report.is_complete
    assert same(model.state_dict(), trained.state_dict())


def test_rename_puts_a_backbone_below_a_path() -> None:
    """``""`` stands for the whole trained model."""
    trained = MultiLayerPerceptron(4, [8], 2).create(seed=1)
    model = Sequential(MultiLayerPerceptron(4, [8], 2), MultiLayerPerceptron(2, [], 3)).create(seed=2)
    report = model.load_matching(trained, rename={"": "0"})
    assert torch.equal(model[0].blocks[0].layer.weight, trained.blocks[0].layer.weight)
    assert all(name.startswith("1.") for name in report.missing)


def test_a_renaming_that_fits_nothing_is_refused() -> None:
    """A path that the trained model does not have is an error that names the nearest one."""
    model = Net().create()
    with pytest.raises(CheckpointError, match=r"has nothing at 'encodr' to rename\. Did you mean 'encoder'\?"):
        model.load_matching(model.state_dict(), rename={"encodr": "x"})


def test_two_names_that_become_one_are_refused() -> None:
    """A renaming that makes one name of two raises and names both."""
    model = Net().create()
    with pytest.raises(CheckpointError, match=r"'encoder.weight' and 'head.weight' .* are both 'head.weight'"):
        model.load_matching(model.state_dict(), rename={"encoder": "head"})


# Ties -------------------------------------------------------------------------------------------------------------


def test_a_tied_weight_is_taken_under_all_its_names() -> None:
    """The trained value under one of the names is enough, and the tie holds."""
    trained, model = Tied().create(seed=1), Tied().create(seed=2)
    assert model.decoder.weight is model.encoder.weight
    state = {name: value for name, value in trained.state_dict().items() if name != "encoder.weight"}
    report = model.load_matching(state)
    assert report.is_complete
    assert model.decoder.weight is model.encoder.weight
    assert torch.equal(model.encoder.weight, trained.encoder.weight)


def test_two_different_values_for_a_tied_weight_are_refused() -> None:
    """The model is as it was, and the message names both and tells how to choose."""
    trained, model = Tied(tied=False).create(seed=1), Tied().create(seed=2)
    before = values(model)
    with pytest.raises(CheckpointError, match=r"'encoder.weight' and 'decoder.weight' are one tensor of this Tied"):
        model.load_matching(trained)
    assert same(model.state_dict(), before)
    report = model.load_matching({n: v for n, v in trained.state_dict().items() if n != "decoder.weight"})
    assert report.is_complete
    assert torch.equal(model.decoder.weight, trained.encoder.weight)


def test_weights_untied_by_surgery_both_take_the_trained_value() -> None:
    """A model whose tie was cut gets the shared value in both places, as two tensors."""
    trained, model = Tied().create(seed=1), Tied(tied=False).create(seed=2)
    assert model.load_matching(trained).is_complete
    assert model.decoder.weight is not model.encoder.weight
    assert torch.equal(model.decoder.weight, trained.encoder.weight)


# Refusals ---------------------------------------------------------------------------------------------------------


def test_weights_of_another_model_are_refused() -> None:
    """Where next to nothing matches nothing is taken, unless the caller allows it."""
    trained, model = MultiLayerPerceptron(4, [8], 2).create(), ConvolutionalNeuralNetwork(1, [2], 2).create()
    model[..., "layer"].first.modules()[0].weight.data.zero_()
    before = values(model)
    with pytest.raises(CheckpointError, match=r"0 of the \d+ weights of this Conv\w+ match .* another model"):
        model.load_matching(trained, rename={"blocks": "other"})
    assert same(model.state_dict(), before)
    assert not model.load_matching(trained, rename={"blocks": "other"}, at_least=0).loaded


@pytest.mark.parametrize("at_least", [0.5, 1.0])
def test_the_caller_may_ask_for_more(at_least: float) -> None:
    """``at_least`` is the share of the smaller model that must match."""
    trained, model = Net(classes=2).create(), Net(classes=3).create()
    if at_least == 1:
        with pytest.raises(CheckpointError, match="match"):
            model.load_matching(trained, at_least=at_least)
    else:
        assert model.load_matching(trained, at_least=at_least).loaded


def test_a_model_without_weights_takes_and_gives_none() -> None:
    """Two models without any weight match; one without is no model to take weights from."""
    assert load_matching(nn.ReLU(), nn.ReLU()).is_complete
    with pytest.raises(CheckpointError, match=r"0 of the 2 weights"):
        load_matching(nn.Linear(1, 1), nn.ReLU())


def test_unbuilt_models_are_refused() -> None:
    """Neither side may be unbuilt; the message tells what to do."""
    with pytest.raises(NotBuiltError, match=r"the model, Net, has no weights yet\. Build it first"):
        Net().load_matching(Net().create())
    with pytest.raises(NotBuiltError, match=r"the trained model, Net, has no weights yet"):
        Net().create().load_matching(Net())
    with pytest.raises(NotBuiltError, match=r"of this Net is on the meta device .* model.build\(device='cpu'\)"):
        Net().create(device="meta").load_matching(Net().create())


def test_what_holds_no_weights_is_refused() -> None:
    """A whole checkpoint or a path is refused with the right call."""
    model = Net().create()
    with pytest.raises(CheckpointError, match=r"a whole checkpoint.*checkpoint\['state_dict'\]"):
        model.load_matching({"state_dict": model.state_dict(), "epoch": 1})
    with pytest.raises(CheckpointError, match=r"not str\. Load a file first"):
        model.load_matching("model.ckpt")


# Replacing in a built tree ----------------------------------------------------------------------------------------


def test_replace_puts_a_built_module_into_a_built_tree() -> None:
    """The module stands there, all else keeps its weights, and nothing is recorded."""
    model = MultiLayerPerceptron(4, [8, 8], 2).create(seed=1)
    before, entries = values(model), len(model.tape)
    new = nn.Tanh()
    model[..., "activation"].isinstance(nn.ReLU).replace(new)
    assert model.blocks[0].activation is model.blocks[1].activation is new
    assert same(model.state_dict(), before)
    assert len(model.tape) == entries
    assert isinstance(model.new().build().blocks[0].activation, nn.ReLU)


def test_replace_builds_an_unbuilt_module_from_an_example() -> None:
    """Each place gets a module of its own, with the sizes that arrive there; the given one stays unbuilt."""
    model = MultiLayerPerceptron(4, [8, 6], 2).create(dtype=torch.float64).eval()
    new = Layer(nn.BatchNorm1d)
    model[..., "activation"].isinstance(nn.ReLU).replace(new, torch.zeros(3, 4, dtype=torch.float64))
    norms = [model.blocks[0].activation, model.blocks[1].activation]
    assert [norm.num_features for norm in norms] == [8, 6]
    assert {norm.weight.dtype for norm in norms} == {torch.float64}
    assert not any(norm.training for norm in norms)
    assert not new._has_built
    assert model(torch.zeros(3, 4, dtype=torch.float64)).shape == (3, 2)


def test_the_example_leaves_no_trace() -> None:
    """Modes, hooks, running statistics and the random state are as before the example."""
    model = Sequential(Layer(nn.BatchNorm1d, 4), Layer(nn.Dropout), Layer(nn.Linear, 4, 2)).create()
    before, state = values(model), torch.random.get_rng_state()
    select(model, "1").replace(Layer(nn.LayerNorm), torch.ones(8, 4))
    assert same({name: value for name, value in values(model).items() if name in before}, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_function_chooses_for_each_module_once() -> None:
    """A module that stands in two places is given to the function once, and replaced by one module."""
    model = Net().create()
    seen: list[Any] = []

    def choose(old: Any) -> nn.Module:
        seen.append(old)
        return nn.Tanh()

    model["activation|again"].replace(choose)
    assert len(seen) == 1
    assert model.activation is model.again
    assert isinstance(model.again, nn.Tanh)


def test_a_place_that_the_example_does_not_reach_is_named() -> None:
    """Where no input arrives the build cannot find sizes: the path is told and nothing is replaced."""

    class Idle(Module):
        def __init__(self) -> None:
            self.used = Layer(nn.Linear, 2, 2)
            self.idle = Layer(nn.Linear, 2, 2)

        def forward(self, x: torch.Tensor) -> Any:
            return self.used(x)

    model = Idle().create()
    old = model.used, model.idle
    with pytest.raises(BuildError, match=r"no example input arrives at 'idle'"):
        model["used|idle"].replace(Layer(nn.Linear, None, 2), torch.zeros(1, 2))
    assert (model.used, model.idle) == old


def test_a_replacement_that_cannot_be_built_names_the_place() -> None:
    """The error of the build keeps its type and gains the place; nothing is replaced."""
    model = MultiLayerPerceptron(4, [8], 2).create()
    old = model.blocks[0].layer
    with pytest.raises(BuildError) as caught:
        model["blocks", 0, "layer"].replace(Layer(nn.Linear, None, 2))
    assert any(
        "for the place 'blocks.0.layer'; where sizes are open, give example" in n for n in caught.value.__notes__
    )
    assert model.blocks[0].layer is old


@pytest.mark.parametrize("new", [nn.ReLU, lambda old: nn.ReLU, 3])
def test_what_is_no_module_is_refused(new: Any) -> None:
    """A class, a function that returns none, and a number are refused with the place."""
    model = MultiLayerPerceptron(4, [8], 2).create()
    with pytest.raises(ArgumentError, match=r"the place 'blocks.0.activation' takes a module, not .*Give a module"):
        model["blocks", 0, "activation"].replace(new)


def test_selections_that_cannot_be_replaced_are_refused() -> None:
    """No match, the root itself, and places inside of one another raise, and nothing is replaced."""
    model = MultiLayerPerceptron(4, [8], 2).create()
    before = list(model.modules())
    with pytest.raises(SelectionError, match="matches nothing in MultiLayerPerceptron"):
        model[..., "activaton"].replace(nn.ReLU())
    with pytest.raises(SelectionError, match="itself stands in no place of its own"):
        model[""].replace(nn.ReLU())
    with pytest.raises(SelectionError, match=r"'blocks.0' is inside of 'blocks', which is selected as well"):
        model[...].replace(nn.ReLU())
    assert list(model.modules()) == before


def test_replace_by_name_builds_an_unbuilt_module() -> None:
    """``replace`` of a built module takes the name of a child; what it puts there has weights."""
    model = Net().create().double()
    model.replace("head", Layer(nn.Linear, 8, 3))
    assert model(torch.zeros(5, 4, dtype=torch.float64)).shape == (5, 3)
    model.replace("head", nn.Identity())
    assert model(torch.zeros(5, 4, dtype=torch.float64)).shape == (5, 8)


# Replacing in an unbuilt tree -------------------------------------------------------------------------------------


def test_replace_in_an_unbuilt_tree_is_recorded() -> None:
    """A copy, and the recipe, have the replacement; each place has a layer of its own."""
    model = MultiLayerPerceptron(4, [8, 8], 2)
    model[..., "activation"].filter(lambda path, _: path != "blocks.2.activation").replace(Layer(nn.PReLU))
    for other in (model, model.new(), model.recipe().model()):
        built = other.create()
        assert isinstance(built.blocks[0].activation, nn.PReLU)
        assert built.blocks[0].activation is not built.blocks[1].activation


@given(
    st.sets(st.sampled_from(["0.layer", "0.activation", "1.layer", "1.activation", "2"]), min_size=1),
    st.booleans(),
)
def test_any_replacement_in_an_unbuilt_tree_is_made_again(names: set[str], by_function: bool) -> None:
    """Whatever is selected, and however it is given, the replaced model is rebuilt as it is in every way."""
    model = MultiLayerPerceptron(4, [4, 4], 4)
    new = (lambda old: Layer(nn.Linear, 4, 4)) if by_function else Layer(nn.Linear, 4, 4)
    model[...].filter(lambda path, _: path.removeprefix("blocks.") in names).replace(new)
    assert len(model.tape) == len(names)
    assert_rebuilds(model, torch.ones(1, 4))


def test_what_stays_is_not_recorded() -> None:
    """A function that returns the module that stands there makes no entry."""
    model = MultiLayerPerceptron(4, [4], 4)
    model[..., "activation"].replace(lambda old: old)
    assert not model.tape


def test_a_failing_replace_of_an_unbuilt_tree_changes_nothing() -> None:
    """When one of the places cannot be replaced, none is."""

    class Holder(Module):
        def __init__(self) -> None:
            self.activation = Layer(nn.ReLU)
            self.plain = nn.Sequential()
            self.plain.activation = nn.ReLU()

    model = Holder()
    old = model.activation
    with pytest.raises(
        ConfigurationError, match=r"'plain.activation' is a child of a Sequential, which records nothing"
    ):
        model[..., "activation"].replace(lambda old: nn.Tanh())
    assert model.activation is old
    assert not model.tape
    with pytest.raises(ArgumentError, match=r"Holder is not built; example inputs"):
        model["activation"].replace(Layer(nn.Tanh), torch.zeros(1))


def test_replace_with_a_name_reaches_the_child_of_each() -> None:
    """``selection.replace("activation", new)`` calls ``replace`` of each selected module, as it does on one."""
    model = MultiLayerPerceptron(4, [8], 2)
    model["blocks", 0].replace("activation", Layer(nn.Tanh))
    assert isinstance(model.create().blocks[0].activation, nn.Tanh)


class Residual(Module):
    """Adds what a new layer makes of another one's output."""

    def __init__(self, inner: nn.Module) -> None:
        self.inner = inner
        self.added = Layer(nn.Linear, None, 8)

    def forward(self, x: torch.Tensor) -> Any:
        """Return ``(batch, 8)``."""
        y = self.inner(x)
        return y + self.added(y)


def test_a_module_around_the_one_that_stands_there_keeps_it() -> None:
    """In a built tree the very module is wrapped: its parameters, types, modes and ties stay; the new layer fits it."""
    model = Net().create(seed=1).double()
    norm = model.norm.eval()
    norm.weight.requires_grad_(False)
    model.extra = norm
    before = [(parameter, parameter.dtype, parameter.requires_grad) for parameter in model.parameters()]
    model["norm"].replace(lambda old: Residual(old), torch.zeros(2, 4, dtype=torch.double))
    wrapped: Any = model.norm
    assert wrapped.inner is model.extra is norm
    assert (wrapped.added.in_features, wrapped.added.weight.dtype) == (8, torch.double)
    own = {id(parameter) for parameter in wrapped.added.parameters()}
    after = [parameter for parameter in model.parameters() if id(parameter) not in own]
    assert all(one is other for (one, *_), other in zip(before, after, strict=True))
    assert [(parameter.dtype, parameter.requires_grad) for parameter in after] == [tuple(rest) for _, *rest in before]
    assert [norm.training, wrapped.training, wrapped.added.training] == [False, False, False]
    assert model(torch.zeros(2, 4, dtype=torch.double)).shape == (2, 2)


def test_a_layer_is_built_around_what_it_was_given() -> None:
    """A class that is called with the old module gets that one; in ``patched`` gradients reach its parameters."""
    model = Net().create(seed=1)
    head = model.head
    with model.patched("head", lambda old: Layer(nn.Sequential, old, Layer(nn.Tanh))):
        assert model.head[0] is head
        model(torch.ones(2, 4)).sum().backward()
    assert head.weight.grad is not None
    assert model.head is head


def test_a_module_that_cannot_be_built_around_another_leaves_all_as_it_was() -> None:
    """What is raised while the new layer is made leaves the tree, the old module and its mode alone."""
    model = Net().create(seed=1)
    children, modes = dict(model._modules), [module.training for module in model.modules()]
    with pytest.raises(BuildError, match=r"lacks in_features"):
        model["norm|head"].replace(lambda old: Residual(old))
    assert model._modules == children
    assert [module.training for module in model.modules()] == modes


# Patching ---------------------------------------------------------------------------------------------------------


def test_patched_changes_the_output_while_the_block_runs() -> None:
    """Inside the block the other module is used; afterwards the very same modules are in the same order."""
    model = MultiLayerPerceptron(4, [8], 2).create(seed=1)
    x = torch.randn(3, 4)
    before, order = model(x), [name for name, _ in model.named_modules()]
    modules = list(model.modules())
    with model.patched("blocks.1", nn.Identity()) as features:
        assert features is model
        assert features(x).shape == (3, 8)
    assert torch.equal(model(x), before)
    assert list(model.modules()) == modules
    assert [name for name, _ in model.named_modules()] == order


def test_patched_restores_after_an_exception_and_after_other_changes() -> None:
    """Whatever the block does to the place, and however it ends, the place has its module and position again."""
    model = Net().create()
    children = dict(model._modules)

    def spoil() -> None:
        with model.patched(("norm",), nn.Identity()):
            del model.norm
            model.encoder = nn.Linear(4, 9)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        spoil()
    assert list(model._modules) == list(children)
    assert model.norm is children["norm"]
    assert model.encoder.out_features == 9


@pytest.mark.parametrize("name", ["encoder", "activation", "norm", "head"])
def test_patched_restores_the_order_of_children_that_were_moved(name: str) -> None:
    """A child that the block took out and put in again stands where it stood, patched or not; a new one stands last."""
    model = Net().create()
    children = dict(model._modules)
    with model.patched("activation|norm", nn.Identity()):
        moved = model._modules.pop(name)
        model.extra = nn.ReLU()
        model._modules[name] = moved
    assert list(model._modules.items()) == [*children.items(), ("extra", model.extra)]


def test_patches_may_stand_inside_of_one_another() -> None:
    """The inner one ends first; each restores what it found."""
    model = Net().create()
    norm = model.norm
    outer, inner = nn.Identity(), nn.Identity()
    with model.patched("norm", outer):
        with model.patched("norm", inner):
            assert model.norm is inner
        assert model.norm is outer
    assert model.norm is norm


def test_patched_takes_selections_and_shared_modules() -> None:
    """Every selected place of a shared module is patched; a place that is not selected keeps it."""
    model = Net().create()
    shared = model.activation
    with model.patched(model["activation"], nn.Identity()):
        assert model.again is shared
        assert isinstance(model.activation, nn.Identity)
    with model[..., "activation|again"].patched(nn.Identity()):
        assert model.activation is model.again is not shared
    assert model.activation is model.again is shared


def test_patched_refuses_unbuilt_models_and_selections_of_others() -> None:
    """A recorded model is not patched, nor one that the selection is not of."""
    with pytest.raises(NotBuiltError, match=r"Net is not built, and a change to it is recorded"):
        Net().patched("norm", nn.Identity()).__enter__()
    model, other = Net().create(), Net().create()
    with pytest.raises(SelectionError, match=r"Selection\(norm\) was selected from another model"):
        model.patched(other["norm"], nn.Identity())


@given(st.sets(st.sampled_from(["encoder", "activation", "norm", "again", "head"]), min_size=1), st.booleans())
def test_patched_restores_any_selection(names: set[str], is_raising: bool) -> None:
    """For any selected children, the block raising or not: modules, order, weights and modes are as before."""
    model = Net().create(seed=3).eval()
    before, weights = dict(model._modules), values(model)
    try:
        with model["|".join(sorted(names))].patched(lambda old: copy.deepcopy(old).train()):
            assert all(model._modules[name] is not before[name] for name in names)
            if is_raising:
                raise KeyError
    except KeyError:
        pass
    assert list(model._modules.items()) == list(before.items())
    assert same(model.state_dict(), weights)
    assert not any(module.training for module in model.modules())


# Seeds by place ---------------------------------------------------------------------------------------------------


def widen(model: Any, index: int, _: int) -> None:
    """Widen one block, which changes the next block's input as well."""
    model["blocks", index, "layer"].configure(bias=False)


def swap(model: Any, index: int, _: int) -> None:
    """Give one block another activation, one that has weights."""
    model["blocks", index, "activation"].configure(nn.PReLU)


def normalize(model: Any, index: int, _: int) -> None:
    """Add a normalization to one block."""
    model.blocks[index].normalized(nn.LayerNorm)


def initialize(model: Any, index: int, number: int) -> None:
    """Draw the weights of one block in another way."""
    model["blocks", index, "layer"].register_after_build_hook(Uniform(number))


class Uniform:
    """Draws a weight anew."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, layer: Any) -> None:
        """Draw it as often as the number says."""
        for _ in range(self.number):
            nn.init.uniform_(layer.weight)


@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(st.sampled_from([widen, swap, normalize, initialize]), st.integers(0, 3)), min_size=1, max_size=3
    ),
    st.integers(0, 3),
)
def test_an_edit_of_one_block_leaves_the_weights_of_the_others_as_they_are(
    seed: int, edits: list[tuple[Any, int]], index: int
) -> None:
    """With a seed, whatever is done to one block, every other layer's initial weights are bit-identical."""
    model = MultiLayerPerceptron(4, [6, 6, 6], 2)
    edited = model.new()
    for edit, number in edits:
        edit(edited, index, number)
    state = torch.random.get_rng_state()
    one, other = model.create(seed=seed).state_dict(), edited.create(seed=seed).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    kept = {name for name in one if not name.startswith(f"blocks.{index}.")}
    assert kept == {name for name in other if not name.startswith(f"blocks.{index}.")}
    assert all(torch.equal(one[name], other[name]) for name in kept)
    assert same(edited.create(seed=seed).state_dict(), other)


@pytest.mark.parametrize("as_state", [False, True])
def test_names_of_one_model_are_swapped(as_state: bool) -> None:
    """Weights that a model takes from itself under other names are those that it had before."""
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first, second = (layer.weight.detach().clone() for layer in model)
    report = load_matching(model, model.state_dict() if as_state else model, rename={"0": "1", "1": "0"})
    assert report.is_complete
    assert torch.equal(model[1].weight, first)
    assert torch.equal(model[0].weight, second)
