"""The OpenAPI document of a service, with what its model takes and returns.

Invariants:
    * The shapes and dtypes are those that requests are checked against.
"""

from __future__ import annotations

from typing import Any

from replayml.serving.errors import CODES
from replayml.serving.schema import input_schema, output_schema
from replayml.serving.target import Target
from replayml.serving.wire import MEDIA_TYPE

__all__ = ["openapi"]

_JSON = "application/json"
_BINARY = {"type": "string", "format": "binary"}


def openapi(target: Target, *, has_token: bool) -> dict[str, Any]:
    """Return the document.

    Args:
        target: What is served.
        has_token: Whether callers need a token.
    """
    result = {"type": "object", "properties": {"result": output_schema(target.output)}, "required": ["result"]}
    batch = "Its first dimension counts rows; requests may run together." if target.is_batchable else ""
    predict = {
        "operationId": "predict",
        "summary": f"Run {target.title}. {batch}".strip(),
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": input_schema(target.specs)}, MEDIA_TYPE: {"schema": _BINARY}},
        },
        "responses": {
            "200": {
                "description": "The result.",
                "content": {_JSON: {"schema": result}, MEDIA_TYPE: {"schema": _BINARY}},
            },
            **_errors(),
        },
    }
    guarded: dict[str, Any] = {"security": [{"token": []}]} if has_token else {}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": target.title, "version": "1"},
        "paths": {
            "/predict": {"post": {**predict, **guarded}},
            "/healthz": {"get": _get("healthz", "Whether the worker lives.", "alive")},
            "/readyz": {"get": _get("readyz", "Whether it takes requests.", "ready")},
            "/schema": {"get": {**_get("schema", "This document.", None), **guarded}},
            "/metrics": {"get": {**_metrics(), **guarded}},
        },
        "components": {"schemas": {"Error": _error_schema()}},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


def _errors() -> dict[str, Any]:
    """Return the answers with a code, by status."""
    by_status: dict[int, list[str]] = {}
    for code, answer in CODES.items():
        by_status.setdefault(answer.status, []).append(f"{code}: {answer.text}")
    content = {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        str(status): {"description": " ".join(texts), "content": content} for status, texts in sorted(by_status.items())
    }


def _get(name: str, summary: str, key: str | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if key is not None:
        schema |= {"properties": {key: {"const": True}}, "required": [key]}
    answer = {"description": summary, "content": {_JSON: {"schema": schema}}}
    return {"operationId": name, "summary": summary, "responses": {"200": answer, **_errors()}}


def _metrics() -> dict[str, Any]:
    summary = "The counts, as Prometheus reads them."
    answer = {"description": summary, "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"operationId": "metrics", "summary": summary, "responses": {"200": answer, **_errors()}}


def _error_schema() -> dict[str, Any]:
    error = {
        "type": "object",
        "properties": {
            "code": {"enum": list(CODES)},
            "text": {"type": "string"},
            "id": {"type": "string"},
            "detail": {"type": ["object", "null"]},
        },
        "required": ["code", "text", "id"],
    }
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}
