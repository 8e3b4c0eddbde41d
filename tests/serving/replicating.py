"""A program in which a replica, without a cluster, is asked for all that is hard to write; it prints what came back.

It is a program of its own since Ray changes the process that it is used in.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from replayml.serving.messages.wire import decode, encode
from replayml.serving.on_ray.ray_replica import DEEPEST, Opened, _answered
from replayml.serving.packing.spec import Spec
from replayml.serving.worker.target import Target
from replayml.serving.worker.worker import Engine
from tests.serving import oddities


async def codes() -> dict[str, str]:
    """Return the code of each answer."""
    spec = Spec("function", "tests.serving.oddities:play", "play")
    target = Target(spec)
    batcher = Engine().batcher(target, spec, lambda *_: None)

    async def code(*args: str) -> str:
        body = encode({"args": args, "kwargs": {}, "rows": None})
        reply: dict[str, Any] = decode(bytearray(await _answered(Opened(target, batcher, 60.0), body)), DEEPEST)
        return str(reply["code"])

    asked = [("fail", name) for name in oddities.ERRORS] + [("result", name) for name in oddities.RESULTS]
    try:
        return {" ".join(args): await code(*args) for args in asked}
    finally:
        batcher.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(codes())))
