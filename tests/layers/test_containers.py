"""Lists of modules: beside a Python list, beside torch's own, and as the record of what was done to them."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import AlreadyBuiltError, BuildError, ConfigurationError
from replayml.layers.containers import LayerList, LayerView, Parallel, Sequential
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module

CONTAINERS = (LayerList, Sequential, Parallel)
NUMBER = itertools.count(1)


def fresh() -> Any:
    """Return a layer that is told from all others by its size."""
    return Layer(nn.Linear, 1, next(NUMBER))


def sizes(layers: Any) -> list[int]:
    """Return what tells the elements from one another."""
    return [layer.out_features for layer in layers]


indices = st.integers(-6, 6)
bounds = st.one_of(st.none(), indices)
slices = st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, -1]))
EDITS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["append", "prepend", "clear", "remove", "iadd", "extend"]), indices),
        st.tuples(st.sampled_from(["insert", "pop", "set", "delete", "configure"]), indices),
        st.tuples(st.sampled_from(["insert", "append", "pop"]), indices),
        st.tuples(st.just("pop slice"), slices),
    ),
    max_size=8,
)


def perform(layers: Any, plain: list[Any], edit: tuple[str, Any]) -> None:
    """Make one edit on a list of layers and on a Python list; both succeed, or both refuse the index."""
    name, where = edit
    new = fresh()
    if name in ("pop", "set", "delete") and not -len(plain) <= where < len(plain):
        with pytest.raises(IndexError, match=f"has {len(plain)} elements; there is none at {where}"):
            layers.pop(where) if name != "set" else layers.__setitem__(where, new)
        return
    if name == "append":
        assert layers.append(new) is layers
        plain.append(new)
    elif name == "prepend":
        assert layers.prepend(new) is layers
        plain.insert(0, new)
    elif name == "insert":
        assert layers.insert(where, new) is layers
        plain.insert(where, new)
    elif name == "extend":
        more = [new, fresh()]
        assert layers.extend(more) is layers
        plain.extend(more)
    elif name == "iadd":
        same = layers
        layers += [new]
        assert layers is same
        plain += [new]
    elif name == "clear":
        assert layers.clear() is layers
        plain.clear()
    elif name == "remove" and plain:
        gone = plain[where % len(plain)]
        assert layers.remove(gone) is layers
        plain.remove(gone)
    elif name == "pop":
        assert layers.pop(where) is plain.pop(where)
    elif name == "pop slice":
        assert layers.pop(where) == [plain[index] for index in sorted(range(*where.indices(len(plain))))]
        del plain[where]
    elif name == "set":
        layers[where] = new
        plain[where] = new
    elif name == "delete":
        del layers[where]
        del plain[where]
    elif name == "configure" and plain:
        layers[where % len(plain)].configure(out_features=next(NUMBER))


# Beside a Python list ---------------------------------------------------------------------------------------------


@given(cls=st.sampled_from(CONTAINERS), length=st.integers(0, 3), edits=EDITS)
def test_a_list_of_layers_changes_like_a_python_list(cls: Any, length: int, edits: list[Any]) -> None:
    """After any edits the elements, their order and their names are those of a Python list, and copies have them."""
    plain = [fresh() for _ in range(length)]
    layers: Any = cls(*plain)
    for edit in edits:
        perform(layers, plain, edit)
        assert all(one is other for one, other in zip(layers, plain, strict=True))
    assert len(layers) == len(plain)
    assert [name for name, _ in layers.named_children()] == [str(index) for index in range(len(plain))]
    assert sizes(layers.new()) == sizes(plain)
    assert [layer.out_features for layer in layers.create()] == sizes(plain)
    assert layers.new().tape == layers.tape


@given(own=st.integers(0, 3), edits=EDITS)
def test_a_list_inside_a_module_is_edited_again_when_the_module_is_constructed_again(
    own: int, edits: list[Any]
) -> None:
    """The user's edits, and settings on the elements, outlive a new construction of the module that made the list."""

    class Net(Module):
        def __init__(self, width: int = 1, note: int = 0) -> None:
            self.layers = LayerList([Layer(nn.Linear, width, 100 + number) for number in range(own)])

    model: Any = Net()
    plain = list(model.layers)
    for edit in edits:
        perform(model.layers, plain, edit)
    before = sizes(plain)
    model.configure(note=1)
    assert sizes(model.layers) == before
    assert sizes(model.new().layers) == before
    model.configure(width=3)
    assert sizes(model.layers) == before
    assert sizes(model.new().layers) == before


@given(st.integers(0, 4), slices)
def test_reading_by_slices_and_negative_indices_is_that_of_a_python_list(length: int, key: slice) -> None:
    """Indices and slices give what they give of a Python list, slices as a view of the elements themselves."""
    plain = [fresh() for _ in range(length)]
    layers: Any = LayerList(plain)
    view = layers[key]
    assert isinstance(view, LayerView)
    assert list(view) == plain[key]
    assert len(view) == len(plain[key])
    for index in range(-length, length):
        assert layers[index] is plain[index]
    for index in (-length - 1, length):
        with pytest.raises(IndexError, match="out of range"):
            layers[index]


@given(length=st.integers(1, 5), key=slices, data=st.data())
def test_configuring_some_elements_is_by_index_slice_or_list(length: int, key: slice, data: st.DataObject) -> None:
    """``configure`` of an index, a slice or a list of indices changes these elements only; of none, every element."""
    layers: Any = LayerList([Layer(nn.Linear, 1, 1) for _ in range(length)])
    chosen = data.draw(st.lists(st.integers(-length, length - 1), min_size=1, max_size=3), label="list")
    for given_key, expected in (
        (chosen[0], {chosen[0] % length}),
        (chosen, {index % length for index in chosen}),
        (key, set(range(*key.indices(length)))),
    ):
        copy = layers.new()
        if not expected:
            with pytest.raises(ConfigurationError, match="LayerList has no element to configure"):
                copy.configure(given_key, bias=False)
            continue
        assert copy.configure(given_key, bias=False) is copy
        assert [layer.bias for layer in copy] == [index not in expected for index in range(length)]
        assert [layer.bias for layer in copy.new()] == [index not in expected for index in range(length)]
    assert [layer.bias for layer in layers.configure(bias=False)] == [False] * length


# Settings and their elements --------------------------------------------------------------------------------------


@given(length=st.integers(1, 4), at=st.integers(0, 3), moves=EDITS)
def test_a_setting_follows_its_element(length: int, at: int, moves: list[Any]) -> None:
    """What the user set on an element goes with it when its index changes, and with it when it leaves."""
    plain = [fresh() for _ in range(length)]
    layers: Any = LayerList(plain)
    marked = plain[at % length]
    marked.configure(in_features=7)
    for move in moves:
        perform(layers, plain, move)
    assert [layer.in_features for layer in layers] == [7 if layer is marked else 1 for layer in plain]
    assert [layer.in_features for layer in layers.new()] == [7 if layer is marked else 1 for layer in plain]
    assert marked.in_features == marked.new().in_features == 7


def test_the_next_element_at_an_index_has_no_settings_of_the_last_one() -> None:
    """What was set on an element that was taken out, or replaced, is not for the one that stands there now."""
    layers: Any = LayerList([fresh(), fresh()])
    layers[0].configure(bias=False)
    layers.pop(0)
    assert layers[0].bias is True
    layers[0].configure(bias=False)
    layers[0] = fresh()
    assert layers[0].bias is True
    assert layers.new()[0].bias is True


def test_one_call_on_the_list_is_one_entry() -> None:
    """Configuring every element, or extending by several, is one call on the tape, as the user made it."""
    layers: Any = LayerList([Layer(nn.Linear, 1, 1), Layer(nn.Linear, 1, 1)])
    layers.configure(bias=False).extend([Layer(nn.ReLU), Layer(nn.Tanh)])
    assert [entry.method for entry in layers.tape] == ["configure", "extend"]


# Reaching into every element --------------------------------------------------------------------------------------


class Block(Module):
    """Has a layer, an activation, and a size of its own."""

    def __init__(self, width: int = 1, more: bool = False) -> None:
        self.width = width
        self.layer = Layer(nn.Linear, width, width)
        self.activation = Layer(nn.ReLU)
        if more:
            self.extra = Layer(nn.Tanh)

    def doubled(self, times: int = 2) -> int:
        """Return a multiple of the width."""
        return self.width * times


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4))
def test_an_attribute_of_the_list_is_that_of_every_element(blocks: list[tuple[int, bool]]) -> None:
    """``layers.name`` reads every element that has the name, at any depth, and methods are called on each."""
    layers: Any = LayerList([Block(width, more) for width, more in blocks])
    assert list(layers.width) == [width for width, _ in blocks]
    assert list(layers.layer) == [block.layer for block in layers]
    assert list(layers.layer.out_features) == [width for width, _ in blocks]
    assert list(layers.doubled(times=3)) == [width * 3 for width, _ in blocks]
    if any(more for _, more in blocks):
        assert list(layers.extra) == [block.extra for block in layers if hasattr(block, "extra")]
    else:
        with pytest.raises(AttributeError, match="extra"):
            layers.extra  # noqa: B018 - reading is the test
    assert list(layers[1:].width) == [width for width, _ in blocks[1:]]


def test_configuring_through_the_list_reaches_every_element_and_is_replayed() -> None:
    """``layers.activation.configure(...)`` and a class configure every element below; copies and builds have it."""
    layers: Any = LayerList([Block(), Block()])
    layers.activation.configure(nn.GELU)
    layers.configure("layer", bias=False)
    for copy in (layers, layers.new()):
        assert list(copy.activation.classtype) == [nn.GELU, nn.GELU]
        assert list(copy.layer.bias) == [False, False]
    built = layers.create()
    assert all(type(block.activation) is nn.GELU and block.layer.bias is None for block in built)


def test_views_join_and_show_their_elements() -> None:
    """A view adds like a list, is sliced to a view, and its text names the attribute."""
    layers: Any = LayerList([Block(1), Block(2)])
    joined = layers.layer + layers[:1]
    assert list(joined) == [layers[0].layer, layers[1].layer, layers[0]]
    assert list(joined[1:]) == list(joined)[1:]
    assert isinstance(joined[1:], LayerView)
    assert joined[0] is layers[0].layer
    assert repr(layers.width) == "LayerView(width: [1, 2])"
    assert list(layers + [layers[0]]) == [*layers, layers[0]]
    with pytest.raises(AttributeError, match="nothing"):
        layers.layer.nothing  # noqa: B018 - reading is the test


def test_an_empty_list_has_no_attributes_of_elements() -> None:
    """Without elements a name is an ordinary missing attribute."""
    layers: Any = LayerList()
    with pytest.raises(AttributeError, match="activation"):
        layers.activation  # noqa: B018 - reading is the test
    with pytest.raises(ConfigurationError, match="LayerList has no element to configure"):
        layers.configure(bias=False)


# What may stand in a list -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CONTAINERS)
@pytest.mark.parametrize("how", ["given", "append", "prepend", "insert", "extend"])
@pytest.mark.parametrize(
    ("element", "message"),
    [
        (nn.ReLU, r"holds modules, not classes\. Wrap it: Layer\(ReLU\)"),
        (3, "holds modules, not 3"),
        (torch.relu, "holds modules, not <built-in"),
    ],
)
def test_only_modules_stand_in_a_list(cls: Any, how: str, element: Any, message: str) -> None:
    """A class or a value is refused at once, with the next step, and nothing is changed."""
    layers: Any = cls(Layer(nn.Linear, 1, 1))
    calls = {
        "given": lambda: cls(Layer(nn.Linear, 1, 1), element),
        "append": lambda: layers.append(element),
        "insert": lambda: layers.insert(0, element),
        "extend": lambda: layers.extend([Layer(nn.ReLU), element]),
        "prepend": lambda: layers.prepend(element),
    }
    with pytest.raises(ConfigurationError, match=message):
        calls[how]()
    assert [type(layer) for layer in layers] == [Layer]
    assert len(layers.tape) == 0
    assert len(layers.new()) == 1


def test_removing_what_is_not_there_is_refused() -> None:
    """``remove`` goes by identity and says what it did not find."""
    layers: Any = LayerList([Layer(nn.ReLU)])
    with pytest.raises(ConfigurationError, match=r"LayerList has no such element: Layer\(ReLU\)"):
        layers.remove(Layer(nn.ReLU))
    assert len(layers) == 1
    assert len(layers.tape) == 0


def test_a_plain_element_records_no_settings() -> None:
    """A plain torch module may stand in a list; configuring it says how to wrap it, and configures nobody else."""
    layers: Any = LayerList([Layer(nn.Linear, 1, 1), nn.Linear(1, 1)])
    with pytest.raises(ConfigurationError, match=r"holds a plain Linear, which records no settings\. Wrap it"):
        layers.configure(bias=False)
    assert layers[0].bias is True
    assert len(layers.tape) == 0


@pytest.mark.parametrize("given_as", [list, tuple, iter, nn.ModuleList, "several", "generator"])
def test_elements_are_given_one_by_one_or_as_one_list(given_as: Any) -> None:
    """Several arguments, a list, a tuple, an iterator and torch's own list make the same elements."""
    elements = [Layer(nn.Linear, 1, 2), Layer(nn.ReLU)]
    if given_as == "several":
        layers = LayerList(*elements)
    elif given_as == "generator":
        layers = LayerList(element for element in elements)
    else:
        layers = LayerList(given_as(elements))
    assert list(layers) == elements
    assert [type(layer) for layer in layers.create()] == [nn.Linear, nn.ReLU]


# Built ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CONTAINERS)
def test_a_built_list_is_edited_as_torchs_own(cls: Any) -> None:
    """On a built list edits work on built elements and leave no entry; an unbuilt element is refused."""
    layers: Any = cls(Layer(nn.Linear, 1, 1)).build()
    layers.append(nn.ReLU()).insert(0, nn.Tanh())
    assert [type(layer) for layer in layers] == [nn.Tanh, nn.Linear, nn.ReLU]
    layers.pop(1)
    layers[0] = nn.Sigmoid()
    assert [type(layer) for layer in layers] == [nn.Sigmoid, nn.ReLU]
    assert len(layers.tape) == 0
    with pytest.raises(AlreadyBuiltError, match=r"is built, and the new element is not: .*layer\.build\(\)"):
        layers.append(Layer(nn.ReLU))
    assert len(layers) == 2


def run_all(layers: Any, x: torch.Tensor) -> torch.Tensor:
    """Run a list by hand."""
    for layer in layers:
        x = layer(x)
    return x


@given(st.lists(st.sampled_from([nn.Tanh, nn.ReLU, nn.Sigmoid]), max_size=4))
def test_a_sequential_runs_its_elements_in_turn(classes: list[type[nn.Module]]) -> None:
    """The output is that of torch's own sequence."""
    x = torch.linspace(-2, 2, 5)
    ours = Sequential([Layer(cls) for cls in classes]).build()
    assert torch.equal(ours(x), nn.Sequential(*[cls() for cls in classes])(x))
    assert torch.equal(ours(x), run_all(ours, x))


@given(
    positional=st.integers(0, 2), keys=st.lists(st.sampled_from("abc"), unique=True, max_size=3), as_dict=st.booleans()
)
def test_a_parallel_returns_a_list_or_a_dict(positional: int, keys: list[str], as_dict: bool) -> None:
    """Without keywords the outputs come as a list; with keywords in a dict, a copy of the input if that is one."""
    branches = {key: Layer(nn.Tanh) for key in keys}
    parallel: Any = Parallel(*[Layer(nn.ReLU) for _ in range(positional)], **branches)
    if as_dict:
        for branch in parallel:
            branch.set_input_map("x")
    built = parallel.build()
    x = torch.linspace(-2, 2, 5)
    given_input = {"x": x} if as_dict else x
    output = built(given_input)
    if not keys:
        assert len(output) == positional
        assert all(torch.equal(one, torch.relu(x)) for one in output)
        return
    expected: dict[Any, torch.Tensor] = {"x": x} if as_dict else {}
    expected |= dict.fromkeys(range(positional), torch.relu(x))
    expected |= dict.fromkeys(keys, torch.tanh(x))
    assert output.keys() == expected.keys()
    assert all(torch.equal(output[key], expected[key]) for key in expected)
    assert not as_dict or list(given_input) == ["x"]


def test_maps_of_a_list_are_for_every_element() -> None:
    """``set_input_map`` and ``set_output_map`` of a list reach its elements, which pass a dict on."""
    layers: Any = Sequential([Layer(nn.Tanh), Layer(nn.ReLU)])
    assert layers.set_input_map("x").set_output_map("x") is layers
    built = layers.create()
    x = torch.linspace(-1, 1, 3)
    output = built({"x": x, "kept": 1})
    assert torch.equal(output["x"], torch.relu(torch.tanh(x)))
    assert output["kept"] == 1


@pytest.mark.parametrize("element", [None, 3, nn.ReLU])
@pytest.mark.parametrize("key", [0, slice(0, 1)])
def test_an_element_is_checked_when_it_is_assigned(key: Any, element: Any) -> None:
    """``layers[i] = x`` refuses what ``append`` refuses, and changes nothing."""
    layers: Any = LayerList(Layer(nn.ReLU))
    with pytest.raises(ConfigurationError, match="LayerList holds modules, not"):
        layers[key] = element if key == 0 else [element]
    assert layers[0].classtype is nn.ReLU
    assert len(layers.tape) == 0


@pytest.mark.parametrize("cls", [LayerList, Sequential, Parallel])
def test_a_built_list_cannot_be_configured(cls: Any) -> None:
    """The error says that the list is built, and names ``new()``."""
    with pytest.raises(AlreadyBuiltError, match=r"is built; its configuration is fixed\. .*new\(\)"):
        cls(Layer(nn.Linear, 2, 2)).build().configure(out_features=3)


def test_a_list_holds_modules_only_when_it_is_built() -> None:
    """An external whose object is no module is refused in a list, with its place."""
    with pytest.raises(BuildError, match=r"model\.0 \(External\(Fraction, 1, 2\)\).* makes a Fraction"):
        LayerList([External(Fraction, 1, 2), Layer(nn.ReLU)]).build()


def test_a_list_may_have_a_child_with_a_name() -> None:
    """A child that is no element is assigned, replaced and kept like that of any module."""
    layers: Any = LayerList(Layer(nn.ReLU))
    layers.extra = Layer(nn.Linear, 1, 2)
    layers.extra.configure(bias=False)
    assert layers.new().extra.bias is False
