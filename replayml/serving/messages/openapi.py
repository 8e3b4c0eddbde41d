"""The OpenAPI document of a service, with what its model takes and returns.

Invariants:
    * The shapes and dtypes are those that requests are checked against.
    * Every answer that a request can get is listed with its form: a test compares them with what a service answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from replayml.serving.errors import CODES
from replayml.serving.messages.events import EVENTS
from replayml.serving.messages.schema import input_schema, output_schema
from replayml.serving.messages.wire import MEDIA_TYPE
from replayml.serving.worker.target import Target

__all__ = ["openapi"]

_JSON = "application/json"
_MOST_SHOWN = 20_000
_BINARY = {"type": "string", "format": "binary"}


def openapi(target: Target, *, has_token: bool, version: int = 1) -> dict[str, Any]:
    """Return the document.

    Args:
        target: What is served.
        has_token: Whether callers need a token.
        version: The version of the service: how often what it serves was replaced, and one.
    """
    guarded: dict[str, Any] = {"security": [{"token": []}]} if has_token else {}
    document: dict[str, Any] = {
        "openapi": "3.2.0",
        "info": {"title": target.title, "version": str(version)},
        "paths": {
            "/": {"get": _page()},
            "/predict": {"post": {**_predict(target, has_token=has_token), **guarded}},
            "/healthz": {"get": _get("healthz", "Whether the worker lives.", "alive", ["not-ready"])},
            "/readyz": {"get": _get("readyz", "Whether it takes requests.", "ready", ["not-ready", "draining"])},
            "/schema": {"get": {**_get("schema", "This document.", None, _token(has_token)), **guarded}},
            "/metrics": {"get": {**_metrics(has_token=has_token), **guarded}},
        },
        "components": {"schemas": {"Error": _error_schema()}, "headers": dict(_HEADERS)},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


# Routes ---------------------------------------------------------------------------------------------------------


def _predict(target: Target, *, has_token: bool) -> dict[str, Any]:
    batch = "Its first dimension counts rows; requests may run together." if target.is_batchable else ""
    return {
        "operationId": "predict",
        "summary": f"Run {target.title}. {batch}".strip(),
        "requestBody": {
            "required": True,
            "content": {
                _JSON: {"schema": input_schema(target.specs, target.takes), **_example(target)},
                MEDIA_TYPE: {"schema": _BINARY},
            },
        },
        "responses": {
            "200": {
                "description": "The result; one that comes item by item as server-sent events.",
                "headers": {**_ID, "x-model-version": {"$ref": "#/components/headers/x-model-version"}},
                "content": _result_content(target),
            },
            **_errors(*_token(has_token), *_PREDICT),
        },
    }


def _example(target: Target) -> dict[str, Any]:
    """Return a body to try, where there is one that is not large: the first row of the example."""
    if target.example is None:
        return {}
    shown = [value[:1] if target.has_rows else value for value in target.example]
    if sum(value.numel() for value in shown) > _MOST_SHOWN or any(value.is_complex() for value in shown):
        return {}
    if not all(bool(value.isfinite().all()) for value in shown):
        return {}
    return {"example": {"args": [value.tolist() for value in shown]}}


def _result_content(target: Target) -> dict[str, Any]:
    form = output_schema(target.output)
    if target.takes.by_name or target.takes.has_further:
        form = {"anyOf": [form, {"description": "Further arguments may make it something else."}]}
    result = {"type": "object", "properties": {"result": form}, "required": ["result"]}
    whole = {_JSON: {"schema": result}, MEDIA_TYPE: {"schema": _BINARY}}
    events = {EVENTS: {"itemSchema": _event_schema(result)}}
    return events if target.is_stream else whole if target.is_stream is False else {**whole, **events}


def _event_schema(result: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an event of a stream."""
    whole = {"type": "object", "properties": {"items": {"type": "integer", "minimum": 0}}, "required": ["items"]}
    kinds = {"item": result, "end": whole, "error": {"$ref": "#/components/schemas/Error"}}
    events: list[dict[str, Any]] = [
        {"event": {"const": name}, "data": {"contentMediaType": _JSON, "contentSchema": schema}}
        for name, schema in kinds.items()
    ]
    events.append(
        {"event": {"const": "tensors"}, "data": {"contentMediaType": MEDIA_TYPE, "contentEncoding": "base64"}}
    )
    return {
        "type": "object",
        "description": _EVENTS_TEXT,
        "properties": {"event": {"enum": [*kinds, "tensors"]}, "data": {"type": "string"}},
        "required": ["event", "data"],
        "oneOf": [{"properties": properties} for properties in events],
    }


def _get(name: str, summary: str, key: str | None, codes: list[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if key is not None:
        schema |= {"properties": {key: {"const": True}}, "required": [key]}
    answer = {"description": summary, "headers": _ID, "content": {_JSON: {"schema": schema}}}
    return {"operationId": name, "summary": summary, "responses": {"200": answer, **_errors(*codes)}}


def _page() -> dict[str, Any]:
    summary = "A page to try the model in a browser."
    answer = {"description": summary, "headers": _ID, "content": {"text/html": {"schema": {"type": "string"}}}}
    return {"operationId": "page", "summary": summary, "responses": {"200": answer, **_errors()}}


def _metrics(*, has_token: bool) -> dict[str, Any]:
    summary = "The counts, as Prometheus reads them."
    answer = {"description": summary, "headers": _ID, "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "operationId": "metrics",
        "summary": summary,
        "responses": {"200": answer, **_errors(*_token(has_token))},
    }


# Errors ---------------------------------------------------------------------------------------------------------

_ANYWHERE = (
    *("malformed-request", "foreign-host", "foreign-origin", "wrong-method", "slow-request", "headers-too-large"),
    *("internal", "busy", "worker-lost"),
)
_PREDICT = (
    *("malformed-json", "malformed-tensors", "too-deep", "too-large", "wrong-type"),
    *("wrong-arguments", "wrong-shape", "wrong-dtype", "raised", "no-form", "not-finite"),
    *("not-ready", "draining", "too-late"),
)


def _token(has_token: bool) -> list[str]:
    return ["missing-token"] if has_token else []


def _errors(*codes: str) -> dict[str, Any]:
    """Return the answers with a code, by status: those that every route has, and some of its own."""
    by_status: dict[int, list[str]] = {}
    for code, answer in CODES.items():
        if code in _ANYWHERE or code in codes:
            by_status.setdefault(answer.status, []).append(code)
    return {str(status): _error(names) for status, names in sorted(by_status.items())}


def _error(codes: list[str]) -> dict[str, Any]:
    schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Error"},
            {"properties": {"error": {"properties": {"code": {"enum": codes}}}}},
        ]
    }
    return {
        "description": " ".join(f"{code}: {CODES[code].text}" for code in codes),
        "headers": _ID,
        "content": {_JSON: {"schema": schema}},
    }


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


# Texts ----------------------------------------------------------------------------------------------------------

_ID = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
_HEADERS: Mapping[str, Any] = MappingProxyType(
    {
        "x-request-id": {"description": "The id of the request in the log.", "schema": {"type": "string"}},
        "x-model-version": {
            "description": "The version that made the answer.",
            "schema": {"type": "string", "pattern": "^[0-9]+$"},
        },
    }
)
_EVENTS_TEXT = (
    'An event for each item: `item` with {"result": ...}, or, for who accepts the typed body, `tensors` with one in '
    'base64. The last event is `end` with {"items": their number}, or `error` with what the body of an error holds.'
)
