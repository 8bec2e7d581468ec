"""Role inference_pool: what its template makes of a picker with several replicas, and which rights switches give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from .apiserver import ApiServer
from .roles import Run, play, refusals, render, run_role, validate

ROLE = "inference_pool"
POOLS: list[dict[str, Any]] = [
    {"name": "plain", "picker": "plain-epp", "selector": {"app": "m"}},
    {"name": "two", "picker": "two-epp", "selector": {"app": "m"}, "replicas": 2, "peer_port": 9104},
    {"name": "bare", "picker": "bare-epp", "selector": {"app": "m"}, "picker_config": {}},
    {
        "name": "led",
        "picker": "led-epp",
        "picker_config": {"plugins": [{"type": "queue-scorer"}]},
        "selector": {"app": "m"},
        "replicas": 3,
        "leader_election": True,
        "metrics_auth": True,
        "extra_args": ["--pick-deadline=1s"],
        "tracing": True,
        "environment": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_BSP_SCHEDULE_DELAY": 1000},
    },
]
VARIABLES: dict[str, Any] = {
    "inference_pool_pools": POOLS,
    "inference_pool_namespace": "dry-pools",
    "inference_pool_image": "example.com/headrace:1",
    # Its CRD is not on the API server of these tests.
    "inference_pool_backend_tls_policy": False,
    # Of the whole cluster: what one test makes there, others would find.
    "inference_pool_priority_class": "",
    "__inference_pool_public": {"ca": "", "fingerprint": "f"},
}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pools")
    return render(folder, ROLE, "endpoint_picker.yaml.j2", VARIABLES, loop="__inference_pool_pools")


def found(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)


def missing(objects: list[dict[str, Any]], kind: str, name: str) -> bool:
    return all(one["kind"] != kind or one["metadata"]["name"] != name for one in objects)


def container(objects: list[dict[str, Any]], picker: str) -> dict[str, Any]:
    pod = found(objects, "Deployment", picker)["spec"]["template"]["spec"]
    return dict(pod["containers"][0])


def test_every_object_is_valid_to_the_letter(api: ApiServer, objects: list[dict[str, Any]]) -> None:
    assert validate(api, objects) == ""


def test_a_picker_has_a_configuration_where_somebody_gives_one(objects: list[dict[str, Any]]) -> None:
    assert "--config-file" in container(objects, "led-epp")["args"]
    text = found(objects, "ConfigMap", "led-epp-config")["data"]["endpoint-picker.yaml"]
    assert yaml.safe_load(text)["plugins"] == [{"type": "queue-scorer"}]
    # With an empty one, the picker has its built-in profile.
    assert missing(objects, "ConfigMap", "bare-epp-config")
    assert "--config-file" not in container(objects, "bare-epp")["args"]


def test_a_pool_gets_a_new_configuration_once(api: ApiServer, tmp_path: Path) -> None:
    """Its pickers are rolled, and no other thing is changed."""
    namespace = "configured"
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})

    def run(*arguments: str, **more: Any) -> int:
        pool = {"name": "llama", "picker": "llama-epp", "selector": {"app": "m"}, "namespace": namespace}
        given = {**VARIABLES, "inference_pool_pools": [pool], "inference_pool_certificate": "none", **more}
        done = run_role(api, tmp_path, ROLE, given, "--tags", "inference_pool_picker", *arguments)
        assert done.returncode == 0, done.output
        return done.changed

    def template() -> dict[str, Any]:
        return dict(api.get("deployment", "llama-epp", "-n", namespace)["spec"]["template"])

    assert run(inference_pool_picker_config={}) == 1
    before = template()
    config = {"plugins": [{"type": "token-load-scorer"}]}
    assert run("--check", "--diff", inference_pool_picker_config=config) == 1
    assert template() == before
    assert run(inference_pool_picker_config=config) == 1
    after = template()
    assert after["metadata"]["annotations"] != before["metadata"]["annotations"]
    assert run("--check", "--diff", inference_pool_picker_config=config) == 0
    assert run(inference_pool_picker_config=config) == 0
    assert template() == after


def test_pickers_go_before_others_by_a_class_that_is_made_once(api: ApiServer, tmp_path: Path) -> None:
    namespace, name = "ranked", "headrace-endpoint-picker"
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    pool = {"name": "llama", "picker": "llama-epp", "selector": {"app": "m"}, "namespace": namespace}
    given = {**VARIABLES, "inference_pool_pools": [pool], "inference_pool_certificate": "none"}
    tags = ("--tags", "inference_pool_picker")

    def run(chosen: str, *arguments: str) -> Run:
        return run_role(api, tmp_path, ROLE, given | {"inference_pool_priority_class": chosen}, *tags, *arguments)

    def pod() -> dict[str, Any]:
        return dict(api.get("deployment", "llama-epp", "-n", namespace)["spec"]["template"]["spec"])

    lesser = {"kind": "User", "name": "lesser", "apiGroup": "rbac.authorization.k8s.io"}
    view = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-reader"}
    rights = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]}]
    rbac = "rbac.authorization.k8s.io/v1"
    api.apply(
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": "cluster-reader"}, "rules": rights},
        {
            "apiVersion": rbac,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "lesser"},
            "roleRef": view,
            "subjects": [lesser],
        },
    )
    assert run(name, "--check").changed == 2
    named = given | {"inference_pool_priority_class": name}
    refused = play(tmp_path / f"{ROLE}.yml", named, *tags, environment={"K8S_AUTH_IMPERSONATE_USER": "lesser"})
    assert refused.returncode != 0
    assert "create and patch on priorityclasses" in refused.said, refused.output

    assert run(name).changed == 2
    made = api.get("priorityclass", name)
    assert (made["value"], made["preemptionPolicy"]) == (1_000_000, "Never")
    assert made["metadata"]["labels"]["app.kubernetes.io/part-of"] == "headrace"
    assert pod()["priorityClassName"] == name
    assert pod()["containers"][0]["resources"]["requests"]["cpu"] == "500m"
    assert run(name, "--check").changed == run(name).changed == 0

    missing_class = run("somebodys")
    assert missing_class.returncode != 0
    assert "no PriorityClass somebodys" in missing_class.said
    assert run("system-cluster-critical").changed == 1
    assert pod()["priorityClassName"] == "system-cluster-critical"
    assert run("").changed == 1
    assert "priorityClassName" not in pod()


def test_replicas_find_each_other_and_know_each_other_by_certificate(objects: list[dict[str, Any]]) -> None:
    arguments = " ".join(container(objects, "two-epp")["args"])
    assert "--peer-service two-epp-peers --peer-port 9104 --peer-cert-path /var/run/headrace/peers" in arguments
    service = found(objects, "Service", "two-epp-peers")["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert service["ports"][0]["port"] == 9104
    pod = found(objects, "Deployment", "two-epp")["spec"]["template"]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert {"name": "peers", "secret": {"secretName": "two-epp-peers-tls", "defaultMode": 0o440}} in pod["spec"][
        "volumes"
    ]
    environment = {
        entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in pod["spec"]["containers"][0]["env"]
    }
    assert environment["POD_IP"] == "status.podIP"
    rules = found(objects, "NetworkPolicy", "two-epp")["spec"]["ingress"]
    (own,) = [rule for rule in rules if {"protocol": "TCP", "port": 9104} in rule["ports"]]
    assert own["from"] == [{"podSelector": {"matchLabels": service["selector"]}}]
    assert found(objects, "PodDisruptionBudget", "two-epp")["spec"]["maxUnavailable"] == 1


def test_one_replica_has_nobody_to_talk_to(objects: list[dict[str, Any]]) -> None:
    assert missing(objects, "Service", "plain-epp-peers")
    assert not [argument for argument in container(objects, "plain-epp")["args"] if argument.startswith("--peer")]
    assert "peers" not in str(found(objects, "Deployment", "plain-epp"))
    assert len(found(objects, "NetworkPolicy", "plain-epp")["spec"]["ingress"]) == 2


def test_rights_are_given_where_they_are_switched_on_and_nowhere_else(objects: list[dict[str, Any]]) -> None:
    leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
    assert leases in found(objects, "Role", "led-epp")["rules"]
    assert leases not in found(objects, "Role", "two-epp")["rules"]
    name = "headrace-metrics-auth-dry-pools-led-epp"
    granted = {
        (resource, verb)
        for rule in found(objects, "ClusterRole", name)["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == {("tokenreviews", "create"), ("subjectaccessreviews", "create")}
    (subject,) = found(objects, "ClusterRoleBinding", name)["subjects"]
    assert (subject["name"], subject["namespace"]) == ("led-epp", "dry-pools")
    assert [one for one in objects if one["kind"].startswith("ClusterRole")] == [
        found(objects, "ClusterRole", name),
        found(objects, "ClusterRoleBinding", name),
    ]
    arguments = container(objects, "led-epp")["args"]
    switched = {"--ha-enable-leader-election=true", "--metrics-endpoint-auth=true", "--tracing=true"}
    assert switched | {"--pick-deadline=1s"} <= set(arguments)
    for picker in ("plain-epp", "two-epp"):
        assert not switched & set(container(objects, picker)["args"])


def test_traces_go_where_the_environment_says(objects: list[dict[str, Any]]) -> None:
    environment = {entry["name"]: entry.get("value") for entry in container(objects, "led-epp")["env"]}
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4317"
    assert environment["OTEL_BSP_SCHEDULE_DELAY"] == "1000"
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in {entry["name"] for entry in container(objects, "two-epp")["env"]}


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    def pool(**more: Any) -> dict[str, Any]:
        entry = {"name": "p", "picker": "p-epp", "selector": {"app": "m"}, **more}
        return {"inference_pool_pools": [entry], "inference_pool_image": "i"}

    said = refusals(
        tmp_path,
        ROLE,
        {
            "good": pool(replicas=2, leader_election=True, metrics_auth=True),
            "ports": pool(peer_port=9090),
            "flag": pool(extra_args=["--peers=10.0.0.1:9004"]),
            "switch": pool(extra_args=["--ha-enable-leader-election"]),
        },
    )
    assert said["good"] == ""
    assert "peer_port 9090" in said["ports"]
    assert "gives --peers=10.0.0.1:9004 in extra_args" in said["flag"]
    assert "gives --ha-enable-leader-election in extra_args" in said["switch"]


def test_models_have_the_names_that_clients_know_until_nobody_asks_for_them(api: ApiServer, tmp_path: Path) -> None:
    namespace, kind = "renamed", "inferencemodelrewrites"

    def run(*arguments: str, **more: Any) -> int:
        pool = {"name": "llama", "picker": "llama-epp", "selector": {"app": "m"}, "namespace": namespace, **more}
        variables = {**VARIABLES, "inference_pool_pools": [pool]}
        done = run_role(api, tmp_path, ROLE, variables, "--tags", "inference_pool_models", *arguments)
        assert done.returncode == 0, done.output
        return done.changed

    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    names = {"chat": "meta-llama/Llama-3", "old:7b": "meta-llama/Llama-3"}
    assert run("--check", model_rewrites=names) == 1
    assert run(model_rewrites=names) == 1
    assert run(model_rewrites=names) == 0
    made = api.get(kind, "llama-v1", "-n", namespace)["spec"]
    pool = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "llama"}
    assert made["poolRef"] == pool
    told = {rule["matches"][0]["model"]["value"]: rule["targets"][0]["modelRewrite"] for rule in made["rules"]}
    assert told == names
    assert run("--check") == 1
    assert run() == 1
    assert run() == 0
    assert api.get(kind, "-n", namespace)["items"] == []
    theirs = {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModelRewrite",
        "metadata": {"name": "llama-v1", "namespace": namespace}, "spec": {"poolRef": pool, "rules": made["rules"]},
    }  # fmt: skip
    api.apply(theirs)
    assert run() == 0, "somebody else's stays"
