"""Where requests run: in the thread of the model, or in the event loop where that is sure to be short."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import replayml
from replayml.serving.errors import Refusal
from replayml.serving.packing.packing import pack, write_example
from replayml.serving.packing.spec import Spec
from replayml.serving.worker.batching import Batcher
from replayml.serving.worker.target import Target
from tests.serving import services

_LONG = 0.02  # far more than the event loop may be busy with a model


def _batcher(function: Callable[..., Any], *, rows: int = 0, is_steady: bool = True, room: int = 256) -> Batcher:
    """Return a batcher of the running event loop."""
    return Batcher(function, most_rows=rows, wait=0.0, room=room, is_steady=is_steady, observe=lambda *_: None)


def _work(seconds: float) -> None:
    """Use the processor for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _where(*_: Any) -> int:
    return threading.get_ident()


async def _run(batcher: Batcher, *args: Any, is_alone: bool = True) -> Any:
    return await batcher.submit(args, {}, len(args[0]) if args else None, is_alone=is_alone)


def _in_a_loop(test: Callable[[], Any]) -> Any:
    """Run a test in an event loop, in time."""
    return asyncio.run(asyncio.wait_for(test(), 120))


def test_code_of_the_user_never_runs_in_the_event_loop() -> None:
    """What is not steady runs in its thread, however short it is."""

    async def test() -> None:
        batcher = _batcher(_where, is_steady=False)
        assert threading.get_ident() not in [await _run(batcher) for _ in range(50)]
        batcher.close()

    _in_a_loop(test)


@pytest.mark.parametrize("rows", [0, 8])
def test_what_is_steady_and_short_runs_in_the_event_loop(rows: int) -> None:
    """Once a run was short, the next one needs no thread."""

    async def test() -> None:
        batcher = _batcher(lambda x: [threading.get_ident()] * len(x) if rows else threading.get_ident(), rows=rows)
        x = torch.zeros(1, 1)
        while await batcher.submit((x,), {}, 1, is_alone=True) not in (threading.get_ident(), [threading.get_ident()]):
            await asyncio.sleep(0.01)  # another program took the processor
        batcher.close()

    _in_a_loop(test)


def test_after_a_long_run_the_thread_is_used() -> None:
    """A model that takes long blocks the event loop once at most."""

    async def test() -> None:
        def function(is_long: bool) -> int:
            _work(_LONG if is_long else 0)
            return threading.get_ident()

        batcher = _batcher(function)
        await batcher.submit((True,), {}, None, is_alone=True)
        assert await batcher.submit((False,), {}, None, is_alone=True) != threading.get_ident()
        batcher.close()

    _in_a_loop(test)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_model_never_runs_twice_at_once_and_keeps_the_order(sizes: list[tuple[int, bool, bool]]) -> None:
    """Wherever requests run, they do so one after the other, in their order, and each gets its own rows."""
    order: list[int] = []
    is_running = threading.Lock()

    def function(x: torch.Tensor) -> torch.Tensor:
        assert is_running.acquire(blocking=False), "the model runs already"
        order.extend(x[:, 0].int().tolist())
        _work(0.006 if x[:, 1].any() else 0)
        is_running.release()
        return x * 2

    async def test() -> None:
        batcher = _batcher(function, rows=8)
        inputs = []
        futures = []
        for number, (rows, is_long, pauses) in enumerate(sizes):
            inputs.append(torch.tensor([[float(number), float(is_long)]] * rows))
            futures.append(batcher.submit((inputs[-1],), {}, rows, is_alone=number % 3 == 0 and pauses))
            if pauses:
                await futures[-1]
        for x, future in zip(inputs, futures, strict=True):
            assert torch.equal(await future, x * 2)
        batcher.close()

    _in_a_loop(test)
    assert order == [number for number, (rows, _, _) in enumerate(sizes) for _ in range(rows)]


def test_who_left_is_left_out() -> None:
    """A request that nobody waits for does not run in the event loop either."""

    async def test() -> None:
        ran: list[float] = []
        places: set[int] = set()

        def function(x: torch.Tensor) -> torch.Tensor:
            ran.extend(x[:, 0].tolist())
            places.add(threading.get_ident())
            return x

        batcher = _batcher(function, rows=8)
        while places != {threading.get_ident()}:  # until all of it ran in the event loop
            await _run(batcher, torch.zeros(1, 1))
            ran.clear()
            places.clear()
            futures = [batcher.submit((torch.full((1, 1), float(number)),), {}, 1) for number in (1, 2, 3)]
            futures[1].cancel()
            await asyncio.gather(*futures, return_exceptions=True)
        assert ran == [1.0, 3.0]
        batcher.close()

    _in_a_loop(test)


def test_what_comes_in_several_turns_of_the_event_loop_runs_at_once() -> None:
    """Requests wait in the event loop as long as each of its turns brings more, and are one batch then."""

    async def test() -> None:
        sizes: list[int] = []
        places: list[int] = []

        def function(x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            places.append(threading.get_ident())
            return x

        batcher = _batcher(function, rows=8)
        while places != [threading.get_ident()]:  # until it ran in the event loop
            sizes.clear()
            places.clear()
            futures = []
            for _ in range(3):
                futures += [batcher.submit((torch.zeros(1, 1),), {}, 1) for _ in range(2)]
                await asyncio.sleep(0)  # a turn
            await asyncio.gather(*futures)
        assert sizes == [6]
        batcher.close()

    _in_a_loop(test)


def test_nobody_waits_for_more_than_a_batch() -> None:
    """Where each turn of the event loop brings more, what is there runs when it is a batch; nobody is refused."""

    async def test() -> None:
        places: set[int] = set()

        def function(x: torch.Tensor) -> torch.Tensor:
            places.add(threading.get_ident())
            return x

        batcher = _batcher(function, rows=8, room=4)
        turns = 0
        while places != {threading.get_ident()}:  # until all of it ran in the event loop
            await _run(batcher, torch.zeros(1, 1))
            places.clear()
            futures = []
            turns = 0
            try:
                while not futures or not futures[0].done():
                    futures.append(batcher.submit((torch.zeros(1, 1),), {}, 1))
                    await asyncio.sleep(0)
                    turns += 1
            except Refusal:  # so many wait for the thread
                places.add(0)
            await asyncio.gather(*futures)
        assert turns <= 10
        batcher.close()

    _in_a_loop(test)


def test_there_is_room_for_so_many() -> None:
    """Further requests are refused, wherever the others wait."""

    async def test() -> None:
        let = threading.Event()
        batcher = _batcher(lambda: let.wait(60), is_steady=False, room=2)
        first = batcher.submit((), {}, None)
        while batcher.waiting:
            await asyncio.sleep(0.01)
        others = [batcher.submit((), {}, None) for _ in range(2)]
        with pytest.raises(Refusal, match="busy"):
            batcher.submit((), {}, None)
        let.set()
        await asyncio.gather(first, *others)
        batcher.close()

    _in_a_loop(test)


@pytest.mark.parametrize(
    ("make", "is_steady"),
    [
        (lambda: replayml.MultiLayerPerceptron(4, [8], 2), True),
        (lambda: replayml.Sequential(replayml.Layer(torch.nn.Linear, 4, 4), replayml.Layer(torch.nn.ReLU)), True),
        (services.Picky, False),
        (services.Shift, False),
        (lambda: replayml.Sequential(replayml.Layer(torch.nn.Linear, 4, 4), services.Shift()), False),
    ],
    ids=["blocks", "layers of torch", "own module", "own module without weights", "own module inside"],
)
def test_only_layers_of_torch_and_replayml_are_steady(
    make: Callable[[], replayml.Module], is_steady: bool, tmp_path: Path
) -> None:
    """A model with code of the user in it is not steady, at whatever depth."""
    model = make().build(seed=0)
    spec = Spec(
        **pack(model, tmp_path), example=write_example([torch.zeros(1, 3 if "Picky" in repr(model) else 4)], tmp_path)
    )
    assert Target(spec).is_steady == is_steady


# Steps of streams -----------------------------------------------------------------------------------------------


def test_steps_and_requests_take_turns_and_steps_take_no_room() -> None:
    """However many steps wait, requests have their room, and one of each runs after the other."""

    async def test() -> None:
        let, has_begun = threading.Event(), threading.Event()
        order: list[str] = []
        batcher = _batcher(order.append, is_steady=False, room=3)

        def hold() -> None:
            has_begun.set()
            let.wait(60)

        batcher.call(hold)
        await asyncio.to_thread(has_begun.wait, 60)
        for _ in range(300):
            batcher.call(lambda: order.append("step"))
        futures = [batcher.submit(("request",), {}, None) for _ in range(3)]
        assert batcher.waiting == 3
        with pytest.raises(Refusal, match="busy"):
            batcher.submit(("request",), {}, None)
        let.set()
        await asyncio.gather(*futures)
        batcher.close()
        await asyncio.to_thread(batcher.join, 60)
        assert order[:6] == ["request", "step"] * 3
        assert order.count("step") == 300

    _in_a_loop(test)
