"""The role's RBAC, ports and arguments against what the controller asks for."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from headrace.gateway import watch
from headrace.gateway.nudge import GRANT_NAME
from headrace.gateway.options import add_arguments
from headrace.kube import objects as kinds
from headrace.kube.client import Resource

ROLE = Path(__file__).resolve().parents[3] / "roles/envoy_gateway"
TEMPLATE = (ROLE / "templates/controller.yaml.j2").read_text()


def rules(kind: str) -> list[dict[str, Any]]:
    """The rules of the controller's own role of that kind."""
    document = next(part for part in TEMPLATE.split("\n---\n") if f"\nkind: {kind}\n" in f"\n{part}")
    return list(yaml.safe_load(document[document.index("\nrules:") :])["rules"])


def may(found: list[dict[str, Any]], resource: Resource, *verbs: str, subresource: str = "") -> bool:
    plural = resource.plural + subresource
    return any(
        resource.group in rule["apiGroups"] and plural in rule["resources"] and set(verbs) <= set(rule["verbs"])
        for rule in found
    )


def test_the_cluster_role_lets_the_informers_read() -> None:
    followed = (*watch._EVERYWHERE, *watch._BESIDE_POOLS, kinds.CONFIG_MAPS)
    assert len(followed) >= 12
    for resource in followed:
        assert may(rules("ClusterRole"), resource, "get", "list", "watch"), resource
    for pools in kinds.POOLS.values():
        assert may(rules("ClusterRole"), pools, "patch", subresource="/status")
        assert not may(rules("ClusterRole"), pools, "patch")
    assert may(rules("ClusterRole"), kinds.EVENTS, "create")


def test_the_role_lets_it_write_its_own_grant_and_no_other() -> None:
    found = rules("Role")
    assert may(found, kinds.REFERENCE_GRANTS, "create")
    (patching,) = [rule for rule in found if "patch" in rule["verbs"]]
    assert patching["resourceNames"] == [GRANT_NAME]


def test_the_arguments_are_the_controllers() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    written = set(re.findall(r"'(--[a-z-]+)'", TEMPLATE))
    assert written
    assert written <= known
