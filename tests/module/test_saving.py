"""Model files: what is saved is loaded, the same to the last bit, and what would not be the same is not saved."""

from __future__ import annotations

import copy
import json
import os
import random
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import replayml
from replayml.recipe.files.reading import read_model_file
from replayml.recipe.randomness import random_state, resume_randomness
from tests.properties import models, strategies

FORMS = ["model.replayml", "model"]


class Net(replayml.Module):
    """A small model with a size that the input tells."""

    def __init__(self, width: int = 5) -> None:
        self.hidden = replayml.Layer(nn.Linear, None, width)
        self.norm = replayml.Layer(nn.BatchNorm1d)
        self.drop = replayml.Layer(nn.Dropout, 0.25)
        self.head = replayml.Layer(nn.Linear, None, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 2)."""
        result: Tensor = self.head(self.drop(torch.relu(self.norm(self.hidden(x)))))
        return result


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def net() -> Any:
    """Return a built model in evaluation mode."""
    return Net(width=4).configure(width=7).build(X).eval()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Assert that two built models have the same weights to the last bit, the same ties, modes and trained weights."""
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert_equal(tensor, states[1][name])
    assert [module.training for module in one.modules()] == [module.training for module in other.modules()]
    assert trained(one) == trained(other)
    assert ties(one) == ties(other)


def assert_equal(one: Tensor, other: Tensor) -> None:
    """Assert that two tensors have the same bits."""
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert bits(one) == bits(other)


def bits(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(plain.view(torch.uint8).numpy()) if plain.numel() else b""


def trained(model: nn.Module) -> list[str]:
    """Return the names of the weights that are trained."""
    return [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad]


def ties(model: nn.Module) -> set[frozenset[str]]:
    """Return the names of each weight."""
    named = list(model.named_parameters(remove_duplicate=False)) + list(model.named_buffers(remove_duplicate=False))
    return {frozenset(name for name, other in named if other is tensor) for _, tensor in named}


# There and back -------------------------------------------------------------------------------------------------


@given(strategies.recipes(), st.lists(strategies.edits(), max_size=3), st.sampled_from(FORMS), st.randoms())
@settings(max_examples=60)
def test_any_model_comes_back(recipe: Any, edits: list[Any], form: str, chance: random.Random) -> None:
    """A random tree, shared across levels, comes back with its weights, ties, modes, frozen weights and recipe."""
    model = strategies.attempt(recipe)
    assume(model is not None)
    for edit in edits:
        strategies.try_to_perform(model, edit)
    built = model.create()
    for module in built.modules():
        module.training = chance.random() < 0.7
    for parameter in built.parameters():
        parameter.requires_grad = chance.random() < 0.7
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / form
        try:
            built.save(path)
        except replayml.RecipeError as error:
            assume(error.code != "no-data-form")
            raise
        again = replayml.load(path, trust=[models.Holder])
        assert_same(again, built)
        assert strategies.picture(again.new()) == strategies.picture(built.new())
        assert list(map(str, again.tape)) == list(map(str, built.tape))
        again.save(path)  # in the place of the file that its weights are read from
        assert_same(replayml.load(path, trust=[models.Holder]), built)


@given(strategies.recipes(), st.lists(strategies.edits(), max_size=3), st.sampled_from(FORMS))
@settings(max_examples=25)
def test_any_unbuilt_model_comes_back(recipe: Any, edits: list[Any], form: str) -> None:
    """A model without weights is saved as its recipe, and comes back unbuilt with the same picture."""
    model = strategies.attempt(recipe)
    assume(model is not None)
    for edit in edits:
        strategies.try_to_perform(model, edit)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / form
        try:
            model.save(path)
        except replayml.RecipeError as error:
            assume(error.code != "no-data-form")
            raise
        again = replayml.load(path, trust=[models.Holder])
        assert not again._record.built
        assert strategies.picture(again) == strategies.picture(model.new())
        assert not read_model_file(path).is_built


class Holding(nn.Module):
    """Holds a tensor of any kind as a weight, and one as a buffer."""

    def __init__(self, dtype: torch.dtype, shape: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.zeros(shape, dtype=dtype), requires_grad=dtype.is_floating_point or dtype.is_complex
        )
        self.register_buffer("buffer", torch.zeros(shape, dtype=dtype))


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.complex64,
    torch.complex128,
]


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=5), st.data())
@settings(max_examples=60)
def test_tensors_of_every_type_and_shape_come_back(kinds: list[Any], data: st.DataObject) -> None:
    """Bits are kept in every type and shape, of tensors without elements, and of those that are not contiguous."""
    model = replayml.Sequential([replayml.Layer(Holding, *kind) for kind in kinds]).build()
    for holding in model:
        for tensor in (holding.weight.data, holding.buffer):
            count = tensor.numel() * tensor.dtype.itemsize
            raw = data.draw(st.binary(min_size=count, max_size=count))
            values = torch.tensor(list(raw), dtype=torch.uint8)
            if tensor.dtype is torch.bool:
                values = values % 2
            filled = values.view(tensor.dtype).view(tensor.shape) if count else tensor
            holding.buffer = filled
            spread = filled.movedim(0, -1).contiguous().movedim(-1, 0) if filled.dim() > 1 else filled
            holding.weight.data = spread.clone(memory_format=torch.preserve_format)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.replayml"
        model.save(path)
        assert_same(replayml.load(path, trust=[Holding]), model)
        found = safetensors.torch.load_file(path)
        assert found.keys() == model.state_dict().keys()


@pytest.mark.parametrize("form", FORMS)
def test_a_model_with_sizes_that_its_input_told(form: str, tmp_path: Path) -> None:
    """Sizes that were read off the example input, the tape and the mode come back, and the output is the same."""
    model = net()
    model.save(tmp_path / form)
    again = replayml.load(tmp_path / form)
    assert_same(again, model)
    assert torch.equal(again(X), model(X))
    assert again.tape == model.tape
    assert again.new().build(X).hidden.weight.shape == (7, 3)
    again.save(tmp_path / "second")
    assert torch.equal(replayml.load(tmp_path / "second")(X), model(X))


def test_what_is_loaded_can_be_used_like_any_model(tmp_path: Path) -> None:
    """It is trained, copied, pickled by torch, moved to shared memory and deep-copied, and the file stays as it was."""
    path = tmp_path / "model.replayml"
    net().save(path)
    content = path.read_bytes()
    model = replayml.load(path)
    before = copy.deepcopy(model)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert torch.equal(torch.load(tmp_path / "state.pt")["head.weight"], model.head.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.head.weight, before.head.weight)
    assert torch.equal(before.head.weight, replayml.load(path).head.weight)
    model.share_memory()
    assert model.head.weight.is_shared()
    assert path.read_bytes() == content


def test_torch_layers_that_were_given_keep_their_values_in_new_copies(tmp_path: Path) -> None:
    """A plain layer among the arguments has values in a copy of the loaded model, and not only in the model itself."""
    model = replayml.Sequential(nn.PReLU(), replayml.Layer(nn.Linear, 2, 2)).build()
    model.save(tmp_path / "model")
    again = replayml.load(tmp_path / "model").create()
    assert not any(parameter.is_meta for parameter in again.parameters())
    assert torch.equal(again[0].weight, nn.PReLU().weight)


def test_a_part_of_a_model_is_saved_by_itself(tmp_path: Path) -> None:
    """A replayml module inside of a built model is saved and loaded as a model of its own."""
    model = replayml.Sequential(Net(), replayml.Layer(nn.Linear, 2, 3)).build(X)
    model[0].save(tmp_path / "part")
    again = replayml.load(tmp_path / "part")
    assert type(again) is Net
    assert_same(again, model[0])


# Weights that are one -------------------------------------------------------------------------------------------


class Tied(replayml.Module):
    """Ties weights at two levels: two parameters of two layers, and one module in two places."""

    def __init__(self) -> None:
        self.inner = Inner()
        self.again = self.inner.second
        self.other = replayml.Layer(nn.Linear, 4, 4)
        self.tie()

    @replayml.after_build
    def tie(self) -> None:
        """Make one weight of two layers."""
        self.other.weight = self.inner.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 4)."""
        result: Tensor = self.other(self.again(self.inner(x)))
        return result


class Inner(replayml.Module):
    def __init__(self) -> None:
        self.first = replayml.Layer(nn.Linear, 4, 4)
        self.second = replayml.Layer(nn.Linear, 4, 4)
        self.tie()

    @replayml.after_build
    def tie(self) -> None:
        """Make one bias of two layers."""
        self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 4)."""
        result: Tensor = self.second(self.first(x))
        return result


@pytest.mark.parametrize("form", FORMS)
def test_tied_weights_are_stored_once_and_stay_tied(form: str, tmp_path: Path) -> None:
    """Ties at two levels come back as one object each, in a part of the model too, and the file has each once."""
    model = Tied().build()
    model.save(tmp_path / form)
    file = read_model_file(tmp_path / form)
    assert set(file.tensors) == {"inner.first.weight", "inner.first.bias", "inner.second.weight", "other.bias"}
    again = replayml.load(tmp_path / form)
    assert_same(again, model)
    assert again.again is again.inner.second
    part = replayml.load(tmp_path / form, at="again")
    assert_equal(part.bias, model.again.bias)
    part = replayml.load(tmp_path / form, at="inner")
    assert part.first.bias is part.second.bias


def test_a_tie_that_the_recipe_does_not_make_is_refused(tmp_path: Path) -> None:
    """Weights that were made one after the build, or that are no longer one, or overlap, are not saved."""
    model = Net().build(X)
    model.norm.weight = model.norm.bias
    with pytest.raises(replayml.CheckpointError, match=r"made one: norm.bias and norm.weight"):
        model.save(tmp_path / "model")
    model = Tied().build()
    model.other.weight = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(replayml.CheckpointError, match=r"no longer one: inner.first.weight and other.weight"):
        model.save(tmp_path / "model")
    model = Net().build(X)
    model.norm.bias.data = model.hidden.weight.data.view(-1)[1:6]
    with pytest.raises(replayml.CheckpointError, match=r"hidden.weight and norm.bias share a part of their memory"):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# What no file holds ---------------------------------------------------------------------------------------------


class Rotating(nn.Module):
    """Has buffers and tensors that are not saved."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))
        self.register_buffer("waves", torch.arange(size).float().cos(), persistent=False)
        self.register_buffer("mask", torch.ones(size, dtype=torch.bool), persistent=False)
        self.table = [torch.full((size,), 2.0)]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.waves * self.table[0]


def test_buffers_that_are_not_saved_are_computed(tmp_path: Path) -> None:
    """They have the values of a new model and the types of the old one, whatever the types of the weights."""
    model = replayml.Sequential(replayml.Layer(Rotating, 5)).build()
    model.to(torch.bfloat16)
    model[0].waves = model[0].waves.float()
    model.save(tmp_path / "model")
    again = replayml.load(tmp_path / "model", trust=[Rotating])
    assert (again[0].weight.dtype, again[0].waves.dtype, again[0].mask.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.bool,
    )
    assert torch.equal(again[0].mask, model[0].mask)
    assert torch.equal(again[0].table[0], model[0].table[0])
    waves = replayml.Sequential(replayml.Layer(Rotating, 5)).build().to(torch.bfloat16)
    waves.save(tmp_path / "other")
    assert torch.equal(replayml.load(tmp_path / "other", trust=[Rotating])[0].waves, waves[0].waves)


def test_the_default_type_of_the_build_comes_back(tmp_path: Path) -> None:
    """A model that was built and saved under another default type has its unsaved buffers in full precision."""
    torch.set_default_dtype(torch.float64)
    try:
        model = replayml.Sequential(replayml.Layer(Rotating, 5)).build()
        model.save(tmp_path / "model")
    finally:
        torch.set_default_dtype(torch.float32)
    again = replayml.load(tmp_path / "model", trust=[Rotating])
    assert torch.equal(again[0].table[0], model[0].table[0])
    assert again[0].weight.dtype is torch.float64


class Drawing(nn.Module):
    """Draws its weight, and reads a value of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.sign = float(self.weight[0].detach().sign())

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_loading_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving and loading leave the global generators alone, and no weight that the file gives is initialised."""
    model = replayml.Sequential(Net(), replayml.Layer(Drawing)).build(X)
    seen: list[bool] = []
    original = nn.Linear.reset_parameters

    def reset(self: nn.Linear) -> None:
        seen.append(self.weight.is_meta)
        original(self)

    monkeypatch.setattr(nn.Linear, "reset_parameters", reset)
    resume_randomness(state := random_state())
    expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002 - the global generator is the point
    resume_randomness(state)
    model[0].save(tmp_path / "part")
    replayml.load(tmp_path / "part")
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]  # noqa: NPY002 - see above
    assert seen
    assert all(seen)
    model.save(tmp_path / "whole")
    resume_randomness(state)
    again = replayml.load(tmp_path / "whole", trust=[Drawing])
    assert torch.equal(torch.rand(3), expected[0])
    assert_same(again, model)


# Parts, places, and without weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_part_of_a_file(form: str, tmp_path: Path) -> None:
    """at= gives one module with its weights; without weights it gives the module unbuilt; a wrong path says so."""
    model = replayml.Sequential(Net(), replayml.Layer(nn.Linear, 2, 3)).build(X).eval()
    model.save(tmp_path / form)
    part = replayml.load(tmp_path / form, at="0")
    assert type(part) is Net
    assert_same(part, model[0])
    assert torch.equal(part(X), model[0](X))
    layer = replayml.load(tmp_path / form, at="0.hidden")
    assert_equal(layer.weight, model[0].hidden.weight)
    unbuilt = replayml.load(tmp_path / form, at="0", weights=False)
    assert strategies.picture(unbuilt) == strategies.picture(model[0].new())
    with pytest.raises(replayml.SelectionError, match=r"nothing at '0.hiden'. Did you mean '0.hidden'\?"):
        replayml.load(tmp_path / form, at="0.hiden")


def test_without_weights_no_weight_is_read(tmp_path: Path) -> None:
    """weights=False gives the unbuilt model, also where the bytes of the weights are damaged."""
    path = tmp_path / "model.replayml"
    net().save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert replayml.load(path, weights=False).build(X).hidden.weight.shape == (7, 3)
    assert replayml.load(path, map_location="meta").hidden.weight.is_meta
    with pytest.raises(replayml.RecipeError, match="changed-file"):
        replayml.load(path)


def test_map_location(tmp_path: Path) -> None:
    """Weights, unsaved buffers and all go to the device that is named."""
    model = replayml.Sequential(replayml.Layer(Rotating, 5)).build()
    model.save(tmp_path / "model")
    for location in ("cpu", torch.device("cpu"), "meta"):
        again = replayml.load(tmp_path / "model", trust=[Rotating], map_location=location)
        assert {tensor.device for tensor in (again[0].weight, again[0].waves)} == {torch.device(location)}


# Names ------------------------------------------------------------------------------------------------------------


def test_a_compiled_part_leaves_no_trace(tmp_path: Path) -> None:
    """A model with a compiled part, or that is compiled as a whole, is saved as one without."""
    model = net()
    model.hidden = torch.compile(model.hidden, backend="eager")
    model.save(tmp_path / "part")
    assert_equal(replayml.load(tmp_path / "part").hidden.weight, model.hidden.weight)
    whole: Any = torch.compile(net(), backend="eager")
    whole.save(tmp_path / "whole")
    assert not any("_orig_mod" in name for name in replayml.load(tmp_path / "whole").state_dict())


def scaled(x: Tensor) -> Tensor:
    """Return twice the input."""
    return 2 * x


class WithFunction(replayml.Module):
    def __init__(self, function: Any) -> None:
        self.function = function
        self.layer = replayml.Layer(nn.Linear, 3, 2)


def test_what_a_file_may_name(tmp_path: Path) -> None:
    """A function needs trust=, and a name that has changed needs rename=; nothing else is called."""
    path = tmp_path / "model.replayml"
    WithFunction(scaled).build().save(path)
    with pytest.raises(replayml.RecipeError, match=r"test_saving.scaled' is not known"):
        replayml.load(path)
    assert replayml.load(path, trust=[scaled]).function is scaled
    name = f"{__name__}.scaled"
    with pytest.raises(replayml.RecipeError, match="not known"):
        replayml.load(path, rename={name: "builtins.print"}, trust=[scaled])


def test_a_value_without_a_data_form_is_refused_or_pickled(tmp_path: Path) -> None:
    """A lambda is refused with its place; with allow_pickle on both sides it is kept."""
    model = WithFunction(lambda x: 3 * x).build()
    with pytest.raises(replayml.RecipeError, match=r"\[no-name\] at model.args\[0\]: the function"):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    model.save(tmp_path / "model", allow_pickle=True)
    with pytest.raises(replayml.RecipeError, match="allow_pickle"):
        replayml.load(tmp_path / "model")
    assert replayml.load(tmp_path / "model", allow_pickle=True).function(2) == 6


# What is not saved ------------------------------------------------------------------------------------------------


def _more(model: Any) -> None:
    model.more = nn.Linear(2, 2)


def _less(model: Any) -> None:
    model.head.bias = None


def _wider(model: Any) -> None:
    model.head.weight = nn.Parameter(torch.zeros(2, 9))


def _whole_numbers(model: Any) -> None:
    model.head.weight = nn.Parameter(torch.zeros(2, 7, dtype=torch.int64), requires_grad=False)


def _other_class(model: Any) -> None:
    model.drop = nn.Identity()


def _other_setting(model: Any) -> None:
    model.drop.p = 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_more, r"unexpected: more \(weight, bias\)"),
        (_less, r"missing: head \(bias\)"),
        (_wider, r"of another shape: head.weight: \(2, 9\)"),
        (_whole_numbers, r"of another type: head.weight: torch.int64"),
        (_other_class, "other modules: drop"),
        (_other_setting, r"other settings: drop.p is 0.75 instead of 0.25"),
    ],
)
def test_a_change_after_the_build_is_not_saved(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    """A built model that its recipe does not make is refused, with what differs; the older model stays."""
    model = net()
    model.save(tmp_path / "model")
    old = copy.deepcopy(model)
    change(model)
    with pytest.raises(replayml.CheckpointError, match=f"changed after its build.*{message}.*after_build"):
        model.save(tmp_path / "model")
    assert_same(replayml.load(tmp_path / "model"), old)


class WithState(nn.Module):
    """Keeps something beside its weights."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def test_extra_state_is_kept_as_a_tensor_or_refused(tmp_path: Path) -> None:
    """A tensor that get_extra_state returns comes back; anything else is refused with its name."""
    model = replayml.Sequential(replayml.Layer(WithState, {"a": 1})).build()
    with pytest.raises(
        replayml.RecipeError, match=r"0._extra_state: the state_dict holds a dict here.*get_extra_state"
    ):
        model.save(tmp_path / "model")
    for first in (7, torch.tensor([3, 4])):
        model = replayml.Sequential(replayml.Layer(WithState, first)).build()
        model[0].state = torch.tensor([5, 6])
        model.save(tmp_path / "model")
        assert replayml.load(tmp_path / "model", trust=[WithState])[0].state.tolist() == [5, 6]


def test_weights_without_values_are_not_saved(tmp_path: Path) -> None:
    """A model on the meta device, and a sparse weight, are refused by name."""
    with pytest.raises(replayml.CheckpointError, match=r"hidden.weight is on the meta device"):
        Net().build(X, device="meta").save(tmp_path / "model")
    model = net()
    model.head.weight = nn.Parameter(model.head.weight.detach().to_sparse())
    with pytest.raises(
        replayml.CheckpointError,
        match=r"head.weight is a sparse tensor, whose layout is torch.sparse_coo.*Make it dense",
    ):
        model.save(tmp_path / "model")
    layer = replayml.Layer(nn.Linear, 2, 3)
    layer.build()
    with pytest.raises(replayml.CheckpointError, match="has become another object when it was built"):
        layer.save(tmp_path / "model")


# Paths ------------------------------------------------------------------------------------------------------------


def test_paths_of_the_wrong_kind(tmp_path: Path) -> None:
    """A name with another ending, a file where a folder is meant, and the other way round, are refused and left."""
    model = net()
    with pytest.raises(replayml.RecipeError, match=r"\.pt is neither. Save it to model.replayml"):
        model.save(tmp_path / "model.pt")
    with pytest.raises(replayml.RecipeError, match=r"\.1 is neither. Save it to v1\.1\.replayml"):
        model.save(tmp_path / "v1.1")
    for path in ("", "a\0b", "a\0b.replayml"):
        with pytest.raises(replayml.RecipeError, match=r"bad-path.*no path"):
            model.save(path)
    with pytest.raises(replayml.RecipeError, match=r"bad-path.*no path"):
        replayml.load("a\0b")
    with pytest.raises(replayml.RecipeError, match=r"\.ckpt is neither"):
        model.save(tmp_path / "model.ckpt")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(replayml.RecipeError, match="a file stands there"):
        model.save(tmp_path / "file")
    (tmp_path / "folder.replayml").mkdir()
    with pytest.raises(replayml.RecipeError, match="this is a folder, which is not replaced"):
        model.save(tmp_path / "folder.replayml")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("mine")
    with pytest.raises(
        replayml.RecipeError, match=r"something else than a model, and is left alone. Save to .*work/model"
    ):
        model.save(tmp_path / "work")
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "none" / "model.replayml")
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["notes.txt"]


def test_paths_that_are_taken(tmp_path: Path) -> None:
    """A new folder with its parents, an empty one, one with a dot in its name, and a link are written to."""
    model = net()
    (tmp_path / "empty").mkdir()
    (tmp_path / "v1.2").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "empty", tmp_path / "v1.2", f"{tmp_path}/v1.3/"):
        model.save(path)
        model.save(path)
        assert_same(replayml.load(path), model)
    (tmp_path / "link.replayml").symlink_to("target.replayml")
    model.save(tmp_path / "link.replayml")
    assert (tmp_path / "link.replayml").is_symlink()
    assert_same(replayml.load(tmp_path / "target.replayml"), model)


def test_a_folder_says_what_it_holds(tmp_path: Path) -> None:
    """A folder has a manifest, a recipe that is readable by itself, and weights that any safetensors reader opens."""
    model = net()
    model.save(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    recipe = tmp_path / "model" / manifest["recipe"]["name"]
    assert replayml.Recipe.from_json(recipe.read_text()) == model.recipe()
    weights = safetensors.torch.load_file(tmp_path / "model" / manifest["weights"]["name"])
    assert_equal(weights["head.weight"], model.head.weight)
    assert len(list((tmp_path / "model").iterdir())) == 3
    model.save(tmp_path / "model")
    assert len(list((tmp_path / "model").iterdir())) == 3


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04" + bytes(100), b"\x80\x04." + bytes(90), b"{}" * 60])
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    """Something else than a model file is refused, and nothing is tried with it."""
    path = tmp_path / "model.replayml"
    path.write_bytes(content)
    with pytest.raises(replayml.RecipeError, match=r"wrong-size|foreign-format.*unpickled"):
        replayml.load(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe, a device and a folder without a model are refused at once; a missing file raises FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        replayml.load(tmp_path / "none.replayml")
    with pytest.raises(replayml.RecipeError, match="this folder holds no model"):
        replayml.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.replayml")
    with pytest.raises(replayml.RecipeError, match="no regular file"):
        replayml.load(tmp_path / "pipe.replayml")
    with pytest.raises(replayml.RecipeError, match="no regular file"):
        replayml.load("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for opened in (replayml.load, replayml.inspect):
            with pytest.raises(replayml.RecipeError, match=r"not-regular.*no regular file. Nothing was read"):
                opened(tmp_path / "socket")
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(replayml.RecipeError, match="a safetensors file without a recipe"):
        replayml.load(tmp_path / "weights.safetensors")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="these files are made up by Linux")
@pytest.mark.parametrize("name", ["/proc/self/mem", "/proc/self/pagemap", "/proc/self/clear_refs", "/proc/self/maps"])
@pytest.mark.parametrize("ending", ["", ".ckpt", ".replayml", ".json"])
def test_files_that_the_system_makes_up_are_refused(name: str, ending: str, tmp_path: Path) -> None:
    """What looks like a file and has no bytes of its own is refused by load and inspect, and is not read."""
    path = tmp_path / f"model{ending}"
    path.symlink_to(name)
    for opened in (replayml.load, replayml.inspect):
        with pytest.raises(replayml.RecipeError):
            opened(path)


@pytest.mark.skipif(not Path("/sys/kernel/uevent_seqnum").exists(), reason="this file is made up by Linux")
def test_a_file_that_cannot_be_mapped_is_refused() -> None:
    """A file whose bytes the system does not hold is refused as no file."""
    with pytest.raises(replayml.RecipeError, match=r"not-regular.*whose bytes the system holds"):
        replayml.load("/sys/kernel/uevent_seqnum")


def test_limits_hold_for_files(tmp_path: Path) -> None:
    """What a file may hold, and what may come of it, is bounded by the limits of the caller."""
    net().save(tmp_path / "model")
    with pytest.raises(replayml.RecipeError, match="too-many-tensors"):
        replayml.load(tmp_path / "model", limits=replayml.recipe.Limits(tensors=2))
    with pytest.raises(replayml.RecipeError, match="too-large"):
        replayml.load(tmp_path / "model", limits=replayml.recipe.Limits(size=10))


def test_models_that_share_a_part_are_saved_each(tmp_path: Path) -> None:
    """A model whose part was built with another one knows the sizes of the part."""
    part = replayml.Sequential(replayml.Layer(nn.Linear, None, 2))
    first, second = replayml.Sequential(part), replayml.Sequential(replayml.Layer(nn.ReLU), part)
    first.build(torch.zeros(1, 4))
    second.build(torch.zeros(1, 4))
    for number, model in enumerate((first, second)):
        model.save(tmp_path / f"{number}.replayml")
        assert_same(replayml.load(tmp_path / f"{number}.replayml"), model)
