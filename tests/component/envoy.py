"""A real Envoy for component tests: started from a configuration, waited for, logged to a file, stopped by its pid."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from ..hang import HANG_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]


def envoy_binary() -> Path:
    """The Envoy to run: HEADRACE_TEST_ENVOY, or the one that the build puts below build/envoy."""
    return Path(os.environ.get("HEADRACE_TEST_ENVOY", REPOSITORY / "build/envoy/envoy/_bin/envoy"))


@dataclass
class Envoy:
    """A running Envoy. Configurations should bind port 0, so that tests run side by side: ask it where it listens."""

    process: asyncio.subprocess.Process
    admin_url: str
    log: Path

    async def listener_port(self, name: str) -> int:
        """The port the named listener is bound to."""
        listeners = await self.admin_json("/listeners?format=json")
        for status in listeners.get("listener_statuses", ()):
            if status["name"] == name:
                return int(status["local_address"]["socket_address"]["port_value"])
        raise LookupError(f"Envoy has no listener {name!r}: {listeners}")

    async def admin_json(self, path: str) -> dict[str, Any]:
        """An admin page that answers JSON, for instance /config_dump or /clusters?format=json."""
        return dict(json.loads(await self.admin_text(path)))

    async def admin_text(self, path: str) -> str:
        """Any admin page."""
        async with aiohttp.ClientSession() as session, session.get(self.admin_url + path) as answer:
            answer.raise_for_status()
            return await answer.text()

    async def counters(self, prefix: str = "") -> dict[str, int]:
        """Envoy's counters and gauges whose names start with `prefix`."""
        found: dict[str, int] = {}
        for line in (await self.admin_text("/stats")).splitlines():
            name, _, value = line.rpartition(": ")
            if name.startswith(prefix) and value.isdigit():
                found[name] = int(value)
        return found


@contextlib.asynccontextmanager
async def start_envoy(
    config: Mapping[str, Any],
    directory: Path,
    *,
    name: str = "envoy",
    log_level: str = "warning",
    concurrency: int = 1,
    prefix: Sequence[str] = (),
) -> AsyncIterator[Envoy]:
    """Run Envoy with `config` (a bootstrap as a dict; `admin` is filled in) until the block ends.

    Yields when the admin page says LIVE, that is when the first configuration, xDS included, is in place.
    `prefix` goes before Envoy's command. `directory` takes the configuration and the log `<name>.log`. Raises
    RuntimeError with the log's end if Envoy exits or never gets ready."""
    binary = envoy_binary()
    if not binary.exists():
        raise FileNotFoundError(f"{binary} is missing: build it, or name an Envoy in HEADRACE_TEST_ENVOY")
    config_file = directory / f"{name}.json"
    address_file = directory / f"{name}.admin"
    log = directory / f"{name}.log"
    address_file.unlink(missing_ok=True)
    admin = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    config_file.write_text(json.dumps({"admin": admin, **config}, indent=1))
    with log.open("wb") as log_stream:
        process = await asyncio.create_subprocess_exec(
            *(*prefix, str(binary)),
            *("-c", str(config_file), "--admin-address-path", str(address_file)),
            *("--concurrency", str(concurrency), "--disable-hot-restart", "--log-level", log_level),
            stdout=log_stream,
            stderr=log_stream,
        )
    try:
        envoy = Envoy(process, await _ready(process, address_file, log), log)
        yield envoy
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _ready(process: asyncio.subprocess.Process, address_file: Path, log: Path) -> str:
    """The admin page's URL, once it says LIVE. Envoy has no event to await from outside: polled every 20 ms."""
    try:
        async with asyncio.timeout(HANG_SECONDS), aiohttp.ClientSession() as session:
            while process.returncode is None:
                if address := _text(address_file).strip():
                    with contextlib.suppress(aiohttp.ClientError):
                        async with session.get(f"http://{address}/ready") as answer:
                            if answer.status == 200:
                                return f"http://{address}"
                await asyncio.sleep(0.02)
    except TimeoutError:
        pass
    tail = _text(log)[-4000:]
    raise RuntimeError(f"Envoy is not ready (exit code {process.returncode}); its log ends:\n{tail}")


def _text(path: Path) -> str:
    """What a small local file holds; "" while there is none."""
    return path.read_text(errors="replace") if path.exists() else ""
