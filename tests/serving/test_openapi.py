"""What `/schema` says of a service, compared with what the service answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema_rs
import pytest
import requests
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import replayml
from replayml.serving.errors import CODES
from replayml.serving.messages.wire import MEDIA_TYPE, encode
from replayml.serving.server import ServerModule
from tests.serving import services, streams
from tests.serving.http import ask

TOKEN = "a-token-of-more-than-16-characters"  # noqa: S105 - of this test
ROUTES = ("/", "/predict", "/healthz", "/readyz", "/schema", "/metrics")
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
BOUNDED: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(scope="module")
def typed() -> Iterator[ServerModule]:
    """A model with an example."""
    model = replayml.MultiLayerPerceptron(4, [8], 2).build(seed=0)
    found = ServerModule(model, example=torch.zeros(2, 4), batch=True).start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerModule]:
    """A function that takes anything, with a token."""
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN)
    found = ServerModule(services.echo, token_file=str(path)).start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def streaming() -> Iterator[ServerModule]:
    """A model that streams."""
    found = ServerModule(streams.Rollout().build(seed=0), example=torch.zeros(2, 3)).start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def named() -> Iterator[ServerModule]:
    """A model that takes further arguments besides its example."""
    found = ServerModule(services.Named().build(seed=0), example=torch.zeros(2, 3)).start()
    yield found
    found.stop()


@pytest.fixture(params=["typed", "free", "streaming", "named"])
def service(request: pytest.FixtureRequest) -> ServerModule:
    """Each of them."""
    found: ServerModule = request.getfixturevalue(request.param)
    return found


def document(service: ServerModule) -> dict[str, Any]:
    """Return what `/schema` says."""
    reply = httpx2.get(service.url + "/schema", headers={"authorization": f"Bearer {TOKEN}"})
    assert reply.status_code == 200
    found: dict[str, Any] = reply.json()
    return found


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_answers_are_those_of_the_document(service: ServerModule, mode: GenerationMode) -> None:
    """Requests made from the document, right and wrong ones, get answers that are in it, and no fault of the service.

    What is right by the document is answered, and what is wrong by it refused.
    """
    schema = schemathesis.openapi.from_dict(document(service))
    judged = positive_data_acceptance if mode is GenerationMode.POSITIVE else negative_data_rejection
    answered: Counter[str] = Counter()
    with requests.Session() as session:

        def compare(case: schemathesis.Case[Any]) -> None:
            response = case.call(
                base_url=service.url, session=session, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60
            )
            is_judged = case.path == "/predict" and case.media_type == "application/json"
            case.validate_response(response, checks=[*CHECKS, judged] if is_judged else CHECKS)
            answered[case.path] += 1

        for result in schema.get_all_operations():
            assert isinstance(result, Ok)
            operation = result.ok()
            if mode is GenerationMode.NEGATIVE and operation.path != "/predict":
                continue  # nothing is given there that could be wrong
            run = settings(max_examples=25 if operation.path == "/predict" else 2, **BOUNDED)(
                seed(1)(given(operation.as_strategy(generation_mode=mode))(compare))
            )
            run()
    assert answered["/predict"] >= 10


@pytest.mark.parametrize(
    ("args", "kwargs", "is_right"),
    [
        ([], {}, True),
        ([2], {}, True),
        ([2], {"tag": "a"}, True),
        ([], {"by": 2, "tag": "a"}, True),
        ([2], {"by": 2}, False),
        ([2, 3], {}, False),
        ([], {"bye": 2}, False),
    ],
)
def test_further_arguments_are_taken_as_the_document_says(
    named: ServerModule, args: list[Any], kwargs: dict[str, Any], is_right: bool
) -> None:
    """What is given both by position and by name, or unknown, is wrong by the document and refused."""
    content = document(named)["paths"]["/predict"]["post"]["requestBody"]["content"]
    body = {"args": [[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], *args], "kwargs": kwargs}
    headers = {"authorization": f"Bearer {TOKEN}"}
    reply = httpx2.post(named.url + "/predict", json=body, headers=headers, timeout=60)
    assert reply.status_code == (200 if is_right else 422)
    assert jsonschema_rs.is_valid(content["application/json"]["schema"], body) == is_right


def test_other_methods_are_refused_as_the_document_says(typed: ServerModule) -> None:
    """Each other method on each route is answered with the code and the methods that there are."""
    known = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
    with httpx2.Client(base_url=typed.url) as client:
        for path, methods in document(typed)["paths"].items():
            for method in known - {name.upper() for name in methods}:
                reply = client.request(method, path)
                assert (reply.status_code, reply.json()["error"]["code"]) == (405, "wrong-method")
                assert reply.headers["allow"].split(", ")[0] in {name.upper() for name in methods}
                assert "405" in next(iter(methods.values()))["responses"]


def test_every_route_and_code_is_in_the_document(service: ServerModule) -> None:
    """The routes are those of the service; every code stands at some answer, with its status and text."""
    found = document(service)
    schemathesis.openapi.from_dict(found).validate()
    assert tuple(found["paths"]) == ROUTES
    answers = [
        (status, answer)
        for methods in found["paths"].values()
        for operation in methods.values()
        for status, answer in operation["responses"].items()
    ]
    told = " ".join(answer["description"] for _, answer in answers)
    is_guarded = "securitySchemes" in found["components"]
    for code, (status, text) in CODES.items():
        if code == "unknown-route" or (code == "missing-token" and not is_guarded):
            assert f"{code}: " not in told
        else:
            assert any(
                listed == str(status) and f"{code}: {text}" in answer["description"] for listed, answer in answers
            )
    assert all(reference(found, link) for link in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(found)))


def reference(found: Any, link: str) -> Any:
    """Return what a reference in a document leads to."""
    for part in link.split("/"):
        found = found[part]
    return found


def test_the_example_of_the_document_is_answered(typed: ServerModule) -> None:
    """The body that the document shows works as it stands; it has one row, and the names of the arguments."""
    content = document(typed)["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert content["example"] == {"args": [[[0, 0, 0, 0]]]}
    (item,) = content["schema"]["properties"]["args"]["prefixItems"]
    assert (item["title"], item["x-dtype"], item["x-shape"]) == ("x", "float32", [-1, 4])
    assert ask(typed.url, body=json.dumps(content["example"]).encode()).status == 200


def test_the_version_is_told(typed: ServerModule) -> None:
    """The document, the probe and each result name the version that answers."""
    reply = ask(typed.url, body=b'{"args": [[[0, 0, 0, 0]]]}')
    assert reply.headers["x-model-version"] == document(typed)["info"]["version"] == "1"
    assert ask(typed.url, "/readyz").json == {"ready": True, "version": 1}


def test_a_typed_body_gets_what_the_document_says(typed: ServerModule, streaming: ServerModule) -> None:
    """What is not tried with random bytes: a typed body is answered with a typed one, and a stream as one."""
    for service, shape, kind in ((typed, (1, 4), MEDIA_TYPE), (streaming, (2, 3), "text/event-stream")):
        answers = document(service)["paths"]["/predict"]["post"]["responses"]["200"]
        reply = httpx2.post(
            service.url + "/predict",
            content=encode({"args": [torch.zeros(shape)]}),
            headers={"content-type": MEDIA_TYPE},
        )
        assert (reply.status_code, reply.headers["content-type"]) == (200, kind)
        assert kind in answers["content"]
        assert set(answers["headers"]) <= set(reply.headers)
