"""What two processes save together, one process loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import replayml

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
import torch
torch.set_num_threads(1)
import replayml
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from pathlib import Path
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from tests.training.applications import QUIET, digits, loader, network

class Sharded(replayml.Classifier):
    def configure_model(self):
        super().configure_model()
        self.model[0].bias.requires_grad_(False)
        self.model[2].eval()
        if self.device_mesh is not None:
            for layer in (self.model[0], self.model[2]):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

def main():
    strategy, folder = sys.argv[1], Path(sys.argv[2])
    made = DDPStrategy() if strategy == "ddp" else ModelParallelStrategy(save_distributed_checkpoint=False)
    app = Sharded(network(inputs=64), num_classes=10)
    trainer = app.fit(loader(digits()), max_epochs=1, **{**QUIET, "strategy": made, "devices": 2})
    assert isinstance(app.model[0].weight, DTensor) == (strategy == "sharded")
    trainer.save_checkpoint(folder / "app.ckpt")
    app.save(folder / "app.replayml")
    app.save(folder / "app")
    whole = {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in app.state_dict().items()
    }
    if trainer.is_global_zero:
        torch.save(whole, folder / "expected.pt")

if __name__ == "__main__":
    main()
"""


def run(program: str, strategy: str, folder: Path) -> None:
    """Run a program, which starts a second process of its own, to its end."""
    (folder / "train.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(folder / "train.py"), strategy, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_what_two_processes_save_is_loaded_by_one(strategy: str, tmp_path: Path) -> None:
    """Under DDP, and with weights sharded by FSDP2, checkpoint, model file and folder hold the whole weights.

    What is frozen, and in eval mode, comes back as well.
    """
    run(PROGRAM, strategy, tmp_path)
    expected = torch.load(tmp_path / "expected.pt")
    for name in ("app.ckpt", "app.replayml", "app"):
        app = replayml.load(tmp_path / name, rename={"__main__.Sharded": "replayml.training.classifier.Classifier"})
        assert type(app) is replayml.Classifier
        assert [key for key, weight in app.named_parameters() if not weight.requires_grad] == ["model.0.bias"]
        assert [key for key, module in app.named_modules() if not module.training] == ["model.2"]
        state = app.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], value) for key, value in expected.items())


RESUMING = (
    PROGRAM.split("def main")[0]
    + """
from lightning.pytorch.callbacks import ModelCheckpoint

def trained(folder, epochs, **more):
    torch.manual_seed(0)
    app = Sharded(network(inputs=64), num_classes=10, optimizer=replayml.Adam(lr=0.01))
    made = DDPStrategy() if sys.argv[1] == "ddp" else ModelParallelStrategy(save_distributed_checkpoint=False)
    options = {**QUIET, "strategy": made, "devices": 2, "enable_checkpointing": True}
    keeping = ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True)
    app.fit(loader(digits(), shuffle=True), max_epochs=epochs, callbacks=[keeping], **options, **more)
    whole = [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in app.state_dict().values()]
    return [tensor.detach().clone() for tensor in whole]

def main():
    folder = Path(sys.argv[2])
    straight = trained(folder / "straight", 4)
    first = trained(folder / "first", 2)
    assert not all(map(torch.equal, first, straight))
    resumed = trained(folder / "second", 4, ckpt_path=folder / "first" / "last.ckpt")
    assert all(map(torch.equal, resumed, straight)), "the weights differ"

if __name__ == "__main__":
    main()
"""
)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_two_processes_resume_bit_identically(strategy: str, tmp_path: Path) -> None:
    """Two epochs, a checkpoint and two more give the very weights of four epochs, under DDP and FSDP2."""
    run(RESUMING, strategy, tmp_path)
