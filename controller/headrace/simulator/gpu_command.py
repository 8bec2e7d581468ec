"""`headrace gpu-simulator`: advertises GPUs that do not exist to the kubelet of this node.

For clusters of one's own only: a Pod that gets a simulated GPU finds none. It sees `HEADRACE_SIMULATED_GPU=true`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from headrace.simulator.device_plugin import DEFAULT_FOLDER, DevicePlugin, SimulatedDevices
from headrace.simulator.ranges import whole_number

_logger = logging.getLogger(__name__)

# An extended resource: a DNS subdomain, a slash, a name. Kubernetes keeps its own domain for itself.
_RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_CHECK_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `headrace gpu-simulator`."""
    parser.add_argument("--resource", type=resource_name, default="nvidia.com/gpu", help="the resource to advertise")
    parser.add_argument(
        "--count", "--gpus", type=whole_number(0, 4096), default=1, help="simulated devices on this node"
    )
    parser.add_argument(
        "--plugin-dir", type=Path, default=DEFAULT_FOLDER, help="the kubelet's folder for device plugins"
    )
    parser.add_argument(
        "--unhealthy-file", type=Path, default=None, metavar="FILE",
        help="names of devices to report as unhealthy, one a line, '*' for all; read again when it changes",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Advertise until stopped; returns the exit code. Raises ValueError, naming the flag, for what cannot work."""
    return asyncio.run(advertise(args.resource, args.count, args.plugin_dir, args.unhealthy_file))


def resource_name(text: str) -> str:
    """An argparse type: an extended resource's name."""
    domain = text.partition("/")[0]
    if not _RESOURCE.fullmatch(text) or domain == "kubernetes.io" or domain.endswith(".kubernetes.io"):
        raise argparse.ArgumentTypeError(f"'{text}': give DOMAIN/NAME outside kubernetes.io, such as nvidia.com/gpu")
    return text


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
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    devices = SimulatedDevices(count)
    plugin = DevicePlugin(resource=resource, devices=devices, folder=folder)
    try:
        await _keep_registered(plugin, devices, lambda: read_unhealthy(unhealthy), stop)
    finally:
        await plugin.close()
    _logger.info("stopped")
    return 0


async def _keep_registered(
    plugin: DevicePlugin, devices: SimulatedDevices, unhealthy: Callable[[], frozenset[str]], stop: asyncio.Event
) -> None:
    while not stop.is_set():
        devices.set_unhealthy(unhealthy())
        await plugin.step()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CHECK_SECONDS):
                await stop.wait()
