"""A built model is the hand-written torch model: the same keys, the same numbers, the same compiler."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import replayml

Pair = tuple[nn.Module, nn.Module, tuple[torch.Tensor, ...]]


class HandMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)])
        self.activation = nn.GELU()
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.out(x)


class MLP(replayml.Module):
    def __init__(self, width: int = 4) -> None:
        self.hidden = replayml.LayerList(replayml.Layer(nn.Linear, None, width), replayml.Layer(nn.Linear, None, width))
        self.activation = replayml.Layer(nn.ReLU)
        self.out = replayml.Layer(nn.Linear, None, 3)

    forward = HandMLP.forward


class HandCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.block(x) + self.shortcut(x)
        return self.head(x.mean((-1, -2)))


class CNN(replayml.Module):
    def __init__(self, channels: int = 4) -> None:
        layer = replayml.Layer
        self.stem = layer(nn.Conv2d, 1, channels, 3, padding=1)
        self.block = replayml.Sequential(
            layer(nn.Conv2d, channels, channels, 3, padding=1), layer(nn.BatchNorm2d), layer(nn.ReLU)
        )
        self.shortcut = layer(nn.Conv2d, channels, channels, 1)
        self.head = layer(nn.Linear, None, 2)

    forward = HandCNN.forward


class HandLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 7, num_layers=2, batch_first=True)
        self.out = nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(x)
        return self.out(states[:, -1])


class LSTM(replayml.Module):
    def __init__(self) -> None:
        self.lstm = replayml.Layer(nn.LSTM, None, 7, num_layers=2, batch_first=True)
        self.out = replayml.Layer(nn.Linear, None, 2)

    forward = HandLSTM.forward


class HandTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x))


class Transformer(replayml.Module):
    def __init__(self) -> None:
        self.layer = replayml.Layer(
            nn.TransformerEncoderLayer, None, 2, dim_feedforward=16, dropout=0.0, batch_first=True
        )
        self.norm = replayml.Layer(nn.LayerNorm, None)

    forward = HandTransformer.forward


def mlp() -> Pair:
    """Return an MLP with two of its arguments changed from outside, the same by hand, and an input."""
    model = MLP().configure(width=8)
    model["activation"].configure(nn.GELU)
    return model, HandMLP(), (torch.randn(3, 6),)


def cnn() -> Pair:
    """Return a CNN with a shortcut, the same by hand, and an input."""
    return CNN(), HandCNN(), (torch.randn(2, 1, 6, 6),)


def lstm() -> Pair:
    """Return an LSTM, the same by hand, and an input."""
    return LSTM(), HandLSTM(), (torch.randn(2, 4, 5),)


def transformer() -> Pair:
    """Return a transformer layer, the same by hand, and an input."""
    return Transformer(), HandTransformer(), (torch.randn(2, 4, 8),)


pairs = pytest.mark.parametrize("make", [mlp, cnn, lstm, transformer])


@pairs
def test_a_built_model_has_the_keys_shapes_and_outputs_of_the_hand_written_one(make: Callable[[], Pair]) -> None:
    """Loaded with the same weights, the built and the hand-written model are equal bit for bit."""
    recorded, hand, inputs = make()
    built = recorded.build(*inputs)
    ours, theirs = built.state_dict(), hand.state_dict()
    assert list(ours) == list(theirs)
    assert {key: (value.shape, value.dtype) for key, value in ours.items()} == {
        key: (value.shape, value.dtype) for key, value in theirs.items()
    }
    built.load_state_dict(theirs)
    for mode in (True, False):
        assert torch.equal(built.train(mode)(*inputs), hand.train(mode)(*inputs))


@pairs
def test_a_built_model_runs_by_torchs_own_call(make: Callable[[], Pair]) -> None:
    """No frame of replayml is in a profile of a built model's forward."""
    recorded, _, inputs = make()
    built = recorded.build(*inputs)
    assert type(built).__call__ is nn.Module.__call__
    built(*inputs)
    profile = cProfile.Profile()
    profile.runcall(built, *inputs)
    package = str(Path(replayml.__file__).parent)
    frames = [file for file, _, _ in pstats.Stats(profile).stats]  # type: ignore[attr-defined]
    assert frames
    assert not [file for file in frames if file.startswith(package)]


@pairs
def test_a_built_model_compiles_in_one_graph_and_once(make: Callable[[], Pair]) -> None:
    """``torch.compile(fullgraph=True)`` takes a built model, and does not compile again on later calls."""
    recorded, _, inputs = make()
    built = recorded.build(*inputs).eval()
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, backend=backend)
    # torch itself asks for this switch before it compiles an RNN, a hand-written one included
    with torch.no_grad(), torch._dynamo.config.patch(allow_rnn=True):
        expected = built(*inputs)
        for _ in range(3):
            torch.testing.assert_close(compiled(*inputs), expected)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm:UserWarning")  # torch says so of any LSTM
@pairs
def test_a_built_model_is_exported(make: Callable[[], Pair]) -> None:
    """``torch.export`` takes a built model, and the exported program gives its outputs."""
    recorded, _, inputs = make()
    built = recorded.build(*inputs).eval()
    exported = torch.export.export(built, inputs)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(*inputs), built(*inputs))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own imports
def test_a_built_model_compiles_with_torchs_default_backend() -> None:
    """The compiled code of a built model gives its outputs."""
    recorded, _, inputs = mlp()
    built = recorded.build(*inputs).eval()
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(built, fullgraph=True)(*inputs), built(*inputs))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # the subject of the test
def test_a_built_model_is_scripted_where_torch_scripts_the_hand_written_one() -> None:
    """``torch.jit.trace`` and ``torch.jit.script`` take a built model."""
    recorded, _, inputs = mlp()
    built = recorded.build(*inputs).eval()
    for made in (torch.jit.trace(built, inputs), torch.jit.script(built)):
        torch.testing.assert_close(made(*inputs), built(*inputs))
