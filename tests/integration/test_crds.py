"""The CRDs, asked of a real API server: what they accept, refuse and default."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.config.policies import parse_model_rewrite, parse_objective

from .apiserver import ApiServer

V1ALPHA2 = {
    "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
    "kind": "InferencePool",
    "metadata": {"name": "pool", "namespace": "default"},
    "spec": {"selector": {"app": "vllm"}, "targetPortNumber": 8000, "extensionRef": {"name": "epp"}},
}
V1 = {
    "apiVersion": "inference.networking.k8s.io/v1",
    "kind": "InferencePool",
    "metadata": {"name": "pool", "namespace": "default"},
    "spec": {
        "selector": {"matchLabels": {"app": "vllm"}},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
    },
}
OBJECTIVE = {
    "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
    "kind": "InferenceObjective",
    "metadata": {"name": "chat", "namespace": "default"},
    "spec": {"priority": 1, "poolRef": {"name": "pool"}},
}
RULE = {"matches": [{"model": {"value": "a"}}], "targets": [{"modelRewrite": "b"}]}
REWRITE = {
    "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
    "kind": "InferenceModelRewrite",
    "metadata": {"name": "canary", "namespace": "default"},
    "spec": {"poolRef": {"name": "pool"}, "rules": [RULE]},
}
REMOVED = "REMOVED"


def targets(*weights: int | None) -> list[dict[str, Any]]:
    """The rules of a rewrite to so many targets."""
    made = [{"modelRewrite": "b"} if weight is None else {"modelRewrite": "b", "weight": weight} for weight in weights]
    return [{"targets": made}]


def changed(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The object with the field at the dotted path set, or removed."""
    result = copy.deepcopy(base)
    *parents, last = path.split(".")
    target = result["spec"]
    for name in parents:
        target = target[name]
    if value is REMOVED:
        del target[last]
    else:
        target[last] = value
    return result


def create(api: ApiServer, wanted: dict[str, Any], *, dry_run: bool = True) -> tuple[bool, str, dict[str, Any]]:
    """Whether the server takes it under strict validation, what it says, and what it made of it."""
    arguments = ["create", "--validate=strict", "-o", "json", "-f", "-"] + (["--dry-run=server"] if dry_run else [])
    done = api.kubectl(*arguments, stdin=json.dumps(wanted))
    return done.returncode == 0, done.stderr, json.loads(done.stdout) if done.returncode == 0 else {}


ACCEPTED = [
    (V1ALPHA2, "extensionRef.portNumber", 9002),
    (V1ALPHA2, "extensionRef.port", 9002),
    (V1ALPHA2, "extensionRef", {"name": "epp", "port": 9002, "portNumber": 9002}),
    (V1ALPHA2, "extensionRef.failureMode", "FailOpen"),
    (V1ALPHA2, "targetPortNumber", 65535),
    (V1ALPHA2, "selector", {"app": ""}),
    (V1, "targetPorts", [{"number": n} for n in range(8000, 8008)]),
    (V1, "appProtocol", "kubernetes.io/h2c"),
    (V1, "endpointPickerRef", REMOVED),
    (V1, "endpointPickerRef", {"name": "epp", "kind": "Deployment", "group": "apps"}),
    (V1, "endpointPickerRef.failureMode", "FailOpen"),
    (OBJECTIVE, "priority", REMOVED),
    (OBJECTIVE, "priority", -10),
    (OBJECTIVE, "poolRef", {"name": "pool", "group": "inference.networking.x-k8s.io", "kind": "InferencePool"}),
    (REWRITE, "rules", []),
    (REWRITE, "rules", [RULE, {"targets": [{"modelRewrite": "c"}]}]),
    (REWRITE, "rules", [{"matches": [{"model": {"type": "Exact", "value": "a"}}, {"model": {"value": "b"}}]}]),
    (REWRITE, "rules", targets(1, 1_000_000)),
    (REWRITE, "rules", targets(None, None)),
]
REFUSED = [
    (V1ALPHA2, "selector", REMOVED, "selector"),
    (V1ALPHA2, "targetPortNumber", REMOVED, "targetPortNumber"),
    (V1ALPHA2, "targetPortNumber", 0, "greater than or equal to 1"),
    (V1ALPHA2, "targetPortNumber", 65536, "less than or equal to 65535"),
    (V1ALPHA2, "extensionRef", REMOVED, "extensionRef"),
    (V1ALPHA2, "extensionRef.name", REMOVED, "extensionRef.name"),
    (V1ALPHA2, "extensionRef.name", "", "extensionRef.name"),
    (V1ALPHA2, "extensionRef.portNumber", 0, "extensionRef.portNumber"),
    (V1ALPHA2, "extensionRef.port", 70000, "extensionRef.port"),
    (V1ALPHA2, "extensionRef", {"name": "epp", "port": 9002, "portNumber": 9003}, "alias of portNumber"),
    (V1ALPHA2, "extensionRef.failureMode", "FailMaybe", "failureMode"),
    (V1ALPHA2, "extensionRef.kind", "not a kind", "kind"),
    (V1ALPHA2, "extensionRef.group", "Not.A.Group", "group"),
    (V1ALPHA2, "selector", {"app": "-starts-with-a-dash"}, "selector"),
    (V1ALPHA2, "selector", {"app": "x" * 64}, "selector"),
    (V1ALPHA2, "targetPort", 8000, "unknown field"),
    (V1, "selector", {"matchLabels": {}}, "matchLabels"),
    (V1, "selector", {"matchLabels": {f"k{n}": "v" for n in range(65)}}, "matchLabels"),
    (V1, "selector", {}, "matchLabels"),
    (V1, "targetPorts", [], "targetPorts"),
    (V1, "targetPorts", [{"number": n} for n in range(8000, 8009)], "targetPorts"),
    (V1, "targetPorts", [{"number": 8000}, {"number": 8000}], "port number must be unique"),
    (V1, "targetPorts", [{"number": 0}], "number"),
    (V1, "appProtocol", "grpc", "appProtocol"),
    (V1, "endpointPickerRef", {"name": "epp"}, "port is required"),
    (V1, "endpointPickerRef.port", {"number": 0}, "number"),
    (V1, "endpointPickerRef.failureMode", "Open", "failureMode"),
    (OBJECTIVE, "priority", "high", "priority"),
    (OBJECTIVE, "poolRef", REMOVED, "poolRef"),
    (OBJECTIVE, "poolRef", {}, "poolRef.name"),
    (OBJECTIVE, "poolRef.name", "", "poolRef.name"),
    (OBJECTIVE, "poolRef.group", "Not.A.Group", "group"),
    (OBJECTIVE, "poolRef.kind", "not a kind", "kind"),
    (OBJECTIVE, "criticality", "Critical", "unknown field"),
    (REWRITE, "poolRef", REMOVED, "poolRef"),
    (REWRITE, "rules", REMOVED, "rules"),
    (REWRITE, "rules", [{"matches": [{}]}], "model"),
    (REWRITE, "rules", [{"matches": [{"model": {"value": ""}}]}], "value"),
    (REWRITE, "rules", [{"matches": [{"model": {"type": "Prefix", "value": "a"}}]}], "type"),
    (REWRITE, "rules", [{"targets": []}], "targets"),
    (REWRITE, "rules", [{"targets": [{"weight": 1}]}], "modelRewrite"),
    (REWRITE, "rules", targets(0), "weight"),
    (REWRITE, "rules", targets(1_000_001), "weight"),
    (REWRITE, "rules", targets(1, None), "all targets, or none"),
]


def name_of(case: Any) -> str:
    return str(case)[:30] if not isinstance(case, dict) else case.get("apiVersion", "value").rpartition("/")[2]


@pytest.mark.parametrize(("base", "path", "value"), ACCEPTED, ids=name_of)
def test_accepted(api: ApiServer, base: dict[str, Any], path: str, value: Any) -> None:
    accepted, message, _ = create(api, changed(base, path, value))
    assert accepted, message


@pytest.mark.parametrize(("base", "path", "value", "says"), REFUSED, ids=name_of)
def test_refused(api: ApiServer, base: dict[str, Any], path: str, value: Any, says: str) -> None:
    accepted, message, _ = create(api, changed(base, path, value))
    assert not accepted
    assert says in message


def test_defaults_of_v1alpha2(api: ApiServer) -> None:
    _, _, made = create(api, V1ALPHA2)
    assert made["spec"]["extensionRef"] == {"name": "epp", "group": "", "kind": "Service", "failureMode": "FailClose"}
    parent = made["status"]["parent"]
    assert [entry["parentRef"] for entry in parent] == [{"kind": "Status", "name": "default"}]
    assert [(c["type"], c["status"], c["reason"]) for c in parent[0]["conditions"]] == [
        ("Accepted", "Unknown", "Pending")
    ]


def test_defaults_of_v1(api: ApiServer) -> None:
    _, _, made = create(api, V1)
    reference = made["spec"]["endpointPickerRef"]
    assert made["spec"]["appProtocol"] == "http"
    assert (reference["group"], reference["kind"], reference["failureMode"]) == ("", "Service", "FailClose")
    assert "status" not in made


def test_defaults_of_objectives_and_rewrites(api: ApiServer) -> None:
    _, message, made = create(api, OBJECTIVE)
    assert made, message
    reference = {"name": "pool", "group": "inference.networking.k8s.io", "kind": "InferencePool"}
    assert made["spec"] == {"priority": 1, "poolRef": reference}
    assert "status" not in made
    _, message, made = create(api, REWRITE)
    assert made, message
    assert made["spec"]["poolRef"] == reference
    assert made["spec"]["rules"][0]["matches"] == [{"model": {"type": "Exact", "value": "a"}}]


def test_what_the_crds_take_the_parsers_take(api: ApiServer) -> None:
    parsers = {"InferenceObjective": parse_objective, "InferenceModelRewrite": parse_model_rewrite}
    for base, path, value in ACCEPTED:
        parse = parsers.get(base["kind"])
        if parse is not None:
            _, message, made = create(api, changed(base, path, value))
            assert made, message
            parse(made)


def test_the_pages_example_is_taken_as_it_is(api: ApiServer, repository: Path) -> None:
    page = yaml.safe_load((repository / "tests/data/page-example.yaml").read_text())
    accepted, message, made = create(api, page, dry_run=False)
    assert accepted, message
    try:
        assert made["metadata"]["namespace"] == "default"
        assert made["spec"]["extensionRef"]["port"] == 9002
        assert "portNumber" not in made["spec"]["extensionRef"]
    finally:
        api.kubectl("delete", "xinfpool", page["metadata"]["name"])


def test_short_names_and_columns(api: ApiServer) -> None:
    api.apply(V1, {**V1ALPHA2, "metadata": {"name": "old", "namespace": "default"}})
    assert "FailClose" in api.kubectl("get", "infpool", "pool").stdout
    assert "8000" in api.kubectl("get", "xinfpool", "old").stdout


def test_applying_again_changes_nothing(api: ApiServer) -> None:
    api.apply(V1)
    before = api.get("infpool", "pool")["metadata"]["resourceVersion"]
    api.apply(V1)
    assert api.get("infpool", "pool")["metadata"]["resourceVersion"] == before
