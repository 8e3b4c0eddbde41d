"""Deeplay, in an environment of its own, beside replayml: construct, ``new`` and ``build`` of the same model.

There is no budget: the figures show where the two stand.
"""

from __future__ import annotations

import json
import subprocess

from benchmarks.measure import Result, best_of, shown
from benchmarks.models import Recorded

COUNT = 100

SCRIPT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import deeplay as dl
from torch import nn
class Net(dl.DeeplayModule):
    def __init__(self, count):
        super().__init__()
        self.layers = dl.LayerList(*[dl.Layer(nn.Linear, 64, 64) for _ in range(count)])
def once(task):
    start = time.perf_counter()
    result = task()
    return time.perf_counter() - start, result
count = int(sys.argv[1])
construct, model = once(lambda: Net(count))
new, copy = once(model.new)
build, _ = once(copy.build)
print(json.dumps([construct, new, build]))
"""


def run(python: str) -> list[Result]:
    """Measure Deeplay with the interpreter of its environment."""
    done = subprocess.run([python, "-c", SCRIPT, str(COUNT)], check=True, capture_output=True, text=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    model = Recorded(COUNT)
    ours = best_of(lambda: Recorded(COUNT), model.new, lambda: model.create(), rounds=3)
    names = ("construct", "new()", "build")
    return [
        Result(f"{name} of {COUNT} layers, Deeplay / replayml", slow / fast, 1.0, f"{shown(slow)}, {shown(fast)}", True)
        for name, slow, fast in zip(names, theirs, ours, strict=True)
    ]
