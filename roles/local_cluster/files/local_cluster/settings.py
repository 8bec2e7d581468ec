"""What the user chose, checked, and everything that follows from it: node names, addresses, paths."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = re.compile(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?")
CONTROL_PLANE = "cp"
_NETWORKS = ("node_network", "pod_network", "service_network", "load_balancer_network")
_SMALLEST = {"node_network": 26, "pod_network": 23, "service_network": 24, "load_balancer_network": 29}


@dataclass(frozen=True)
class Problem:
    """One thing that keeps the cluster from being built: the variable or part, what is wrong, the fix."""

    what: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}. Fix: {self.fix}."


@dataclass(frozen=True)
class Node:
    """A node, or the control plane (which is no Kubernetes node: nothing is scheduled there)."""

    name: str
    namespace: str
    address: str
    directory: Path
    pod_network: str = ""


@dataclass(frozen=True)
class Settings:
    """The cluster's settings. Networks are IPv4 in CIDR notation, the publish address is host:port."""

    name: str
    state_dir: Path
    node_network: ipaddress.IPv4Network
    pod_network: ipaddress.IPv4Network
    service_network: ipaddress.IPv4Network
    load_balancer_network: ipaddress.IPv4Network
    publish_address: str
    workers: int
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def host_address(self) -> str:
        """The host's own address in the node network."""
        return str(self.node_network[1])

    @property
    def host_link(self) -> str:
        """The only network device that the cluster has in the host's own network namespace."""
        return f"{self.name}-host"

    @property
    def control_plane(self) -> Node:
        """Where etcd, the API server, the controllers and the load balancer run."""
        return self._node(CONTROL_PLANE, 10)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The worker nodes n1, n2, ... Each has a /24 of the pod network, the first one being the network's second."""
        subnets = self.pod_network.subnets(new_prefix=24)
        next(subnets)
        return tuple(self._node(f"n{i}", 10 + i, str(next(subnets))) for i in range(1, self.workers + 1))

    @property
    def api_server(self) -> str:
        """The API server's URL, as clients on the host use it."""
        return f"https://{self.control_plane.address}:6443"

    @property
    def kubernetes_address(self) -> str:
        """The address of Service default/kubernetes."""
        return str(self.service_network[1])

    @property
    def dns_address(self) -> str:
        """The address of Service kube-system/kube-dns."""
        return str(self.service_network[10])

    def _node(self, name: str, offset: int, pod_network: str = "") -> Node:
        address = str(self.node_network[offset])
        return Node(name, f"{self.name}-{name}", address, self.state_dir / "nodes" / name, pod_network)

    def plan(self) -> dict[str, Any]:
        """Everything that templates need, as plain data."""
        return {
            "nodes": [
                {"name": node.name, "address": node.address, "pod_network": node.pod_network} for node in self.nodes
            ],
            "control_plane_address": self.control_plane.address,
            "control_plane_namespace": self.control_plane.namespace,
            "host_address": self.host_address,
            "api_server": self.api_server,
            "kubernetes_address": self.kubernetes_address,
            "dns_address": self.dns_address,
        }


def parse(raw: Mapping[str, Any]) -> tuple[Settings | None, list[Problem]]:
    """Check the settings. Either they are good, or there is at least one problem naming variable, value and fix."""
    problems: list[Problem] = []

    def bad(variable: str, why: str, fix: str) -> None:
        problems.append(Problem(f"local_cluster_{variable}", why, fix))

    name = str(raw["name"])
    if not NAME.fullmatch(name):
        bad(
            "name",
            f"{name!r} does not do",
            "take 1 to 10 of a-z, 0-9 and -, a letter first (network devices carry the name, and theirs end at 15)",
        )
    if not Path(str(raw["state_dir"])).is_absolute():
        bad("state_dir", f"{raw['state_dir']!r} is not absolute", "give an absolute path")
    networks: dict[str, ipaddress.IPv4Network] = {}
    for variable in _NETWORKS:
        try:
            networks[variable] = ipaddress.IPv4Network(str(raw[variable]))
        except ValueError as error:
            bad(variable, f"{raw[variable]!r} is no IPv4 network ({error})", "write it like 172.30.0.0/24")
            continue
        if networks[variable].prefixlen > _SMALLEST[variable]:
            bad(variable, f"{raw[variable]} is too small", f"make it a /{_SMALLEST[variable]} or larger")
    for i, one in enumerate(_NETWORKS):
        for other in _NETWORKS[i + 1 :]:
            if one in networks and other in networks and networks[one].overlaps(networks[other]):
                bad(one, f"{raw[one]} overlaps local_cluster_{other} {raw[other]}", "choose ranges that do not overlap")
    workers = raw["workers"]
    most = 50
    if "pod_network" in networks:
        most = min(most, 2 ** max(0, 24 - networks["pod_network"].prefixlen) - 1)
    if not isinstance(workers, int) or not 1 <= workers <= max(1, most):
        bad("workers", f"{workers!r} does not do", f"take 1 to {max(1, most)}")
    problems += _publish_address(str(raw["publish_address"]))
    labels = raw.get("node_labels") or {}
    if isinstance(workers, int):
        for node in sorted(set(labels) - {f"n{i}" for i in range(1, workers + 1)}):
            bad(
                "node_labels",
                f"there is no node {node!r}",
                f"name nodes n1 to n{workers}, or raise local_cluster_workers",
            )
    if problems:
        return None, problems
    settings = Settings(
        name,
        Path(str(raw["state_dir"])),
        **networks,
        publish_address=str(raw["publish_address"]),
        workers=workers,
        raw=raw,
    )
    return settings, []


def _publish_address(value: str) -> list[Problem]:
    if not value:
        return []
    host, _, port = value.rpartition(":")
    fix = "write an IPv4 address and a port from 1 to 65535, like 127.0.0.1:8080; empty publishes nothing"
    try:
        ipaddress.IPv4Address(host)
        good = port.isdecimal() and 1 <= int(port) <= 65535
    except ValueError:
        good = False
    return [] if good else [Problem("local_cluster_publish_address", f"{value!r} does not do", fix)]
