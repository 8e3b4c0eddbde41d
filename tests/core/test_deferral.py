"""Deferral: what an ``__init__`` configures in a child takes effect later, and nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from replayml.layers.layer import Layer
from replayml.module.module import Module


class Picky(Module):
    """A module that refuses a width."""

    def __init__(self, width: int = 1) -> None:
        if width == 13:
            raise ValueError("13 is no width")
        self.width = width
        self.layer = Layer(nn.Linear, 1, width)


class Careful(Module):
    """A module that catches what its child refuses."""

    def __init__(self, width: int = 1) -> None:
        self.inner = Picky()
        try:
            self.inner.configure(width=width)
        except ValueError:
            self.inner.configure(width=99)


class Careless(Module):
    """A module that does not."""

    def __init__(self, width: int = 1) -> None:
        self.inner = Picky()
        self.inner.configure(width=width)
        self.seen = self.inner.width


class Deep(Module):
    """One above both."""

    def __init__(self, cls: type[Module], width: int = 1) -> None:
        self.below: Any = cls()
        self.below.configure(width=width)


def test_an_init_catches_what_a_child_refuses() -> None:
    """``try: child.configure(...)`` catches the error of the child's ``__init__``, each time that it runs."""
    assert Careful(13).inner.width == 99
    model = Careful(2)
    assert model.inner.layer.out_features == 2
    model.configure(width=13)
    assert model.inner.layer.out_features == model.new().inner.layer.out_features == 99
    deep = Deep(Careful, 13)
    assert deep.below.inner.width == 99
    assert deep.configure(width=5).below.inner.width == 5
    assert deep.configure(width=13).new().below.inner.width == 99


@pytest.mark.parametrize("make", [lambda: Careless(13), lambda: Deep(Careless, 13)])
def test_an_error_comes_out_of_the_call_that_caused_it(make: Any) -> None:
    """The traceback of a refused setting leads to the line of the ``__init__`` that made it."""
    with pytest.raises(ValueError, match="13 is no width") as caught:
        make()
    lines = [str(entry.statement).strip() for entry in caught.traceback]
    assert any("self.inner.configure(width=width)" in line for line in lines)


def test_a_refused_setting_leaves_the_model_as_it_was() -> None:
    """Trying once more with nothing deferred changes nothing when it fails as well."""
    model = Deep(Careless, 2)
    with pytest.raises(ValueError, match="13 is no width"):
        model.configure(width=13)
    assert (model.below.inner.width, model.below.seen, len(model.tape)) == (2, 2, 0)
    assert model.configure(width=3).below.seen == 3


def test_a_child_that_waits_answers_as_its_own_class_does() -> None:
    """A ``__getattribute__`` of the user's class is asked, and ``isinstance`` is right."""

    class Answering(Module):
        def __init__(self, width: int = 1) -> None:
            self.width = width

        def __getattribute__(self, name: str) -> Any:
            return "answer" if name == "question" else super().__getattribute__(name)

    class Asking(Module):
        def __init__(self) -> None:
            self.inner = Answering()
            self.inner.configure(width=2)
            self.right = isinstance(self.inner, Answering)
            self.answer = self.inner.question
            self.width = self.inner.width

    model = Asking()
    assert (model.right, model.answer, model.width, type(model.inner)) == (True, "answer", 2, Answering)
