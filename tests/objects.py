"""Everything that an API server holds, to compare before and after."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

# Kinds that come and go by themselves, or are no stored objects.
PASSING = {"events", "events.events.k8s.io", "componentstatuses"}
# Of a Lease the holder and the time change as long as somebody works.
PASSING_SPECS = {"Lease"}


def everything(kubectl: Callable[..., str]) -> dict[str, Any]:
    """Every object of every kind that can be listed, by kind, namespace and name; each with what somebody wants of it.

    `kubectl` runs kubectl and returns what it printed. Versions, status and who wrote which field are left out; the
    uid is in, so that an object which was deleted and made again is another one. Objects that are being deleted are
    left out: where nothing finishes that, a namespace stays for ever.
    """
    kinds = sorted(set(kubectl("api-resources", "--verbs=list", "-o", "name").split()) - PASSING)
    items = json.loads(kubectl("get", ",".join(kinds), "-A", "-o", "json", "--show-managed-fields=false"))["items"]
    return {name_of(item): _wanted(item) for item in items if "deletionTimestamp" not in item["metadata"]}


def name_of(item: Mapping[str, Any]) -> str:
    """`Kind.group namespace/name`."""
    group = item["apiVersion"].rpartition("/")[0]
    kind = f"{item['kind']}.{group}" if group else item["kind"]
    return f"{kind} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}"


def _wanted(item: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in item.items() if key not in ("apiVersion", "kind", "status", "metadata")}
    if item["kind"] in PASSING_SPECS:
        kept.pop("spec", None)
    metadata = item["metadata"]
    named = {key: metadata.get(key) for key in ("uid", "labels", "finalizers", "ownerReferences")}
    return {**kept, "metadata": named}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lines that say what is no longer there, what is new, and what changed; empty where nothing did."""
    gone = [f"- {name}" for name in before if name not in after]
    new = [f"+ {name}" for name in after if name not in before]
    changed = [
        f"! {name}: {json.dumps(before[name], sort_keys=True)} -> {json.dumps(after[name], sort_keys=True)}"
        for name in before
        if name in after and before[name] != after[name]
    ]
    return sorted([*gone, *new, *changed])
