"""Role lora_adapters: what it keeps for sidecars, how it splits requests, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .apiserver import ApiServer
from .roles import refusals, render, validate

ROLE = "lora_adapters"
POOL = {
    "name": "servers",
    "adapters": [
        {"name": "sql-v1", "source": "/v1"},
        {"name": "sql-v2", "source": "/v2", "state": "present"},
        {"name": "old", "state": "absent"},
    ],
}
CANARY = {"name": "sql", "group": "servers", "pool": "llama", "model": "sql", "from": "sql-v1", "to": "sql-v2"}


def test_the_list_for_the_sidecars(tmp_path: Path) -> None:
    [config] = render(tmp_path, ROLE, "adapters.yaml.j2", {"lora_adapters_pools": [POOL]}, "__lora_adapters_pools")
    assert config["metadata"]["name"] == "servers-adapters"
    assert json.loads(config["data"]["adapters.json"]) == {
        "present": [{"name": "sql-v1", "source": "/v1"}, {"name": "sql-v2", "source": "/v2"}],
        "absent": ["old"],
    }


@pytest.mark.parametrize(
    ("share", "targets"),
    [
        (10, [{"modelRewrite": "sql-v2", "weight": 10}, {"modelRewrite": "sql-v1", "weight": 90}]),
        (100, [{"modelRewrite": "sql-v2", "weight": 100}]),
        (0, [{"modelRewrite": "sql-v1", "weight": 100}]),
    ],
)
def test_requests_are_split_by_weight(tmp_path: Path, share: int, targets: list[dict[str, Any]]) -> None:
    variables = {"lora_adapters_pools": [POOL], "lora_adapters_namespace": "llms"}
    canary = {**CANARY, "pool_api_version": "v1"}
    [rewrite] = render(
        tmp_path, ROLE, "rewrite.yaml.j2", variables, __lora_adapters_canary=canary, __lora_adapters_share=share
    )
    assert rewrite["metadata"]["namespace"] == "llms"
    assert rewrite["spec"]["poolRef"] == {
        "group": "inference.networking.k8s.io",
        "kind": "InferencePool",
        "name": "llama",
    }
    assert rewrite["spec"]["rules"] == [{"matches": [{"model": {"type": "Exact", "value": "sql"}}], "targets": targets}]


def canary(**keys: Any) -> dict[str, Any]:
    return {"lora_adapters_pools": [POOL], "lora_adapters_canaries": [{**CANARY, **keys}]}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "source": ({"lora_adapters_pools": [{"name": "s", "adapters": [{"name": "a"}]}]}, "an adapter of s has no source"),
    "twice": (
        {
            "lora_adapters_pools": [
                {"name": "s", "adapters": [{"name": "a", "source": "/a"}, {"name": "a", "source": "/b"}]}
            ]
        },
        "s names an adapter twice",
    ),
    "group": (canary(group="other"), "group is an entry of lora_adapters_pools"),
    "to": (canary(to="none"), "replaces sql-v1 by none"),
    "gone": (canary(to="old"), "replaces sql-v1 by old"),
    "same": (canary(**{"from": "sql-v2"}), "replaces sql-v2 by sql-v2"),
    "steps": ({**canary(), "lora_adapters_steps": [50, 10, 100]}, "rise to 100"),
    "last": ({**canary(), "lora_adapters_steps": [10, 50]}, "rise to 100"),
    "fine": (canary(), ""),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return refusals(tmp_path_factory.mktemp("refusals"), ROLE, {name: case[0] for name, case in CASES.items()})


@pytest.mark.parametrize("name", sorted(CASES))
def test_wrong_input_is_refused(told: dict[str, str], name: str) -> None:
    assert CASES[name][1] in told[name]
    assert bool(CASES[name][1]) == bool(told[name])


def test_the_rewrite_is_valid_to_the_letter(api: ApiServer, tmp_path: Path) -> None:
    """Against the CRD of InferenceModelRewrite, where this collection has it."""
    if api.kubectl("get", "crd", "inferencemodelrewrites.inference.networking.x-k8s.io").returncode != 0:
        pytest.skip("crds/ has no InferenceModelRewrite")
    canary = {**CANARY, "pool_api_version": "v1alpha2"}
    variables = {"lora_adapters_pools": [POOL], "lora_adapters_namespace": "llms"}
    for number, share in enumerate((10, 100)):
        folder = tmp_path / str(number)
        folder.mkdir()
        objects = render(
            folder, ROLE, "rewrite.yaml.j2", variables, __lora_adapters_canary=canary, __lora_adapters_share=share
        )
        assert validate(api, objects) == ""
