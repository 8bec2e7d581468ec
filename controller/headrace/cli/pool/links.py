"""Checks across manifests: what refers to what, and whether it can work. What the files do not hold is not judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from headrace.cli.pool import findings
from headrace.cli.pool.findings import Finding
from headrace.cli.pool.manifests import Document
from headrace.config.pools import parse_pool
from headrace.core import EXTENSION_GROUP, GA_GROUP, InvalidPool, Pool
from headrace.core.fields import mapping, mappings
from headrace.core.pool import VERSION_OF_GROUP

_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "LeaderWorkerSet")
_REMOVED_FLAG = re.compile(
    r"--?(?:total-queued-requests|total-running-requests|kv-cache-usage-percentage|lora-info|cache-info)-metric\b"
)
# (namespace, name, group) of a pool.
_Key = tuple[str, str, str]
_CONTAINERS = "spec.template.spec.containers"


class _Workload(Struct, frozen=True):
    """Pods that the files make."""

    document: Document
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        """Its containers."""
        return list(mappings(self.spec.get("containers")))

    @property
    def arguments(self) -> list[str]:
        """Command and arguments of all its containers."""
        lists = (container.get(name) or [] for container in self.containers for name in ("command", "args"))
        return [str(part) for parts in lists for part in parts]

    def flag(self, name: str) -> str | None:
        """The value of `--name VALUE` or `--name=VALUE`; None where it is not given."""
        arguments = self.arguments
        for number, argument in enumerate(arguments):
            if argument == f"--{name}":
                return arguments[number + 1] if number + 1 < len(arguments) else ""
            if argument.startswith(f"--{name}="):
                return argument.partition("=")[2]
        return None

    def __str__(self) -> str:
        return f"{self.document.kind} {self.document.name}"


def check_links(documents: Sequence[Document]) -> Iterator[Finding]:
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
        service = services.get((pool.namespace, pool.picker.name)) if pool.picker is not None else None
        if service is not None:
            yield from _check_service(document, pool, service)
        yield from _check_selection(document, pool, workloads)
    links = _Links({(pool.namespace, pool.name, pool.group) for _, pool in pools})
    for workload in workloads:
        yield from links.check_picker(workload)
    for document in documents:
        if document.kind in ("HTTPRoute", "GRPCRoute"):
            yield from links.check_route(document)
        elif document.kind in ("InferenceObjective", "InferenceModelRewrite"):
            reference = _get(document.value, "spec", "poolRef")
            if isinstance(reference, Mapping):
                group = str(reference.get("group") or GA_GROUP)
                meant = (document.namespace, str(reference.get("name")), group)
                yield from links.check_group(document, "spec.poolRef", meant)


def _check_service(document: Document, pool: Pool, service: Document) -> Iterator[Finding]:
    picker = pool.picker
    if picker is None or picker.kind != "Service":
        return
    path = "spec.extensionRef" if pool.group == EXTENSION_GROUP else "spec.endpointPickerRef"
    spec = mapping(service.value.get("spec"))
    if spec.get("type") == "ExternalName":
        text = f"Service {picker.name} is of type ExternalName, which a pool must not use; give it a selector and ports"
        yield findings.error(document, f"{path}.name", text)
        return
    ports = [entry.get("port") for entry in mappings(spec.get("ports"))]
    if picker.port not in ports:
        text = f"Service {picker.name} has no port {picker.port}; it has {', '.join(map(str, ports)) or 'none'}"
        yield findings.error(document, path, text)


def _check_selection(document: Document, pool: Pool, workloads: Sequence[_Workload]) -> Iterator[Finding]:
    here = [w for w in workloads if w.document.namespace == pool.namespace]
    pickers = [w for w in here if w.flag("pool-name") is not None]
    servers = [w for w in here if w not in pickers]
    for workload in pickers:
        if pool.selects(workload.labels):
            text = f"it selects {workload} too, an endpoint picker: requests would go there"
            yield findings.error(document, "spec.selector", text)
    chosen = [w for w in servers if pool.selects(w.labels)]
    if servers and not chosen:
        names = ", ".join(map(str, servers[:5]))
        yield findings.warning(document, "spec.selector", f"it selects none of the Pods in these files ({names})")
    path = "spec.targetPortNumber" if pool.group == EXTENSION_GROUP else "spec.targetPorts"
    for workload in chosen:
        ports = {entry.get("containerPort") for c in workload.containers for entry in mappings(c.get("ports"))}
        if ports and not ports & set(pool.target_ports):
            given = ", ".join(str(port) for port in sorted(ports, key=str))
            yield findings.warning(document, path, f"none of these ports is one of {workload}'s ({given})")


class _Links(Struct, frozen=True):
    """References to pools. `pools` are those of the files."""

    pools: set[_Key]

    def check_picker(self, workload: _Workload) -> Iterator[Finding]:
        """An endpoint picker's flags."""
        name, document = workload.flag("pool-name"), workload.document
        if name is None:
            return
        for argument in workload.arguments:
            if _REMOVED_FLAG.match(argument):
                flag = argument.partition("=")[0]
                text = f"{flag} is refused at start; leave it out: metric names follow from the Pods' engine-type label"
                yield findings.error(document, _CONTAINERS, text)
        group = workload.flag("pool-group") or GA_GROUP
        namespace = workload.flag("pool-namespace") or document.namespace
        if "$(" not in namespace and "$(" not in name:
            yield from self.check_group(document, _CONTAINERS, (namespace, name, group), field="--pool-group")

    def check_route(self, document: Document) -> Iterator[Finding]:
        """A route's backends."""
        rules = _get(document.value, "spec", "rules")
        if rules is not None and not isinstance(rules, list):
            yield findings.error(document, "spec.rules", "give a list: a dash before the first key of each rule")
            return
        for number, rule in enumerate(rules or []):
            references = mapping(rule).get("backendRefs")
            for at, reference in enumerate(references if isinstance(references, list) else []):
                if isinstance(reference, Mapping):
                    yield from self._check_backend(document, f"spec.rules[{number}].backendRefs[{at}]", reference)

    def _check_backend(self, document: Document, path: str, reference: Mapping[str, Any]) -> Iterator[Finding]:
        group, kind = str(reference.get("group") or ""), str(reference.get("kind") or "Service")
        if kind != "InferencePool":
            if group in VERSION_OF_GROUP:
                yield findings.error(document, f"{path}.kind", f"{kind!r}: group {group} has kind InferencePool only")
        elif group not in VERSION_OF_GROUP:
            fix = f"use {' or '.join(VERSION_OF_GROUP)}"
            yield findings.error(document, f"{path}.group", f"{group!r} has no InferencePool: {fix}")
        else:
            namespace = str(reference.get("namespace") or document.namespace)
            yield from self.check_group(document, path, (namespace, str(reference.get("name")), group))
            if reference.get("port") is not None:
                yield findings.info(document, f"{path}.port", "the port of a reference to a pool is ignored")

    def check_group(self, document: Document, path: str, meant: _Key, field: str = "group") -> Iterator[Finding]:
        """A reference to a pool that the files have in the other API group only."""
        namespace, name, group = meant
        for other in VERSION_OF_GROUP if meant not in self.pools else ():
            if (namespace, name, other) in self.pools:
                text = f"it means pool {name} of {group}; the one in these files is of another group"
                yield findings.error(document, path, f"{text}: set {field} to {other}")


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
        spec = _get(template, "spec")
        if isinstance(spec, Mapping):
            labels = mapping(_get(template, "metadata", "labels"))
            yield _Workload(document, {str(k): str(v) for k, v in labels.items()}, spec)


def _get(value: Any, *steps: str) -> Any:
    for step in steps:
        value = mapping(value).get(step)
    return value
