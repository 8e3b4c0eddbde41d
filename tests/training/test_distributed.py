"""Two processes train one application: they agree, and one process loads what they saved."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

import replayml
from tests.training.applications import QUIET, classifier, digits, plain_trainer

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, os, sys, warnings
import torch
from lightning.pytorch.trainer.states import TrainerFn
torch.set_num_threads(1)
import replayml
from pathlib import Path
from tests.training.applications import Hooked, best_path, digits, loader, network, saving

def main():
    strategy, folder = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))  # each process draws weights of its own
    app = Hooked(network(), optimizer=replayml.Adam(lr=0.05))
    app.still(0)
    options = saving(folder, devices=2, strategy=strategy)
    trainer = app.fit(loader(digits(), shuffle=True), loader(digits()), max_epochs=8, **options)
    report = {
        "rank": trainer.global_rank,
        "world": trainer.world_size,
        "seen": [name for name, *_ in app.seen],
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "weights": [float(parameter.detach().double().sum()) for parameter in app.parameters()],
        "path": best_path(trainer),
    }
    (folder / f"report{trainer.global_rank}.json").write_text(json.dumps(report))

if __name__ == "__main__":
    main()
"""


def run(strategy: str, folder: Path) -> list[dict[str, Any]]:
    """Train in two processes and return what each reports."""
    script = folder / "train.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script), strategy, str(folder)]
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("report*.json"))]


def check_checkpoint(report: dict[str, Any]) -> None:
    """Assert that one process loads the checkpoint, and that it is what was reported."""
    app = replayml.Application.load_from_checkpoint(report["path"])
    assert [float(parameter.detach().double().sum()) for parameter in app.parameters()] == report["weights"]
    found = app.validate(digits(), **QUIET)
    assert found["val_accuracy"] == pytest.approx(report["metrics"]["val_accuracy"])
    assert found["val_loss"] == pytest.approx(report["metrics"]["val_loss"], rel=1e-3)
    assert not any("replayml_random_state" in key for key in torch.load(report["path"], weights_only=True))


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Under DDP both processes end with the same weights and metrics, run their hooks, and the checkpoint loads."""
    first, second = run("ddp", tmp_path)
    assert (first["rank"], second["rank"], first["world"]) == (0, 1, 2)
    assert first["weights"] == second["weights"]
    for name in ("val_loss", "val_accuracy", "train_accuracy", "train_loss"):
        assert first["metrics"][name] == pytest.approx(second["metrics"][name])
    assert first["metrics"]["val_accuracy"] > 0.5
    assert first["seen"] == second["seen"] == ["still"]
    check_checkpoint(first)


@pytest.mark.distributed
@pytest.mark.slow
def test_spawned_processes_hand_the_weights_back(tmp_path: Path) -> None:
    """Under ddp_spawn an unbuilt application is sent to the processes, and the trained weights come back."""
    (report,) = run("ddp_spawn", tmp_path)
    assert report["metrics"]["val_accuracy"] > 0.5
    check_checkpoint(report)


def test_spawning_asks_for_a_built_model(tmp_path: Path) -> None:
    """A plain trainer that would spawn with an unbuilt application says to build it, before it trains."""
    app = classifier()
    trainer = plain_trainer(strategy="ddp_spawn", devices=1)
    trainer.state.fn = TrainerFn.FITTING
    app.trainer = trainer
    with pytest.raises(replayml.NotBuiltError, match=r"in processes of its own.*Build it first: app.build\(x\)"):
        app.configure_model()
    app.build(digits()[0][:1]).configure_model()
