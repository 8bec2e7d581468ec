"""`headrace gpu-simulator`: advertises GPUs that do not exist to the kubelet of this node.

For clusters of one's own only: a Pod that gets a simulated GPU finds none. It sees `HEADRACE_SIMULATED_GPU=true`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from headrace.config.flags import add_flags, flag, path, read_flags, whole
from headrace.serving.lifecycle import Shutdown, within
from headrace.simulator.device_plugin import DEFAULT_FOLDER, DevicePlugin, SimulatedDevices

_logger = logging.getLogger(__name__)

# An extended resource: a DNS subdomain, a slash, a name. Kubernetes keeps its own domain for itself.
_RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_CHECK_SECONDS = 1.0


def resource_name(text: str) -> str:
    """An extended resource's name. Raises ValueError."""
    domain = text.partition("/")[0]
    if not _RESOURCE.fullmatch(text) or domain == "kubernetes.io" or domain.endswith(".kubernetes.io"):
        raise ValueError("give DOMAIN/NAME outside kubernetes.io, such as nvidia.com/gpu")
    return text


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was asked to do."""

    resource: str = flag("nvidia.com/gpu", "the resource to advertise", resource_name)
    count: int = flag(1, "simulated devices on this node", whole(0, 4096), "--count --gpus")
    plugin_dir: Path = flag(str(DEFAULT_FOLDER), "the kubelet's folder for device plugins", Path)
    unhealthy_file: Path | None = flag(
        None,
        "names of devices to report as unhealthy, one a line, '*' for all; read again when it changes",
        path,
        metavar="FILE",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `headrace gpu-simulator`."""
    add_flags(parser, Options)


def run(args: argparse.Namespace) -> int:
    """Advertise until stopped; returns the exit code. Raises ValueError, naming the flag, for what cannot work."""
    options = read_flags(args, Options)
    return asyncio.run(advertise(options.resource, options.count, options.plugin_dir, options.unhealthy_file))


def read_unhealthy(path: Path | None) -> frozenset[str]:
    """The device names in a file; none where there is no file."""
    if path is None:
        return frozenset()
    try:
        return frozenset(path.read_text("utf-8", "replace").split())
    except OSError:
        return frozenset()


async def advertise(resource: str, count: int, folder: Path, unhealthy: Path | None) -> int:
    """Keep the plugin registered until SIGTERM or SIGINT."""
    shutdown = Shutdown()
    devices = SimulatedDevices(count)
    plugin = DevicePlugin(resource=resource, devices=devices, folder=folder)
    with shutdown.by_signals():
        try:
            while not shutdown.asked.is_set():
                devices.set_unhealthy(read_unhealthy(unhealthy))
                await plugin.step()
                await within(shutdown.asked, _CHECK_SECONDS)
        finally:
            await plugin.close()
    _logger.info("stopped")
    return 0
