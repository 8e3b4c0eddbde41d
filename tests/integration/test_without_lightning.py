"""A model is loaded, used and saved with torch alone: no Lightning, no extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import replayml

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"lightning", "pytorch_lightning", "torchmetrics", "rich", "sklearn", "matplotlib",
                                      "huggingface_hub"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refusing())

import torch
torch.set_num_threads(1)
import replayml
for name in sys.argv[1:]:
    model = replayml.load(name)
    print(model(torch.ones(1, 3)).tolist() == torch.load("expected.pt").tolist())
    model.save("again.replayml")
    print(replayml.load("again.replayml", at="0").weight.shape[0])
    print(replayml.load(name, weights=False).configure(0, out_features=5).build().save("wider"))
    print(replayml.load("wider")[0].out_features)
try:
    replayml.load("app.replayml")
except ImportError as error:
    print(error)
"""


@pytest.mark.slow
def test_loading_needs_torch_alone(tmp_path: Path) -> None:
    """Where importing Lightning or an extra raises, model files of all forms are loaded, changed and saved."""
    model = replayml.Sequential(replayml.Layer(nn.Linear, 3, 2)).build().eval()
    for name in ("model.replayml", "folder"):
        model.save(tmp_path / name)
    model.save_pretrained(tmp_path / "pretrained")
    replayml.Regressor(replayml.Layer(nn.Linear, 3, 2)).build().save(tmp_path / "app.replayml")
    torch.save(model(torch.ones(1, 3)).detach(), tmp_path / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "model.replayml", "folder", "pretrained"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *loaded, missing = done.stdout.splitlines()
    assert loaded == ["True", "2", "None", "5"] * 3
    assert missing == "lightning is not installed here"
