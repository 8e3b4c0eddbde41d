"""A worker in front of a model that runs elsewhere: it knows of it what the model's own worker does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from replayml.serving.errors import Refusal
from replayml.serving.messages.openapi import openapi
from replayml.serving.on_ray.remote import RemoteTarget, facts_of
from replayml.serving.packing.packing import write_example
from replayml.serving.packing.spec import Spec
from replayml.serving.worker.target import Target
from tests.serving import services
from tests.serving.services import Picky

GIVEN = [
    {"args": [[[1.0, 2.0, 3.0]]]},
    {"args": [[[1.0, 2.0]]]},
    {"args": [3]},
    {"args": [3], "kwargs": {"by": 4}},
    {"args": [3], "kwargs": {"value": 4}},
    {"args": [], "kwargs": {"value": 4}},
    {"kwargs": {"x": [[1, 2, 3]]}},
    {"args": [1, 2, 3]},
    {"arg": []},
    [1],
    {},
]


def twins(folder: Path, **options: Any) -> tuple[Target, RemoteTarget]:
    """Return a target, and one that knows of it what travels."""
    spec = Spec(title="it", version=3, **options)
    target = Target(spec)
    path = folder / "front.json"
    path.write_bytes(orjson.dumps({"place": {"opening": 1}, "facts": facts_of(target)}))
    return target, RemoteTarget(Spec(title="it", version=3, **{**options, "kind": "remote", "place": str(path)}))


def outcome(target: Target, given: Any) -> str:
    """Return the arguments that come of a request, or its refusal."""
    try:
        return repr(target.arguments(given))
    except Refusal as refusal:
        return repr(refusal.args)


def check(target: Target, remote: RemoteTarget) -> None:
    """Both tell the same, and take and refuse the same."""
    assert openapi(remote, has_token=False, version=3) == openapi(target, has_token=False, version=3)
    for given in GIVEN:
        assert outcome(remote, given) == outcome(target, given)


@pytest.mark.parametrize("name", ["echo", "scaled", "process", "nan"])
def test_of_a_function_it_knows_the_signature(tmp_path: Path, name: str) -> None:
    """Requests for a function are bound to its arguments."""
    check(*twins(tmp_path, kind="function", place=f"tests.serving.services:{name}"))


def test_of_a_built_in_function_it_knows_nothing(tmp_path: Path) -> None:
    """A function without a signature takes what comes."""
    check(*twins(tmp_path, kind="function", place="builtins:max"))


@pytest.mark.parametrize("rows", [0, 4])
def test_of_a_model_it_knows_the_inputs_and_outputs(tmp_path: Path, rows: int) -> None:
    """Inputs and outputs of a model are told and checked as by the model's own worker."""
    Picky().build(seed=0).save(tmp_path / "model.replayml")
    check(
        *twins(
            tmp_path,
            kind="model",
            place=str(tmp_path / "model.replayml"),
            trust=("tests.serving.services:Picky",),
            example=write_example([torch.ones(1, 3)], tmp_path),
            has_rows=bool(rows),
            most_rows=rows,
        )
    )


def test_of_a_model_it_knows_the_further_arguments(tmp_path: Path) -> None:
    """What a model takes besides its example, with the defaults, is told and placed as by the model's own worker."""
    services.Named().build(seed=0).save(tmp_path / "model.replayml")
    example = write_example([torch.ones(1, 3)], tmp_path)
    place, trust = str(tmp_path / "model.replayml"), ("tests.serving.services:Named",)
    target, remote = twins(tmp_path, kind="model", place=place, trust=trust, example=example)
    check(target, remote)
    given = {"args": [[[1.0, 2.0, 3.0]], 4], "kwargs": {"tag": "a"}}
    assert "{'by': 4, 'tag': 'a'}" in outcome(remote, given)
    assert outcome(remote, given) == outcome(target, given)


def test_it_runs_nothing(tmp_path: Path) -> None:
    """There is no model to run."""
    _, remote = twins(tmp_path, kind="function", place=f"{services.__name__}:echo")
    with pytest.raises(NotImplementedError, match="it runs elsewhere"):
        remote(1)
