"""The tree of a module: what takes part in the lifecycle is shown, and what a network is made of is not."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml import Layer, LayerList, MultiLayerPerceptron, bind, parallel, pipeline
from replayml.module.showing import make_repr, name_of, tree


class Named(replayml.Module):
    """Has a name, and whatever is given to it."""

    def __init__(self, name: str, *inside: Any) -> None:
        self.name = name
        for number, module in enumerate(inside):
            setattr(self, f"part_{number}", module)


class Deployed(Named):
    """Takes part in the lifecycle."""

    def _get_deploy_tasks(self) -> Any:
        return lambda: None


class DeployedLayers(LayerList[Any]):
    """A list of layers with a deployment."""

    def _get_deploy_tasks(self) -> Any:
        return lambda: None


Shape = tuple[str, list[Any]]
KINDS = ("module", "deployed", "flow", "list", "layer", "plain")
SHAPES: st.SearchStrategy[Shape] = st.recursive(
    st.tuples(st.sampled_from(KINDS), st.just([])),
    lambda below: st.tuples(st.sampled_from(KINDS[:-2]), st.lists(below, max_size=3)),
    max_leaves=12,
)


def made(shape: Shape) -> Any:
    """Return the module of a shape."""
    kind, below = shape
    inside = [made(one) for one in below]
    match kind:
        case "module":
            return Named("n", *inside)
        case "deployed":
            return Deployed("d", *inside)
        case "flow":
            return pipeline(*inside)
        case "list":
            return LayerList(*inside)
        case "layer":
            return Layer(nn.Linear, 2, 2)
        case _:
            return nn.ReLU()


def lines(shape: Shape, is_step: bool = True) -> list[str]:
    """Return the tree of a shape, written down by itself; what is no step may be left out."""
    kind, below = shape
    inside = [part for one in below if (part := lines(one, kind == "flow"))]
    if not is_step and (kind in ("layer", "plain") or (kind == "list" and not inside)):
        return []
    heads = {
        "module": "<Module type=Named name=n>",
        "deployed": "<Module type=Deployed name=d>",
        "flow": "<Flow type=Pipeline items=[]>",
        "list": "<Module type=LayerList>",
        "layer": "<Module type=Linear>",
        "plain": "<Module type=ReLU>",
    }
    found = [heads[kind]]
    for number, (first, *rest) in enumerate(inside):
        is_last = number == len(inside) - 1
        found.append(("└- " if is_last else "|- ") + first)
        found += [("    " if is_last else "|   ") + line for line in rest]
    return found


@given(SHAPES)
def test_the_tree_shows_all_but_the_parts_of_networks(shape: Shape) -> None:
    """Modules and flows are shown at any depth; layers, and lists with nothing else in them, only as steps."""
    assert tree(made(shape)).splitlines() == lines(shape)


def test_networks_are_one_line() -> None:
    """A network in a flow is one line, built or not; alone it is shown as torch shows it."""
    model = MultiLayerPerceptron(4, [8], 2)
    for network in (model, model.new().build()):
        assert tree(pipeline(network, str)).splitlines() == [
            "<Flow type=Pipeline items=[]>",
            "|- <Module type=MultiLayerPerceptron>",
            "└- <Function type=str>",
        ]
        assert repr(network).startswith("MultiLayerPerceptron(\n  (blocks): LayerList(")
    app = replayml.Classifier(model, num_classes=2)
    assert tree(app).splitlines() == ["<Module type=Classifier>", "└- <Module type=MultiLayerPerceptron>"]
    assert repr(app).startswith("Classifier(")


def test_layers_with_tasks_are_shown() -> None:
    """What a network is made of is shown where its class takes part in the lifecycle."""
    assert tree(Named("a", DeployedLayers(Layer(nn.ReLU)))).splitlines() == [
        "<Module type=Named name=a>",
        "└- <Module type=DeployedLayers>",
    ]


def test_modules_with_tasks_show_their_tree() -> None:
    """``repr`` of a module whose class has tasks is its tree; of others it is as torch has it."""
    module = Deployed("a", Named("b", Layer(nn.ReLU)), pipeline(Deployed("c"), bind(len)))
    assert repr([module]) == f"[{tree(module)}]"
    assert tree(module).splitlines() == [
        "<Module type=Deployed name=a>",
        "|- <Module type=Named name=b>",
        "└- <Flow type=Pipeline items=[]>",
        "    |- <Module type=Deployed name=c>",
        "    └- <Bind type=len args=()>",
    ]
    assert repr(Named("b")) == "Named()"


def test_what_is_in_plain_containers_is_shown() -> None:
    """A module in a container of torch is shown below the module that has the container."""
    module = Named("a", nn.Sequential(nn.ReLU(), Deployed("b")))
    assert tree(module).splitlines() == ["<Module type=Named name=a>", "└- <Module type=Deployed name=b>"]
    assert tree(parallel(nn.Sequential(Deployed("b")))).splitlines()[1:] == [
        "└- <Module type=Sequential>",
        "    └- <Module type=Deployed name=b>",
    ]


def test_names() -> None:
    """A layer is called what it stands for."""
    assert name_of(Layer(nn.Linear, 2, 3)) == name_of(Layer(nn.Linear, 2, 3).build()) == "Linear"
    assert tree(replayml.External(torch.nn.ReLU)) == make_repr("Module", nn.ReLU)
