"""Whoever waits too long for an answer is told so, and no sooner."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replayml.serving.errors import Refusal
from replayml.serving.worker.deadlines import Deadlines

SECONDS = 0.02


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["wait", "leave", "answer"]), st.booleans()), min_size=1, max_size=12))
def test_what_is_still_waited_for_fails_and_no_sooner(steps: list[tuple[str, bool]]) -> None:
    """Each has all of its time, however many came before it; what was answered or left keeps what it has."""

    async def wait(deadlines: Deadlines, end: str) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        began = loop.time()
        deadlines.add(future)
        if end == "wait":
            with pytest.raises(Refusal, match="too-late"):
                await future
            assert loop.time() - began >= SECONDS
        elif end == "leave":
            deadlines.discard(future)
            await asyncio.sleep(2 * SECONDS)
            assert not future.done()
        else:
            future.set_result("in time")
            await asyncio.sleep(2 * SECONDS)
            assert future.result() == "in time"

    async def test() -> None:
        deadlines = Deadlines(SECONDS)
        waiting = []
        for end, pauses in steps:
            waiting.append(asyncio.create_task(wait(deadlines, end)))
            await asyncio.sleep(SECONDS / 3 if pauses else 0)
        await asyncio.gather(*waiting)

    asyncio.run(asyncio.wait_for(test(), 120))


def test_nothing_is_kept_of_what_is_no_longer_waited_for() -> None:
    """An answer that came in time goes at once, and not when its time would have been over."""

    async def test() -> None:
        deadlines = Deadlines(3600.0)
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        deadlines.add(future)
        known = weakref.ref(future)
        deadlines.discard(future)
        del future
        gc.collect()
        assert known() is None

    asyncio.run(test())
