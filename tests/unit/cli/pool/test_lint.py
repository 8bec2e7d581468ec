"""What `headrace pool lint` says of manifests, and what it has nothing to say of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cli import main as cli
from headrace.cli.pool.lint import lint
from headrace.cli.pool.manifests import UnreadableFile, read_text
from headrace.config.decode import InvalidConfig
from headrace.epp.config_file import parse_config

X, GA = "inference.networking.x-k8s.io", "inference.networking.k8s.io"
OLD: dict[str, Any] = {
    "apiVersion": f"{X}/v1alpha2",
    "kind": "InferencePool",
    "metadata": {"name": "pool"},
    "spec": {
        "selector": {"app": "m"},
        "targetPortNumber": 8000,
        "extensionRef": {"name": "epp", "portNumber": 9002},
    },
}
NEW: dict[str, Any] = {
    "apiVersion": f"{GA}/v1",
    "kind": "InferencePool",
    "metadata": {"name": "pool"},
    "spec": {
        "selector": {"matchLabels": {"app": "m"}},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
    },
}


def found(*objects: Any) -> list[tuple[str, str, str]]:
    """Severity, field and message of each finding, the one that every v1alpha2 pool gets left out."""
    text = "---\n".join(yaml.safe_dump(obj, sort_keys=False) for obj in objects)
    return [
        (f.severity.value, f.path, f.message)
        for f in lint(read_text(text, "file"))
        if "no longer part of the API" not in f.message
    ]


def changed(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(base)
    *parents, last = path.split(".")
    target = result
    for name in parents:
        target = target[name]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return result


def test_good_pools_are_good() -> None:
    assert found(NEW) == []
    assert found(OLD) == []
    (only,) = lint(read_text(yaml.safe_dump(OLD), "f"))
    assert (only.severity, "migrate" in only.message) == ("info", True)


@pytest.mark.parametrize(
    ("base", "path", "value", "severity", "field", "words"),
    [
        (
            OLD,
            "spec.extensionRef",
            {"name": "epp", "port": 9002},
            "warning",
            "spec.extensionRef.port",
            "portNumber: 9002",
        ),
        (OLD, "spec.extensionRef", {"name": "epp"}, "info", "spec.extensionRef", "9002 is meant"),
        (OLD, "spec.extensionRef.portNumber", 0, "error", "spec.extensionRef.portNumber", "1 to 65535"),
        (OLD, "spec.targetPortNumber", 0, "error", "spec.targetPortNumber", "1 to 65535"),
        (OLD, "spec.targetPortNumber", "8000", "error", "spec.targetPortNumber", "1 to 65535"),
        (OLD, "spec.selector", {"app!": "m"}, "error", "spec.selector", "label key"),
        (OLD, "spec.selector", {"app": 8}, "error", "spec.selector[app]", "label value"),
        (OLD, "spec.selector", {}, "error", "spec.selector", "1 to 64 labels"),
        (OLD, "spec.targetPorts", [{"number": 1}], "error", "spec.targetPorts", "targetPortNumber is meant"),
        (OLD, "spec.extensionRef.failureMode", "Open", "error", "spec.extensionRef.failureMode", "FailOpen"),
        (OLD, "spec.extensionRef.failuremode", "FailOpen", "error", "spec.extensionRef.failuremode", "failureMode is"),
        (OLD, "status", {"parent": []}, "warning", "status", "gateways write it"),
        (OLD, "apiVersion", f"{X}/v1alpha1", "error", "apiVersion", "v1alpha2"),
        (NEW, "spec.selector", {"app": "m"}, "error", "spec.selector.app", "matchLabels"),
        (NEW, "spec.targetPorts", [{"number": 1}, {"number": 1}], "error", "spec.targetPorts[1].number", "once"),
        (NEW, "spec.targetPorts", [{"number": n} for n in range(1, 10)], "error", "spec.targetPorts", "1 to 8"),
        (NEW, "spec.endpointPickerRef", {"name": "epp"}, "error", "spec.endpointPickerRef.port", "port"),
        (NEW, "spec.endpointPickerRef", None, "warning", "spec.endpointPickerRef", "without an endpoint picker"),
        (NEW, "spec.extensionRef", {"name": "epp"}, "error", "spec.extensionRef", "endpointPickerRef is meant"),
        (NEW, "spec.appProtocol", "grpc", "error", "spec.appProtocol", "kubernetes.io/h2c"),
        (NEW, "spec", [], "error", "spec", "object"),
    ],
)
def test_pools(base: dict[str, Any], path: str, value: Any, severity: str, field: str, words: str) -> None:
    findings = found(changed(base, path, value))
    assert any(s == severity and p == field and words in m for s, p, m in findings), findings


def test_every_error_of_a_pool_is_named_at_once() -> None:
    pool = copy.deepcopy(OLD)
    pool["spec"] = {"selector": {"a b": "x", "c": "-"}, "targetPortNumber": 0, "extensionRef": {"portNumber": 70000}}
    assert {path for _, path, _ in found(pool)} >= {
        "spec.selector",
        "spec.selector[c]",
        "spec.targetPortNumber",
        "spec.extensionRef.portNumber",
    }


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "epp"},
    "spec": {"ports": [{"port": 9002}], "selector": {"app": "epp"}},
}


def deployment(name: str, labels: dict[str, str], *args: str, port: int = 8000) -> dict[str, Any]:
    container = {"name": "c", "args": list(args), "ports": [{"containerPort": port}]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"template": template}}


def route(**reference: Any) -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "route"},
        "spec": {"rules": [{"backendRefs": [{"name": "pool", **reference}]}]},
    }


SERVERS = deployment("servers", {"app": "m"})
PICKER = deployment("epp", {"app": "epp"}, "--pool-name", "pool", port=9002)


def objective(group: str | None) -> dict[str, Any]:
    reference = {"name": "pool", **({"group": group} if group else {})}
    return {
        "apiVersion": f"{X}/v1alpha2",
        "kind": "InferenceObjective",
        "metadata": {"name": "o"},
        "spec": {"priority": 1, "poolRef": reference},
    }


def test_a_whole_set_that_fits_has_nothing_to_say() -> None:
    assert found(NEW, SERVICE, SERVERS, PICKER, route(group=GA, kind="InferencePool"), objective(None)) == []
    old_picker = deployment("epp", {"app": "epp"}, "--pool-name=pool", f"--pool-group={X}", port=9002)
    assert found(OLD, SERVICE, SERVERS, old_picker, route(group=X, kind="InferencePool"), objective(X)) == []


@pytest.mark.parametrize(
    ("objects", "severity", "field", "words"),
    [
        ([NEW, changed(SERVICE, "spec.type", "ExternalName")], "error", "spec.endpointPickerRef.name", "ExternalName"),
        ([OLD, changed(SERVICE, "spec.type", "ExternalName")], "error", "spec.extensionRef.name", "ExternalName"),
        ([NEW, changed(SERVICE, "spec.ports", [{"port": 1}])], "error", "spec.endpointPickerRef", "no port 9002"),
        ([NEW, deployment("s", {"app": "x"})], "warning", "spec.selector", "selects none"),
        ([NEW, deployment("s", {"app": "m"}, port=9)], "warning", "spec.targetPorts", "none of these ports"),
        ([NEW, deployment("epp", {"app": "m"}, "--pool-name=pool")], "error", "spec.selector", "an endpoint picker"),
        ([OLD, PICKER], "error", "spec.template.spec.containers", "--pool-group"),
        (
            [deployment("epp", {}, "--pool-name=p", "--lora-info-metric=x")],
            "error",
            "spec.template.spec.containers",
            "--lora-info-metric",
        ),
        ([NEW, route(group=X, kind="InferencePool")], "error", "spec.rules[0].backendRefs[0]", f"set group to {GA}"),
        ([route(kind="InferencePool")], "error", "spec.rules[0].backendRefs[0].group", "has no InferencePool"),
        ([route(group=GA)], "error", "spec.rules[0].backendRefs[0].kind", "InferencePool only"),
        (
            [NEW, route(group=GA, kind="InferencePool", port=8000)],
            "info",
            "spec.rules[0].backendRefs[0].port",
            "ignored",
        ),
        ([changed(route(), "spec.rules", {"backendRefs": []})], "error", "spec.rules", "dash"),
        ([OLD, objective(None)], "error", "spec.poolRef", f"set group to {X}"),
        ([changed(objective(None), "spec.priority", "high")], "error", "spec.priority", "whole number"),
        ([{"apiVersion": f"{X}/v1alpha2", "kind": "InferenceModel", "metadata": {}}], "error", "kind", "Objective"),
        (
            [{"apiVersion": f"{X}/v1alpha1", "kind": "EndpointPickerConfig", "plugins": [{"type": "nonsense"}]}],
            "error",
            "plugins[0].type",
            "nonsense",
        ),
        (
            [
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": "c"},
                    "data": {"c.yaml": f"apiVersion: {X}/v1alpha1\nkind: EndpointPickerConfig\nplugins: x\n"},
                }
            ],
            "error",
            "data[c.yaml]: plugins",
            "list",
        ),
        ([["no", "object"]], "error", "", "no Kubernetes object"),
    ],
)
def test_what_does_not_fit(objects: list[Any], severity: str, field: str, words: str) -> None:
    findings = found(*objects)
    assert any(s == severity and p == field and words in m for s, p, m in findings), findings


def test_a_list_is_looked_into() -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": [changed(NEW, "spec.appProtocol", "grpc"), SERVICE]}
    assert [path for _, path, _ in found(listed)] == ["spec.appProtocol"]


def test_lines_are_those_of_the_fields() -> None:
    text = "# comment\n---\nkind: Secret\n---\n" + yaml.safe_dump(
        changed(OLD, "spec.targetPortNumber", 0), sort_keys=False
    )
    lines = {f.path: f.line for f in lint(read_text(text, "f"))}
    assert lines["spec.targetPortNumber"] == 1 + text.splitlines().index("  targetPortNumber: 0")


def test_a_key_given_twice() -> None:
    findings = lint(read_text("kind: Secret\nmetadata:\n  name: a\n  name: b\n", "f"))
    assert [(f.line, f.severity) for f in findings] == [(4, "error")]
    assert "'name'" in findings[0].message


def test_the_pages_example(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = str(repository / "tests/data/page-example.yaml")
    assert cli.main(["pool", "lint", page]) == 0
    assert f"{page}:11: warning:" in capsys.readouterr().out
    assert cli.main(["pool", "lint", "--strict", page]) == 1
    assert cli.main(["pool", "lint", "-o", "json", page]) == 0
    assert '"field": "spec.extensionRef.port"' in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"a: [", b"\xff", b"a: b: c", b"\x00"])
def test_what_is_no_yaml(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert cli.main(["pool", "lint", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "Traceback" not in error


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pool", "lint", "/nowhere"]) == 2
    assert "/nowhere: the file cannot be read" in capsys.readouterr().err


SCALARS = st.none() | st.booleans() | st.integers(-1, 70000) | st.sampled_from(["", "x", "Service", "FailOpen", "a=b"])
FIELDS = """
    apiVersion kind metadata name namespace spec selector matchLabels targetPorts number targetPortNumber extensionRef
    endpointPickerRef port portNumber rules backendRefs group items poolRef template containers args labels ports data
    type matches targets model plugins schedulingProfiles
"""
KEYS = st.sampled_from(FIELDS.split())
ANYTHING = st.recursive(
    SCALARS, lambda i: st.lists(i, max_size=3) | st.dictionaries(KEYS, i, max_size=5), max_leaves=20
)
READ_KINDS = """
    InferencePool InferenceObjective InferenceModelRewrite HTTPRoute Service Deployment Pod ConfigMap List
    LeaderWorkerSet EndpointPickerConfig
"""
KINDS = st.sampled_from(READ_KINDS.split())
VERSIONS = st.sampled_from([f"{X}/v1alpha2", f"{GA}/v1", "v1", "apps/v1", f"{X}/v1alpha1"])


@settings(max_examples=40)
@given(kind=KINDS, version=VERSIONS, rest=st.dictionaries(KEYS, ANYTHING, max_size=5))
def test_any_object_is_checked_without_a_crash(kind: str, version: str, rest: dict[str, Any]) -> None:
    obj = {**rest, "apiVersion": version, "kind": kind}
    for finding in lint(read_text(yaml.safe_dump_all([obj, NEW, SERVICE]), "f")):
        assert finding.as_text()
        assert finding.line >= 1


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        lint(read_text(text, "f"))
    except UnreadableFile as error:
        assert str(error).startswith("f")


LLM_D = "llm-d.ai/v1alpha1"


@pytest.mark.parametrize(
    "more",
    [
        {"plugins": [{"type": "core-metrics-extractor"}]},
        {"plugins": [{"type": "token-producer"}, {"type": "precise-prefix-cache-producer"}]},
        {
            "plugins": [{"type": "concurrency-detector", "parameters": {"maxConcurrency": 64}}],
            "saturationDetector": {"pluginRef": "concurrency-detector"},
            "flowControl": {"defaultRequestTTL": "30s"},
        },
        {"flowControl": {"defaultRequestTTL": "30 seconds"}},
        {"flowControl": {"maxRequests": "lots"}},
        {"flowControl": {"defaultPriorityBand": {"fairnessPolicyRef": "nobody"}}},
        {"plugins": [{"type": "token-producer", "parameters": {"nonsense": 1}}]},
    ],
)
def test_a_configuration_is_read_as_the_picker_reads_it(more: dict[str, Any]) -> None:
    config = {"apiVersion": LLM_D, "kind": "EndpointPickerConfig", "featureGates": ["flowControl"], **more}
    try:
        parse_config(yaml.safe_dump(config), "file")
        wanted = []
    except InvalidConfig as error:
        wanted = [("error", error.field.removeprefix("file: "))]
    assert [(severity, path) for severity, path, _ in found(config) if severity == "error"] == wanted
