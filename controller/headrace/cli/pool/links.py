"""Checks across manifests: what refers to what, and whether it can work. What the files do not hold is not judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.cli.pool.findings import Findings
from headrace.cli.pool.manifests import Document
from headrace.config.pools import parse_pool
from headrace.core import EXTENSION_GROUP, GA_GROUP, InvalidPool, Pool
from headrace.core.pool import VERSION_OF_GROUP

_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "LeaderWorkerSet")
_REMOVED_FLAG = re.compile(
    r"--?(?:total-queued-requests|total-running-requests|kv-cache-usage-percentage|lora-info|cache-info)-metric\b"
)


@dataclass(frozen=True)
class _Workload:
    """Pods that the files make."""

    document: Document
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        """Its containers."""
        return [c for c in self.spec.get("containers") or [] if isinstance(c, Mapping)]

    @property
    def arguments(self) -> list[str]:
        """Command and arguments of all its containers."""
        found: list[str] = []
        for container in self.containers:
            for name in ("command", "args"):
                found += [str(part) for part in container.get(name) or []]
        return found

    def flag(self, name: str) -> str | None:
        """The value of `--name VALUE` or `--name=VALUE`; None where it is not given."""
        arguments = self.arguments
        for number, argument in enumerate(arguments):
            if argument == f"--{name}":
                return arguments[number + 1] if number + 1 < len(arguments) else ""
            if argument.startswith(f"--{name}="):
                return argument.partition("=")[2]
        return None


def check_links(documents: Sequence[Document], findings: Findings) -> None:
    """Check the references between documents."""
    pools: list[tuple[Document, Pool]] = []
    for document in documents:
        if document.kind == "InferencePool":
            try:
                pools.append((document, parse_pool(document.value)))
            except InvalidPool:
                continue
    services = {(d.namespace, d.name): d for d in documents if d.kind == "Service" and d.group == ""}
    workloads = list(_workloads(documents))
    for document, pool in pools:
        _check_service(document, pool, services, findings)
        _check_selection(document, pool, workloads, findings)
    by_name = {(pool.namespace, pool.name, pool.group): pool for _, pool in pools}
    for workload in workloads:
        _check_picker(workload, by_name, findings)
    for document in documents:
        if document.kind in ("HTTPRoute", "GRPCRoute"):
            _check_route(document, by_name, findings)
        elif document.kind in ("InferenceObjective", "InferenceModelRewrite"):
            reference = _get(document.value, "spec", "poolRef")
            if isinstance(reference, Mapping):
                group = str(reference.get("group") or GA_GROUP)
                _check_group(
                    document, "spec.poolRef", document.namespace, str(reference.get("name")), group, by_name, findings
                )


def _check_service(
    document: Document, pool: Pool, services: Mapping[tuple[str, str], Document], findings: Findings
) -> None:
    picker = pool.picker
    if picker is None or picker.kind != "Service":
        return
    path = "spec.extensionRef" if pool.group == EXTENSION_GROUP else "spec.endpointPickerRef"
    service = services.get((pool.namespace, picker.name))
    if service is None:
        return
    spec = service.value.get("spec")
    spec = spec if isinstance(spec, Mapping) else {}
    if spec.get("type") == "ExternalName":
        text = f"Service {picker.name} is of type ExternalName, which a pool must not use; give it a selector and ports"
        findings.error(document, f"{path}.name", text)
        return
    ports = [entry.get("port") for entry in spec.get("ports") or [] if isinstance(entry, Mapping)]
    if picker.port not in ports:
        text = f"Service {picker.name} has no port {picker.port}; it has {', '.join(map(str, ports)) or 'none'}"
        findings.error(document, path, text)


def _check_selection(document: Document, pool: Pool, workloads: Sequence[_Workload], findings: Findings) -> None:
    here = [w for w in workloads if w.document.namespace == pool.namespace]
    pickers = [w for w in here if w.flag("pool-name") is not None]
    servers = [w for w in here if w not in pickers]
    for workload in pickers:
        if pool.selects(workload.labels):
            who = f"{workload.document.kind} {workload.document.name}"
            text = f"it selects {who} too, an endpoint picker: requests would go there"
            findings.error(document, "spec.selector", text)
    chosen = [w for w in servers if pool.selects(w.labels)]
    if servers and not chosen:
        names = ", ".join(f"{w.document.kind} {w.document.name}" for w in servers[:5])
        findings.warning(document, "spec.selector", f"it selects none of the Pods in these files ({names})")
    path = "spec.targetPortNumber" if pool.group == EXTENSION_GROUP else "spec.targetPorts"
    for workload in chosen:
        ports = {
            entry.get("containerPort")
            for container in workload.containers
            for entry in container.get("ports") or []
            if isinstance(entry, Mapping)
        }
        if ports and not ports & set(pool.target_ports):
            given = ", ".join(str(port) for port in sorted(ports, key=str))
            text = f"none of these ports is one of {workload.document.kind} {workload.document.name}'s ({given})"
            findings.warning(document, path, text)


def _check_picker(workload: _Workload, pools: Mapping[tuple[str, str, str], Pool], findings: Findings) -> None:
    """An endpoint picker's flags."""
    name = workload.flag("pool-name")
    if name is None:
        return
    document = workload.document
    for argument in workload.arguments:
        if _REMOVED_FLAG.match(argument):
            flag = argument.partition("=")[0]
            text = f"{flag} is refused at start; leave it out: metric names follow from the Pods' engine-type label"
            findings.error(document, "spec.template.spec.containers", text)
    group = workload.flag("pool-group") or GA_GROUP
    namespace = workload.flag("pool-namespace") or document.namespace
    if "$(" not in namespace and "$(" not in name:
        path = "spec.template.spec.containers"
        _check_group(document, path, namespace, name, group, pools, findings, flag="--pool-group")


def _check_route(document: Document, pools: Mapping[tuple[str, str, str], Pool], findings: Findings) -> None:
    rules = _get(document.value, "spec", "rules")
    if rules is not None and not isinstance(rules, list):
        findings.error(document, "spec.rules", "give a list: a dash before the first key of each rule")
        return
    for number, rule in enumerate(rules or []):
        references = rule.get("backendRefs") if isinstance(rule, Mapping) else None
        for at, reference in enumerate(references if isinstance(references, list) else []):
            if not isinstance(reference, Mapping):
                continue
            path = f"spec.rules[{number}].backendRefs[{at}]"
            group, kind = str(reference.get("group") or ""), str(reference.get("kind") or "Service")
            name = str(reference.get("name"))
            namespace = str(reference.get("namespace") or document.namespace)
            if kind != "InferencePool":
                if group in VERSION_OF_GROUP:
                    findings.error(document, f"{path}.kind", f"{kind!r}: group {group} has kind InferencePool only")
                continue
            if group not in VERSION_OF_GROUP:
                fix = f"use {' or '.join(VERSION_OF_GROUP)}"
                findings.error(document, f"{path}.group", f"{group!r} has no InferencePool: {fix}")
                continue
            _check_group(document, path, namespace, name, group, pools, findings)
            if reference.get("port") is not None:
                findings.info(document, f"{path}.port", "the port of a reference to a pool is ignored")


def _check_group(
    document: Document,
    path: str,
    namespace: str,
    name: str,
    group: str,
    pools: Mapping[tuple[str, str, str], Pool],
    findings: Findings,
    *,
    flag: str = "group",
) -> None:
    """A reference to a pool that the files have in the other API group only."""
    if (namespace, name, group) in pools:
        return
    for other in VERSION_OF_GROUP:
        if (namespace, name, other) in pools:
            text = f"it means pool {name} of {group}; the one in these files is of another group: set {flag} to {other}"
            findings.error(document, path, text)


def _workloads(documents: Sequence[Document]) -> Iterator[_Workload]:
    for document in documents:
        if document.kind == "Pod":
            template: Any = document.value
        elif document.kind == "LeaderWorkerSet":
            template = _get(document.value, "spec", "leaderWorkerTemplate", "workerTemplate")
        elif document.kind in _WORKLOADS:
            template = _get(document.value, "spec", "template")
        else:
            continue
        spec, labels = _get(template, "spec"), _get(template, "metadata", "labels")
        if isinstance(spec, Mapping):
            found = labels if isinstance(labels, Mapping) else {}
            yield _Workload(document, {str(k): str(v) for k, v in found.items()}, spec)


def _get(value: Any, *steps: str) -> Any:
    for step in steps:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value
