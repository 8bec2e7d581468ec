"""What role pool_replacement makes of its variables and of what is recorded, rendered by Ansible itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from headrace.replace.canary import free_names
from headrace.replace.plan import parse_plan

ROUTES = [
    {"kind": "HTTPRoute", "namespace": "default", "name": "one"},
    {"kind": "HTTPRoute", "namespace": "default", "name": "two"},
    {"kind": "GRPCRoute", "namespace": "elsewhere", "name": "three"},
]
GA, ALPHA = "inference.networking.k8s.io", "inference.networking.x-k8s.io"


def rendered(repository: Path, folder: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each set of variables the role's templates, as objects, and the plan as the command gets it."""
    role = repository / "roles/pool_replacement"
    lookups = [
        f"'{name}': lookup('ansible.builtin.template', '{role / 'templates' / name}')"
        for name in ("guard.json.j2", "job.yaml.j2", "rbac.yaml.j2")
    ]
    inventory = repository / "playbooks/templates/replacement.json.j2"
    lookups.append(f"'inventory': lookup('ansible.builtin.template', '{inventory}')")
    # One task for each case: tasks are what takes time.
    content = "{{ {" + ", ".join([*lookups, "'plan': __pool_replacement_plan"]) + "} | to_json }}"
    given = {
        "pool_replacement_pool": "blue", "pool_replacement_new": "green", "pool_replacement_image": "image",
        "__pool_replacement_routes": ROUTES, "__pool_replacement_run": "1",
        "__pool_replacement_records": {"resources": []}, "__pool_replacement_leases": {"resources": []},
    }  # fmt: skip
    copies = [
        {
            "ansible.builtin.copy": {"dest": str(folder / f"{number}.json"), "content": content, "mode": "0600"},
            "vars": {**given, **variables},
        }
        for number, variables in enumerate(cases)
    ]
    play = {
        "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": copies,
        "vars_files": [str(role / "defaults/main.yml"), str(role / "vars/main.yml")],
        "vars": {"ansible_python_interpreter": sys.executable},
    }  # fmt: skip
    (folder / "play.yml").write_text(json.dumps([play]))
    # `removals.json.j2` is looked up by its short name, as in the role.
    (folder / "templates").symlink_to(role / "templates")
    command = [str(Path(sys.executable).parent / "ansible-playbook"), str(folder / "play.yml"), "-i", "localhost,"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    found = [json.loads((folder / f"{number}.json").read_text()) for number in range(len(cases))]
    return [
        {
            "guard": _parsed(one["guard.json.j2"]),
            "job": yaml.safe_load(one["job.yaml.j2"]),
            "rbac": [part for part in yaml.safe_load_all(one["rbac.yaml.j2"]) if part],
            "plan": one["plan"],
            "inventory": _parsed(one["inventory"]),
        }
        for one in found
    ]


def _parsed(value: Any) -> Any:
    """Of JSON text a template may make the value itself, or leave the text."""
    return json.loads(value) if isinstance(value, str) else value


def record(old: str, new: str, phase: str, finished: float = 0.0, group: str = GA) -> dict[str, Any]:
    plan = {
        "old": {"group": group, "namespace": "default", "name": old},
        "new": {"group": GA, "namespace": "default", "name": new},
    }
    data = {"plan.json": json.dumps(plan), "state.json": json.dumps({"phase": phase, "finished": finished})}
    return {"metadata": {"name": f"headrace-replace-{old}", "namespace": "default"}, "data": data}


def test_the_plan_is_one_that_the_command_takes_and_removal_needs_rights(repository: Path, tmp_path: Path) -> None:
    (found,) = rendered(repository, tmp_path, [{
        "pool_replacement_old": "remove", "pool_replacement_old_model_servers": ["blue-server"],
        "pool_replacement_settings": {"interval": 30, "max_ttft_ratio": 2}, "pool_replacement_steps": [50, 100],
        "pool_replacement_old_api_version": "v1alpha2",
    }])  # fmt: skip
    plan = parse_plan(found["plan"])
    assert (plan.old.group, plan.steps, plan.interval, plan.max_ttft_ratio) == (ALPHA, (50, 100), 30.0, 2.0)
    assert plan.remove_new == ()
    (container,) = found["job"]["spec"]["template"]["spec"]["containers"]
    (given,) = [argument for argument in container["args"] if argument.startswith("--plan=")]
    assert json.loads(given.removeprefix("--plan=")) == found["plan"]
    rules = [rule for one in found["rbac"] if one["kind"] == "Role" for rule in one["rules"]]
    of_cluster = [rule for one in found["rbac"] if one["kind"] == "ClusterRole" for rule in one["rules"]]
    for gone in plan.remove_old:
        assert any(
            gone.group in rule["apiGroups"] and gone.plural in rule["resources"] and "delete" in rule["verbs"]
            and rule.get("resourceNames") == [gone.name]
            for rule in (rules if gone.namespace else of_cluster)
        ), gone  # fmt: skip
    removed = [(gone.plural, gone.namespace, gone.name) for gone in plan.remove_old]
    for made in (
        ("horizontalpodautoscalers", "default", "blue-server"), ("scaledobjects", "default", "blue-server"),
        ("podmonitors", "default", "blue-server"), ("configmaps", "default", "blue-server-adapter-sync"),
        ("certificates", "default", "blue-epp"), ("certificates", "default", "blue-epp-peers"),
        ("clusterroles", "", "headrace-metrics-auth-default-blue-epp"),
        ("clusterrolebindings", "", "headrace-metrics-auth-default-blue-epp"),
    ):  # fmt: skip
        assert made in removed
    assert not [gone for gone in removed if gone[0] == "persistentvolumeclaims"], "a cache is kept"
    # What would make another one anew goes before it.
    order = [(plural, name) for plural, _, name in removed]
    assert order.index(("certificates", "blue-epp")) < order.index(("secrets", "blue-epp-tls"))
    scaler, server = ("horizontalpodautoscalers", "blue-server"), ("deployments", "blue-server")
    assert order.index(scaler) < order.index(server)
    # As `headrace pool replace` calls its own routes.
    of_routes = [rule for rule in rules if "httproutes" in rule["resources"] and "delete" in rule["verbs"]]
    assert [rule["resourceNames"] for rule in of_routes] == [list(free_names(plan.old, ()))] * 2
    # Whatever it may change or delete is named, but for what it makes.
    for rule in (*rules, *of_cluster):
        assert rule.get("resourceNames") or not {"patch", "update", "delete"} & set(rule["verbs"]), rule
    patched = {
        (one["metadata"]["namespace"], rule["resources"][0], name)
        for one in found["rbac"] if one["kind"] == "Role"
        for rule in one["rules"] if "patch" in rule["verbs"] and rule["resources"] != ["configmaps"]
        for name in rule["resourceNames"]
    }  # fmt: skip
    assert patched == {(one["namespace"], f"{one['kind'].lower()}s", one["name"]) for one in ROUTES}
    assert not [rule for rule in of_cluster if {"patch", "create"} & set(rule["verbs"])]


def test_what_the_other_pool_has_as_well_is_not_removed(repository: Path, tmp_path: Path) -> None:
    both = {"pool_replacement_old": "remove", "pool_replacement_new_on_rollback": "remove"}
    same = {
        "pool_replacement_pool": "blue", "pool_replacement_new": "blue", "pool_replacement_old_api_version": "v1alpha2",
        "pool_replacement_old_model_servers": ["shared", "own"], "pool_replacement_new_model_servers": ["shared"],
    }  # fmt: skip
    (found, none) = rendered(repository, tmp_path, [{**both, **same}, {**both, "pool_replacement_old_picker": ""}])
    plan = parse_plan(found["plan"])
    for removed in (plan.remove_old, plan.remove_new):
        names = {gone.name for gone in removed}
        assert "shared" not in names
        # Both pickers are blue-epp.
        assert not [name for name in names if "epp" in name]
        assert [gone.name for gone in removed if gone.plural == "inferencepools"] == ["blue"]
    assert plan.remove_old[0].group != plan.remove_new[0].group
    assert "own" in {gone.name for gone in plan.remove_old}
    plan = parse_plan(none["plan"])
    assert {gone.name for gone in plan.remove_old} == {"blue", "blue-v1"}
    assert "green-epp" in {gone.name for gone in plan.remove_new}


def test_of_a_replacement_that_only_the_record_names_nothing_is_removed(repository: Path, tmp_path: Path) -> None:
    recorded = {"new_name": "other", "new_group": GA}
    (found,) = rendered(repository, tmp_path, [{
        "pool_replacement_new": "", "pool_replacement_new_on_rollback": "remove", "pool_replacement_action": "rollback",
        "__pool_replacement_status": recorded,
    }])  # fmt: skip
    plan = parse_plan(found["plan"])
    assert (plan.new.name, plan.remove_new, plan.remove_old) == ("other", (), ())


BLUE, GREEN = {"name": "blue", "selector": {"app": "blue"}}, {"name": "green", "selector": {"app": "green"}}
SERVERS = [{"name": "blue"}, {"name": "green"}, {"name": "elsewhere", "namespace": "far", "labels": {"app": "blue"}}]
ALPHA_BLUE = {**BLUE, "api_version": "v1alpha2"}
BY_INSTANCE = {"name": "third", "selector": {"app.kubernetes.io/instance": "blue"}}
INVENTORIES: list[tuple[list[dict[str, Any]], str, tuple[list[str], str], tuple[list[str], str]]] = [
    ([BLUE, GREEN], "green", (["blue"], "blue-epp"), (["green"], "green-epp")),
    # Another API version of a pool: its servers and its picker serve on.
    ([ALPHA_BLUE, BLUE], "blue", ([], ""), ([], "")),
    ([{**ALPHA_BLUE, "picker": "old-epp"}, BLUE], "blue", ([], "old-epp"), ([], "blue-epp")),
    # A third pool's.
    ([BLUE, GREEN, {**BLUE, "name": "third"}], "green", ([], "blue-epp"), (["green"], "green-epp")),
    ([BLUE, GREEN, BY_INSTANCE], "green", ([], "blue-epp"), (["green"], "green-epp")),
    ([BLUE, GREEN, {"name": "third", "picker": "green-epp"}], "green", (["blue"], "blue-epp"), (["green"], "")),
    ([BLUE, GREEN, {**BLUE, "namespace": "far"}], "green", (["blue"], "blue-epp"), (["green"], "green-epp")),
]


def test_the_inventory_says_what_nobody_else_uses(repository: Path, tmp_path: Path) -> None:
    cases = [
        {"pool": "blue", "replacement": new, "inference_pool_pools": pools, "vllm_model_server_groups": SERVERS}
        for pools, new, *_ in INVENTORIES
    ]
    for (pools, new, *wanted), found in zip(INVENTORIES, rendered(repository, tmp_path, cases), strict=True):
        inventory = found["inventory"]
        got = [
            (inventory["remove"][which]["servers"], inventory["remove"][which]["picker"]) for which in ("old", "new")
        ]
        assert got == wanted, pools
        assert [group["name"] for group in inventory["new_servers"]] == [new]


GUARDED: list[tuple[list[dict[str, Any]], str, str]] = [
    ([record("blue", "green", "Gating")], "blue", "is being replaced by green (Gating)"),
    ([record("blue", "green", "Gating")], "other", "held by pod-1"),
    ([record("blue", "green", "Completed", 5)], "blue", "which was replaced by green"),
    ([record("blue", "green", "Completed", 5)], "green", ""),
    ([record("blue", "green", "RolledBack", 5)], "blue", ""),
    ([record("blue", "green", "Completed", 5), record("green", "blue", "Completed", 9)], "blue", ""),
    ([record("blue", "green", "Completed", 9), record("green", "blue", "Completed", 5)], "blue", "replaced by"),
    ([record("blue", "blue", "Completed", 5, ALPHA)], "blue", ""),
    ([{"metadata": {"name": "x", "namespace": "default"}, "data": {}}], "blue", ""),
]


def test_the_guard_refuses_what_contradicts_a_replacement(repository: Path, tmp_path: Path) -> None:
    lease = {
        "metadata": {"name": "headrace-replace-blue", "namespace": "default"}, "spec": {"holderIdentity": "pod-1"}
    }  # fmt: skip
    cases = [
        {
            "__pool_replacement_records": {"resources": records},
            "__pool_replacement_leases": {"resources": [lease]},
            "inference_gateway_routes": [
                {"name": "one", "rules": [{"backends": [{"pool": pool}, {"service": "x", "port": 80}]}]}
            ],
        }
        for records, pool, _ in GUARDED
    ]
    for (records, pool, problem), found in zip(GUARDED, rendered(repository, tmp_path, cases), strict=True):
        assert len(found["guard"]) == bool(problem), (records, pool)
        assert problem in " ".join(found["guard"])
