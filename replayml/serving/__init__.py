"""Serving: a module behind HTTP, in processes of its own, and the client that calls it.

    ServerModule ─► Supervisor (a thread of the program) ─► worker processes: replay the model, answer requests
         └────────► Client ──── HTTP ────────────────────────────┘
    UrlModule ────► Client ──── HTTP ─────────────► a service of any program, by its address or name: see `gateway`

Needs the extra ``serve``; names need ``redis`` as well.
"""

from importlib.util import find_spec

for _name in ("httptools", "httpx2", "orjson", "prometheus_client", "starlette", "uvicorn"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(
            f"serving needs {_name}, which is not installed. Install the extra: pip install 'replayml[serve]'",
            name=_name,
        )
