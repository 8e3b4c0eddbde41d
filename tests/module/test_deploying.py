"""Deploying all modules at once, where the environment names a gateway."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, ClassVar

import pytest

import replayml
from replayml.core.errors import LifecycleError
from replayml.module.deploying import GATEWAY, Job, all_at_once, alone

PATIENCE = 300.0

told: ContextVar[list[str]] = ContextVar("told")


@pytest.fixture(autouse=True)
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order; the gateway itself is asked by nobody here."""
    monkeypatch.setenv(GATEWAY, "redis://127.0.0.1:9")
    happened: list[str] = []
    told.set(happened)
    return happened


class Part(replayml.Module):
    """A module that tells what is done with it."""

    def __init__(self, name: str, *parts: Any, meets: threading.Barrier | None = None, fails: bool = False) -> None:
        self.name = name
        self.parts = replayml.LayerList(*parts)
        self._meets = meets
        self._fails = fails

    def _get_deploy_tasks(self) -> Callable[[], Any]:
        return self._deploy

    def _deploy(self) -> None:
        told.get().append(f"{self.name} begins")
        if self._meets is not None:
            self._meets.wait(PATIENCE)
        if self._fails:
            raise ValueError(f"{self.name} fails")
        told.get().append(f"{self.name} is up")

    def _announce_deployment(self) -> None:
        told.get().append(f"{self.name} is announced")

    def _stop_deployed(self) -> None:
        told.get().append(f"{self.name} is stopped")


class Named(Part):
    """A module that others find by its name."""

    _finds_by_name: ClassVar[bool] = True


def test_modules_that_find_one_another_are_deployed_at_once(events: list[str]) -> None:
    """A parent and its children begin while none of them is up; all are announced before any begins."""
    meets = threading.Barrier(3)
    top = Named("top", Named("a", meets=meets), Named("b", meets=meets), meets=meets)
    top.start()
    assert events[:3] == ["a is announced", "b is announced", "top is announced"]
    assert sorted(events[3:6]) == ["a begins", "b begins", "top begins"]
    assert sorted(events[6:]) == ["a is up", "b is up", "top is up"]
    assert set(top.status().values()) == {"deployed"}


def test_other_modules_wait_for_those_below_them(events: list[str]) -> None:
    """What knows nothing of names begins when its children are up; these run at the same time."""
    meets = threading.Barrier(2)
    Part("top", Part("a", meets=meets), Part("b", meets=meets)).update()
    assert events.index("top begins") > max(events.index("a is up"), events.index("b is up"))
    assert sorted(events[3:5]) == ["a begins", "b begins"]


def test_without_a_gateway_they_are_deployed_in_order(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, children first."""
    monkeypatch.delenv(GATEWAY)
    Named("top", Named("a")).start()
    expected = ["a is announced", "a begins", "a is up", "top is announced", "top begins", "top is up"]
    assert events == expected


def test_a_failure_stops_the_others(events: list[str]) -> None:
    """The first failure in the order of the tree is raised, with its path; all that was begun is stopped."""
    meets = threading.Barrier(3)
    top = Named("top", Named("a", meets=meets, fails=True), Named("b", meets=meets), meets=meets, fails=True)
    with pytest.raises(ValueError, match="a fails") as found:
        top.start()
    assert any("while deploying model.parts.0 (Named)" in note for note in found.value.__notes__)
    assert any("another one failed as well: ValueError: top fails" in note for note in found.value.__notes__)
    assert events[-3:] == ["top is stopped", "b is stopped", "a is stopped"]
    assert set(top.status().values()) == {"stopped"}


def test_what_waits_for_a_failed_one_is_not_started(events: list[str]) -> None:
    """A parent whose child could not be deployed does not begin."""
    with pytest.raises(ValueError, match="a fails"):
        Part("top", Part("a", fails=True)).start()
    assert "top begins" not in events


def test_what_ran_before_runs_on(events: list[str]) -> None:
    """An update that fails stops what it started, and nothing else."""
    old, new = Named("old"), Named("new", fails=True)
    top = Named("top", old, new)
    old.start()
    events.clear()
    with pytest.raises(ValueError, match="new fails"):
        top.update()
    assert [event for event in events if "stopped" in event] == ["top is stopped", "new is stopped"]
    assert old.status() == {"model": "deployed"}


class Hooked(Named):
    """A module whose hooks tell when they run."""

    @replayml.after_deploy
    def note_after(self) -> None:
        told.get().append(f"after {self.name}")

    @replayml.before_deploy
    def note_before(self) -> None:
        told.get().append(f"before {self.name}")


def test_hooks_run_in_order_around_all_deployments(events: list[str]) -> None:
    """Those before come before any deployment, those after when all are up, children first; once each."""
    top = Hooked("top", Hooked("a"))
    for module in (top, top.parts[0]):
        module.note_after()
        module.note_before()
    top.start()
    hooks = [event for event in events if event.startswith(("before", "after"))]
    assert hooks == ["before a", "before top", "after a", "after top"]
    assert events.index("before top") < min(events.index("a begins"), events.index("top begins"))
    assert events.index("after a") > max(events.index("a is up"), events.index("top is up"))


def test_a_call_from_a_deployment_is_part_of_it() -> None:
    """A task that starts what belongs to the same call is not told that another call is running."""

    class Restless(Part):
        def _deploy(self) -> None:
            super()._deploy()
            self.parts[0].start()

    top = Restless("top", Part("a"))
    top.start()
    assert set(top.status().values()) == {"deployed"}


def test_a_second_call_meanwhile_is_refused() -> None:
    """While modules are being deployed, another thread changes nothing."""
    meets = threading.Barrier(2)
    top = Named("top", Named("a", meets=meets))
    thread = threading.Thread(target=copy_context().run, args=(top.start,))
    thread.start()
    try:
        while meets.n_waiting == 0:
            assert thread.is_alive()
            time.sleep(0.005)
        with pytest.raises(LifecycleError, match=r"takes part in start\(\) of Named"):
            top.start()
    finally:
        meets.wait(PATIENCE)
        thread.join(PATIENCE)


def test_one_at_a_time_where_that_is_asked_for() -> None:
    """What takes its turn overlaps with no other; outside of deployments nobody waits."""
    inside: list[int] = []
    most: list[int] = []

    def take_turn() -> None:
        with alone():
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    all_at_once([Job(take_turn, replayml.Module(), False) for _ in range(20)])
    assert most == [1] * 20
    with alone(), alone():
        take_turn()


def test_an_interrupt_waits_for_what_has_begun(events: list[str]) -> None:
    """No thread of a deployment is left behind."""
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        all_at_once([Job(_interrupt, replayml.Module(), False), Job(lambda: None, replayml.Module(), False)])
    assert threading.active_count() == before


def _interrupt() -> None:
    raise KeyboardInterrupt
