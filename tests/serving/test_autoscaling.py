"""What ``backend="ray"`` takes, as far as it can be checked without Ray."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from replayml.core.errors import ConfigurationError
from replayml.serving.on_ray.autoscaling import Autoscaling
from replayml.serving.server import ServerModule
from tests.serving import services


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "lacks 'max_replicas', how many run at most"),
        ({"max_replica": 3}, "has no 'max_replica'. Did you mean 'max_replicas'"),
        ({"max_replicas": 0}, "max_replicas is a whole number from 1, not 0"),
        ({"max_replicas": 2.5}, "max_replicas is a whole number from 1, not 2.5"),
        ({"max_replicas": True}, "max_replicas is a whole number from 1, not True"),
        ({"max_replicas": 2, "min_replicas": 3}, "max_replicas, 2, is less than min_replicas, 3"),
        ({"max_replicas": 2, "target_ongoing_requests": 0}, "target_ongoing_requests is a number above 0, not 0"),
        ({"max_replicas": 2, "target_ongoing_requests": float("nan")}, "is a number above 0, not nan"),
        ({"max_replicas": 2, "upscale_delay_s": -1}, "upscale_delay_s is seconds, from 0, not -1"),
        ([("max_replicas", 2)], "autoscaling is a dict such as"),
    ],
)
def test_a_mistake_is_told_where_the_service_is_made(given: Any, message: str) -> None:
    """What Ray could not take is refused at once, with what would be right."""
    with pytest.raises(ConfigurationError, match=message):
        ServerModule(services.echo, backend="ray", autoscaling=given)


def test_replicas_are_the_least_where_nothing_else_is_given() -> None:
    """``replicas`` counts where ``autoscaling`` does not."""
    assert Autoscaling.of(None, replicas=3) == Autoscaling(3, 3)
    assert Autoscaling.of({"max_replicas": 5}, replicas=3) == Autoscaling(3, 5)
    assert Autoscaling.of({"min_replicas": 1, "max_replicas": 5}, replicas=3).min_replicas == 1
    with pytest.raises(ConfigurationError, match="max_replicas, 2, is less than min_replicas, 3"):
        ServerModule(services.echo, backend="ray", replicas=3, autoscaling={"max_replicas": 2})


def test_processes_of_this_machine_take_no_autoscaling() -> None:
    """``autoscaling`` belongs to a cluster."""
    with pytest.raises(ConfigurationError, match="autoscaling= needs backend='ray'"):
        ServerModule(services.echo, autoscaling={"max_replicas": 2})


def test_a_service_on_ray_is_made_again() -> None:
    """The constructor call says all: ``new()`` of it is the same service."""
    service = ServerModule(services.Shift(2), backend="ray", autoscaling={"max_replicas": 2})
    assert service.new().recipe().to_json() == service.recipe().to_json()


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray the service can be made, and tells at its start what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    service = ServerModule(services.echo, backend="ray")
    with pytest.raises(
        ModuleNotFoundError, match=r"needs ray, which is not installed. .* pip install 'replayml\[ray\]'"
    ):
        service.start()


def test_nothing_imports_ray() -> None:
    """A program that uses services, also one on Ray, does not load Ray itself."""
    code = (
        "import sys, replayml.cli.serve, replayml.serving.on_ray.ray; "
        "from replayml.serving.server import ServerModule; "
        "ServerModule(abs, backend='ray'); print('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
