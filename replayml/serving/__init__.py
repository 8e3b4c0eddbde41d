"""Serving: a module behind HTTP, in processes of its own, and the client that calls it.

    ServerModule ─► Supervisor (a thread of the program) ─► worker processes: replay the model, answer requests
         └────────► Client ──── HTTP ────────────────────────────┘
    UrlModule ────► Client ──── HTTP ─────────────► a service of any program, by address or name: `calling.gateway`

    server.py, url.py   `ServerModule` and `UrlModule`; beside them what all parts share: errors, limits, backends
    packing/            how what is served reaches a worker
    supervising/        the program's side of the worker processes
    worker/             the process that answers
    messages/           what is sent, and how it is described
    calling/            the client, and the gateway that knows services by name
    on_ray/             replicas on Ray Serve

Needs the extra ``serve``; names need ``redis`` as well, replicas on Ray ``ray``.
"""

from importlib.util import find_spec

for _name in ("httptools", "httpx2", "orjson", "prometheus_client", "starlette", "uvicorn"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(
            f"serving needs {_name}, which is not installed. Install the extra: pip install 'replayml[serve]'",
            name=_name,
        )
