"""Network namespaces, the bridge between the nodes, and routes.

The bridge is in the control plane's namespace: the host has one device (`<name>-host`) and routes through it, no
bridge, no firewall rule and no changed sysctl. No namespace has a default route: nothing here reaches the outside.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .settings import Node, Problem, Settings

BRIDGE = "nodes"
HOST_PORT = "host"
PACKAGES = {"ip": "iproute2"}
# A device's alias is what says whose it is; longer ones the kernel refuses.
LONGEST_ALIAS = 255


class CommandError(Exception):
    """A command that must work did not; the message has the command and what it said."""


def command(*argv: str) -> str:
    """Run a command and return its output.

    Raises:
        CommandError: it ended with another code than 0.
    """
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CommandError(f"`{argv[0]}` is not installed. Fix: install {PACKAGES.get(argv[0], argv[0])}") from None
    if done.returncode:
        raise CommandError(
            f"`{' '.join(argv)}` ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def stranger(found: str) -> Problem:
    """The refusal to take what somebody else made, such as `netns a-n1`, for the cluster's own."""
    why = f"`ip {found.split()[0]} show` has {found.split()[1]}, and no cluster in the state folder made it"
    fix = f"choose another name; or remove it if it is a lost cluster's: ip {found.replace(' ', ' del ', 1)}"
    return Problem("local_cluster_name", why, fix)


@dataclass
class Network:
    """Brings the machine's network to what the settings say. With `check` it only says what it would do."""

    settings: Settings
    check: bool
    changes: list[str] = field(default_factory=list)

    def up(self) -> list[str]:
        """Create what is missing; answer with what that was."""
        settings = self.settings
        switch = settings.control_plane
        for node in (switch, *settings.nodes):
            self._namespace(node)
            self._mark(node.namespace, "lo")
        if self.check and not Path("/run/netns", switch.namespace).exists():
            return self.changes
        self._bridge(switch)
        self._cable(None, settings.host_link, switch, HOST_PORT)
        self._address(None, settings.host_link, settings.host_address)
        self._mark(None, settings.host_link)
        for node in settings.nodes:
            self._cable(node.namespace, "eth0", switch, node.name)
            self._address(node.namespace, "eth0", node.address)
        for namespace, target, via in self._routes():
            self._route(namespace, target, via)
        return self.changes

    def down(self) -> list[str]:
        """Remove everything of this cluster; routes go with the device.

        With its state folder, all that has the cluster's name is its own. Without, only what its marks say is.
        """
        known = (self.settings.state_dir / "cluster.json").exists()
        if Path("/sys/class/net", self.settings.host_link).exists() and (known or self._ours(None)):
            self._do(f"remove device {self.settings.host_link}", "ip", "link", "del", self.settings.host_link)
        for namespace in self.namespaces():
            if known or self._ours(namespace):
                self._do(f"remove network namespace {namespace}", "ip", "netns", "del", namespace)
        return self.changes

    def strangers(self) -> list[str]:
        """What has this cluster's name and not its mark: the device and network namespaces, as ip(8) names them."""
        link = self.settings.host_link
        found = [f"link {link}"] if Path("/sys/class/net", link).exists() and not self._ours(None) else []
        return found + [f"netns {namespace}" for namespace in self.namespaces() if not self._ours(namespace)]

    def marked(self) -> bool:
        """Whether something here carries this cluster's mark."""
        return any(map(self._ours, self.namespaces())) or self._ours(None)

    @property
    def _alias(self) -> str:
        return f"headrace {self.settings.state_dir}"[:LONGEST_ALIAS]

    def _ours(self, namespace: str | None) -> bool:
        """Whether a namespace (None: the device on the host) carries this cluster's mark. It goes where that goes."""
        device = "lo" if namespace else self.settings.host_link
        try:
            shown = json.loads(command(*self._ip(namespace), "-j", "link", "show", "dev", device) or "[]")
        except CommandError:
            return False
        return any(link.get("ifalias") == self._alias for link in shown)

    def _mark(self, namespace: str | None, device: str) -> None:
        if not self._ours(namespace):
            change = f"mark {device} of {namespace or 'the host'} as the cluster's"
            self._do(change, *self._ip(namespace), "link", "set", "dev", device, "alias", self._alias)

    def namespaces(self) -> list[str]:
        """The cluster's network namespaces that exist, whatever its number of workers was."""
        wanted = (self.settings.control_plane.namespace, f"{self.settings.name}-n")
        return sorted(
            path.name
            for path in Path("/run/netns").glob(f"{self.settings.name}-*")
            if path.name == wanted[0] or path.name.removeprefix(wanted[1]).isdecimal()
        )

    def _do(self, change: str, *argv: str) -> None:
        self.changes.append(change)
        if not self.check:
            command(*argv)

    def _ip(self, namespace: str | None) -> tuple[str, ...]:
        return ("ip", "-n", namespace) if namespace else ("ip",)

    def _links(self, namespace: str | None) -> dict[str, dict[str, Any]]:
        if namespace and not Path("/run/netns", namespace).exists():
            return {}
        return {
            link["ifname"]: link for link in json.loads(command(*self._ip(namespace), "-j", "addr", "show") or "[]")
        }

    def _namespace(self, node: Node) -> None:
        if not Path("/run/netns", node.namespace).exists():
            self._do(f"create network namespace {node.namespace}", "ip", "netns", "add", node.namespace)
        if "UP" not in self._links(node.namespace).get("lo", {}).get("flags", ["UP"]):
            self._do(f"start lo of {node.namespace}", "ip", "-n", node.namespace, "link", "set", "lo", "up")

    def _bridge(self, switch: Node) -> None:
        if BRIDGE not in self._links(switch.namespace):
            self._do(
                "create the bridge between the nodes",
                "ip",
                "-n",
                switch.namespace,
                "link",
                "add",
                BRIDGE,
                "type",
                "bridge",
            )
        self._address(switch.namespace, BRIDGE, switch.address)

    def _cable(self, namespace: str | None, device: str, switch: Node, port: str) -> None:
        """A veth pair from a namespace (None: the host's) to a port of the bridge."""
        here, there = self._links(namespace).get(device), self._links(switch.namespace).get(port)
        if here and there:
            return
        # Half a pair is what a namespace that was made anew leaves.
        if here:
            command(*self._ip(namespace), "link", "del", device)
        if there:
            command("ip", "-n", switch.namespace, "link", "del", port)
        peer = ("netns", namespace) if namespace else ("netns", "1")
        end = f"{namespace}/{device}" if namespace else device
        self.changes.append(f"connect {end} with the bridge")
        if self.check:
            return
        if namespace:
            command("ip", "-n", switch.namespace, "link", "add", port, "type", "veth", "peer", "name", device, *peer)
        else:
            command("ip", "link", "add", device, "type", "veth", "peer", "name", port, "netns", switch.namespace)
        command("ip", "-n", switch.namespace, "link", "set", port, "master", BRIDGE, "up")

    def _address(self, namespace: str | None, device: str, address: str) -> None:
        link = self._links(namespace).get(device, {})
        length = self.settings.node_network.prefixlen
        if not any(
            info.get("local") == address and info.get("prefixlen") == length for info in link.get("addr_info", [])
        ):
            self._do(
                f"give {device} the address {address}",
                *self._ip(namespace),
                "addr",
                "replace",
                f"{address}/{length}",
                "dev",
                device,
            )
        if "UP" not in link.get("flags", []):
            self._do(f"start {device}", *self._ip(namespace), "link", "set", device, "up")

    def _routes(self) -> Iterator[tuple[str | None, str, str | None]]:
        """(namespace, target, via): via None is on the wire itself, where kube-proxy turns it to a Pod."""
        settings = self.settings
        first = settings.nodes[0]
        for node in settings.nodes:
            yield None, node.pod_network, node.address
            yield settings.control_plane.namespace, node.pod_network, node.address
        yield None, str(settings.service_network), first.address
        yield None, str(settings.load_balancer_network), first.address
        yield settings.control_plane.namespace, str(settings.service_network), first.address
        for node in settings.nodes:
            yield node.namespace, str(settings.service_network), None
            yield node.namespace, str(settings.load_balancer_network), None
            for other in settings.nodes:
                if other != node:
                    yield node.namespace, other.pod_network, other.address

    def _route(self, namespace: str | None, target: str, via: str | None) -> None:
        if namespace and not Path("/run/netns", namespace).exists():
            return
        routes = json.loads(command(*self._ip(namespace), "-j", "-4", "route", "show", "exact", target) or "[]")
        # The load balancer moves the shared networks to another node where it must: any node will do.
        if routes and routes[0].get("gateway") in ({node.address for node in self.settings.nodes} if via else {None}):
            return
        where = ("via", via) if via else ("dev", "eth0")
        self._do(
            f"route {target} in {namespace or 'the host'}", *self._ip(namespace), "route", "replace", target, *where
        )
