"""What routes of role inference_gateway carry: inference paths, and nothing of the servers' management."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import load

MANAGEMENT = (
    "/metrics", "/sleep", "/wake_up", "/load", "/version", "/health", "/reset_prefix_cache", "/collective_rpc",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/load_lora_adapter", "/flush_cache", "/server_info", "/",
)  # fmt: skip
USED = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/embeddings", "/v1/responses/abc", "/tokenize")
TO_POOL = {"backends": [{"pool": "llama"}]}


@pytest.fixture(scope="module")
def made(repository: Path) -> ModuleType:
    return load(repository / "plugins/action/inference_route_rules.py")


def reached(rules: list[dict[str, Any]], path: str) -> str | None:
    """The path at the backend, by Gateway API's rules of prefixes; None where no backend is reached."""
    best: tuple[int, dict[str, Any], str] = (-1, {}, "")
    for rule in rules:
        for match in rule["matches"]:
            prefix = match["path"]["value"].rstrip("/")
            if f"{path}/".startswith(f"{prefix}/") and len(prefix) > best[0]:
                best = (len(prefix), rule, prefix)
    size, rule, _ = best
    if not rule.get("backendRefs"):
        return None
    if rule.get("filters"):
        target = rule["filters"][0]["urlRewrite"]["path"]["replacePrefixMatch"].rstrip("/")
        return f"{target}{path[size:]}"
    return path


@pytest.mark.parametrize(
    ("entry", "before", "after"),
    [
        ({}, "", ""),
        ({"path": "/"}, "", ""),
        ({"path": "/v1"}, "", ""),
        ({"path": "/team"}, "/team", "/team"),
        ({"path": "/qwen", "rewrite_prefix": "/"}, "/qwen", ""),
        ({"path": "/qwen/", "rewrite_prefix": "/base/"}, "/qwen", "/base"),
        ({"path": "/", "rewrite_prefix": "/base"}, "", "/base"),
    ],
)
def test_a_rule_to_a_pool_carries_inference_paths_only(
    made: ModuleType, entry: dict[str, Any], before: str, after: str
) -> None:
    rules = list(made.rules({**entry, **TO_POOL}))
    assert sum(len(rule["matches"]) for rule in rules) <= 64
    assert len(rules) <= 16
    for path in USED:
        if path.startswith(entry.get("path", "") if entry.get("path") == "/v1" else ""):
            assert reached(rules, before + path) == after + path, path
    for path in MANAGEMENT:
        assert reached(rules, before + path) is None, path


def test_a_prefix_that_stands_for_the_api_itself(made: ModuleType) -> None:
    rules = list(made.rules({"path": "/llm", "rewrite_prefix": "/v1", **TO_POOL}))
    assert reached(rules, "/llm/chat/completions") == "/v1/chat/completions"
    assert reached(rules, "/llm/unload_lora_adapter") is None


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "/v1/chat/completions"},
        {"path": "/metrics", "path_type": "Exact"},
        {"path": "/v1/.*", "path_type": "RegularExpression"},
        {"path": "/", "all_paths": True},
        {"path": "/", "backends": [{"service": "web", "port": "80"}]},
    ],
)
def test_what_is_named_is_carried_as_it_is(made: ModuleType, entry: dict[str, Any]) -> None:
    (rule,) = made.rules({**TO_POOL, **entry})
    assert [match["path"] for match in rule["matches"]] == [
        {"type": entry.get("path_type", "PathPrefix"), "value": entry["path"]}
    ]


def test_the_rest_of_an_entry_is_in_each_rule_that_leads_somewhere(made: ModuleType) -> None:
    headers = [{"name": "x-team", "value": "a"}]
    backends = [
        {"pool": "a", "weight": "3"},
        {"pool": "b", "api_version": "v1alpha2", "namespace": "far"},
        {"service": "web", "port": "8080"},
    ]
    entry = {"path": "/q", "rewrite_prefix": "/", "timeout": "30s", "headers": headers, "backends": backends}
    for rule in made.rules(entry):
        assert all(match["headers"] == headers for match in rule["matches"])
        if "backendRefs" in rule:
            assert rule["timeouts"] == {"request": "30s"}
            assert rule["backendRefs"] == [
                {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "a", "weight": 3},
                {"group": "inference.networking.x-k8s.io", "kind": "InferencePool", "name": "b", "namespace": "far"},
                {"group": "", "kind": "Service", "name": "web", "port": 8080},
            ]


@pytest.mark.parametrize(
    ("entry", "most"), [({}, 6), ({"path": "/a", "rewrite_prefix": "/"}, 4), ({"all_paths": True}, 16)]
)
def test_a_route_that_an_http_route_has_no_room_for_is_refused(
    made: ModuleType, entry: dict[str, Any], most: int
) -> None:
    def of(count: int) -> str:
        return str(made.problem("llama", [rule for _ in range(count) for rule in made.rules({**entry, **TO_POOL})]))

    assert of(most) == ""
    assert "route llama comes to" in of(most + 1)
