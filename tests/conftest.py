"""What holds for every test: the Hypothesis profile, one torch thread per process, and what several tests need.

The profile is ``ci`` where the variable ``CI`` is set, ``default`` elsewhere, and whatever ``HYPOTHESIS_PROFILE``
names where that is set.
"""

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code.
_UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

settings.register_profile("default", _UNTIMED, max_examples=50, derandomize=True)
settings.register_profile("ci", _UNTIMED, max_examples=100, derandomize=True, print_blob=True)
settings.register_profile("thorough", _UNTIMED, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

# The tests run side by side; threads of one would take the cores of another.
torch.set_num_threads(1)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Let Ctrl-C raise in a test, whatever stands there: another library may have left it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
