"""Whose a route's rules are, by its managed fields: found before a replacement, given back after it. Pure.

A change of rules takes them from whoever applied them. Left so, the next server-side apply of the same rules would end
in a conflict, or count as a change. The API server lets managed fields be written as any field is, see
https://kubernetes.io/docs/reference/using-api/server-side-apply/#clearing-managedfields."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from headrace.protocol.objects import GITOPS_MARKS, REPLACEMENT

Object = Mapping[str, Any]
Operation = dict[str, Any]

# Whoever changes routes as a part of a replacement; the rules belong to it only meanwhile.
FIELD_MANAGER = REPLACEMENT

# Field managers of GitOps controllers.
_GITOPS_MANAGERS = {
    "argocd-controller": "Argo CD",
    "argocd-application-controller": "Argo CD",
    "kustomize-controller": "Flux",
    "helm-controller": "Flux",
}


class Owner(Struct, frozen=True):
    """An entry of managed fields that has a route's rules. `operation` is Apply or Update."""

    manager: str
    operation: str
    api_version: str
    subresource: str = ""


def gitops_owner(route: Object) -> str:
    """The GitOps controller that a route belongs to ("Argo CD", "Flux"), or "". Needs `managedFields`."""
    metadata = route.get("metadata") or {}
    for marks in (metadata.get("annotations"), metadata.get("labels")):
        for mark, owner in GITOPS_MARKS.items():
            if isinstance(marks, Mapping) and mark in marks:
                return owner
    for entry in _entries(route):
        owner = _GITOPS_MANAGERS.get(str(entry.get("manager") or ""), "")
        if owner and "f:spec" in (entry.get("fieldsV1") or {}):
            return owner
    return ""


def owners_of(route: Object) -> tuple[Owner, ...]:
    """Who has the rules of a route, ourselves left out."""
    found = (_owner(entry) for entry in _entries(route) if _has_rules(entry))
    return tuple(owner for owner in found if owner.manager != FIELD_MANAGER)


def give_back_patch(route: Object, owners: Iterable[Owner]) -> list[Operation]:
    """The operations that make a route's rules theirs again; none where they have them, or where nobody had."""
    wanted, kept = list(owners), [copy.deepcopy(dict(entry)) for entry in _entries(route)]
    ours = [entry for entry in kept if _owner(entry).manager == FIELD_MANAGER and _has_rules(entry)]
    if not wanted or not ours:
        return []
    for entry in ours:
        del entry["fieldsV1"]["f:spec"]["f:rules"]
        if not entry["fieldsV1"]["f:spec"]:
            del entry["fieldsV1"]["f:spec"]
    for entry in kept:
        if (owner := _owner(entry)) in wanted:
            entry.setdefault("fieldsV1", {}).setdefault("f:spec", {})["f:rules"] = {}
            wanted.remove(owner)
    # One that had nothing else is gone by now.
    kept += [
        {
            "manager": owner.manager,
            "operation": owner.operation,
            "apiVersion": owner.api_version,
            **({"subresource": owner.subresource} if owner.subresource else {}),
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:rules": {}}},
        }
        for owner in wanted
    ]
    version = (route.get("metadata") or {}).get("resourceVersion")
    return [
        {"op": "test", "path": "/metadata/resourceVersion", "value": version},
        {"op": "replace", "path": "/metadata/managedFields", "value": [entry for entry in kept if entry["fieldsV1"]]},
    ]


def _entries(route: Object) -> list[Mapping[str, Any]]:
    return [entry for entry in (route.get("metadata") or {}).get("managedFields") or () if isinstance(entry, Mapping)]


def _has_rules(entry: Mapping[str, Any]) -> bool:
    # Rules are an atomic list, so that nothing below them is ever named.
    return "f:rules" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})


def _owner(entry: Mapping[str, Any]) -> Owner:
    manager, operation, version = (str(entry.get(name) or "") for name in ("manager", "operation", "apiVersion"))
    return Owner(manager, operation, version, str(entry.get("subresource") or ""))
