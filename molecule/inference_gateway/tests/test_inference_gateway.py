"""Requests reach pools and Services through the Gateway's own address, by path, host and weight."""

from __future__ import annotations

import http.client
import json
import time

from support import assert_converged, get

NAMESPACE = "molecule-gateway"


def ask(path: str, host: str = "any") -> tuple[int, str]:
    """Status and body of a GET at the Gateway's LoadBalancer address."""
    address = get("gateway", "molecule", "-n", NAMESPACE)["status"]["addresses"][0]["value"]
    connection = http.client.HTTPConnection(address, 80, timeout=60)
    try:
        connection.request("GET", path, headers={"host": host})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def await_answer(path: str, host: str = "any") -> str:
    """The body, once it is a 200: endpoints reach Envoy a moment after the route is accepted."""
    deadline = time.monotonic() + 120
    status, body = 0, ""
    while time.monotonic() < deadline:
        try:
            status, body = ask(path, host)
        except OSError as error:
            body = str(error)
        if status == 200:
            return body
        time.sleep(0.5)
    raise AssertionError(f"{path}: {status} {body}")


def test_a_pool_and_a_service_serve_by_path_and_host():
    for path, host in (("/pool/v1/models", "any"), ("/v1/models", "service.example.com")):
        assert json.loads(await_answer(path, host))["data"][0]["id"] == "molecule/small"


def test_a_path_without_a_route_is_not_found():
    await_answer("/pool/v1/models")
    assert ask("/elsewhere")[0] == 404


def test_the_route_has_the_weights():
    references = get("httproute", "pool", "-n", NAMESPACE)["spec"]["rules"][0]["backendRefs"]
    assert [(reference["kind"], reference["weight"]) for reference in references] == [
        ("InferencePool", 3),
        ("Service", 1),
    ]


def test_the_class_refers_to_the_envoy_proxy():
    reference = get("gatewayclass", "molecule")["spec"]["parametersRef"]
    assert (reference["kind"], reference["name"], reference["namespace"]) == (
        "EnvoyProxy",
        "headrace",
        "envoy-gateway-system",
    )


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("inference_gateway")
