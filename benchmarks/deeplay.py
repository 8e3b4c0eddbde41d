"""Deeplay, in an environment of its own, beside replayml: the same model, constructed, configured, copied and built.

There is no budget: the figures show where the two stand. Each library runs the same script in processes of its own.

The environment, which holds Deeplay 0.1.4 beside the same torch:
    1. A virtual environment with torch, lightning, torchmetrics, scipy, matplotlib, rich and dill.
    2. ``pip install --no-deps`` of the rest: deeplay, torch-geometric, kornia, kornia_rs, scikit-image,
       imageio, tifffile, lazy_loader, pandas, requests, urllib3, certifi, charset-normalizer, xxhash.
    3. torchvision. Its wheels on PyPI are built for CUDA and do not load beside a torch without it. There, an empty
       package of that name will do, with modules ``models``, ``transforms`` and ``transforms.functional`` whose
       ``__getattr__`` returns an empty class for each name: Deeplay imports the names only, and no figure needs them.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys

from benchmarks.measure import Result, exponent, shown
from benchmarks.models import WIDTH

COUNTS = (100, 300)
ROUNDS = 3
STEPS = ("construct", "configure all", "new()", "build")

# The base class is the one name in which the two libraries differ.
SCRIPT = """
import gc, importlib, json, sys, time, warnings
warnings.simplefilter("ignore")
import torch
from torch import nn
name, base, count, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
library = importlib.import_module(name)
torch.set_num_threads(1)
class Net(getattr(library, base)):
    def __init__(self, count):
        super().__init__()
        self.layers = library.LayerList(*[library.Layer(nn.Linear, width, width) for _ in range(count)])
def once(task):
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    result = task()
    taken = time.perf_counter() - start
    gc.enable()
    return taken, result
once(Net(2).create)
construct, model = once(lambda: Net(count))
configure, _ = once(lambda: model.layers.configure(bias=False))
new, copy = once(model.new)
build, built = once(copy.build)
assert len(built.layers) == count and all(layer.bias is None for layer in built.layers)
print(json.dumps([construct, configure, new, build]))
"""


def _times(python: str, library: str, base: str, count: int) -> list[float]:
    command = [python, "-c", SCRIPT, library, base, str(count), str(WIDTH)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


def _best(known: list[float], times: list[float]) -> list[float]:
    return [min(pair) for pair in zip(known, times, strict=True)]


def run(python: str) -> list[Result]:
    """Measure both libraries in turn.

    Args:
        python: The interpreter of the environment that has Deeplay.
    """
    theirs = {count: [math.inf] * len(STEPS) for count in COUNTS}
    ours = {count: [math.inf] * len(STEPS) for count in COUNTS}
    for count in COUNTS:
        for _ in range(ROUNDS):
            theirs[count] = _best(theirs[count], _times(python, "deeplay", "DeeplayModule", count))
            ours[count] = _best(ours[count], _times(sys.executable, "replayml", "Module", count))
    results = []
    for number, step in enumerate(STEPS):
        for count in COUNTS:
            slow, fast = theirs[count][number], ours[count][number]
            what = f"{step}, {count} layers: Deeplay / replayml"
            results.append(Result(what, slow / fast, 1.0, f"{shown(slow)}, {shown(fast)}", at_least=True))
        slow = exponent(COUNTS, [theirs[count][number] for count in COUNTS])
        fast = exponent(COUNTS, [ours[count][number] for count in COUNTS])
        what = f"{step}, exponent of growth: Deeplay / replayml"
        results.append(Result(what, slow / fast, 1.0, f"{slow:.2f}, {fast:.2f}", at_least=True))
    return results
