"""Which files are not looked through for examples to run: those that need an extra which is not installed."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("ray") else ["replayml/serving/on_ray/ray_*.py"]
