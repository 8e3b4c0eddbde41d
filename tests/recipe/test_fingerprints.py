"""The fingerprints of fifty models: equal in every process, and equal to those that were stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.recipe.fixed_models import MODELS, fingerprint

STORED: dict[str, str] = json.loads(Path(__file__).with_name("fingerprints.json").read_text())
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", MODELS)
def test_a_fingerprint_is_the_one_that_was_stored(name: str) -> None:
    """A model has the fingerprint that it had when it was first written."""
    assert fingerprint(MODELS[name]()) == STORED[name]


def test_fifty_models_have_fifty_fingerprints() -> None:
    """Every stored fingerprint is that of one model; a copy has that of its original."""
    assert STORED.keys() == MODELS.keys()
    assert len(MODELS) == 50
    assert STORED["copied"] == STORED["shared"]
    assert len(set(STORED.values())) == 49


@pytest.mark.parametrize("seed", ["1", "2"])
def test_fingerprints_are_equal_in_processes_with_other_hashes(seed: str) -> None:
    """Neither the order of sets nor the seed of torch plays a part."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.recipe.fixed_models import show; show()"],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == STORED


def test_a_fingerprint_does_not_depend_on_the_line_or_the_weights() -> None:
    """The same model, made elsewhere and built with other weights, has the same fingerprint."""
    make = MODELS["sequential"]
    torch.manual_seed(1)
    one = make().build()
    torch.manual_seed(2)
    assert fingerprint(one) == fingerprint(make().build()) == STORED["sequential"]
