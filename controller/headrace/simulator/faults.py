"""Faults of the simulated server, for tests of whatever stands before it: set by flag, or at run time by POST /faults.

| fault | what the server does |
|---|---|
| `hang` | the engine stops: requests are taken and not answered, the metrics page stands still, /health is 200 |
| `sleep` | as after vLLM's /sleep: the page says so, counts no request, and requests wait for /wake_up |
| `500`, `503` | every inference request is answered with this status at once |
| `slow=FACTOR` | every step takes FACTOR times as long |
| `drain` | as vLLM ends under --shutdown-timeout: new requests are answered 500, running ones go on, /health is 200 |
| `die=PROMPT` | the process dies, as by SIGKILL, of a request whose body has this text |
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.config.flags import flag
from headrace.simulator.engine import Engine
from headrace.simulator.loop import EngineLoop
from headrace.simulator.openai import ApiError, bad_field

PLAIN = ("hang", "sleep", "500", "503", "drain")
WITH_VALUE = ("slow", "die")
_FIX = f"give one of {', '.join(PLAIN)}, slow=FACTOR, die=PROMPT"


def _faults(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if name not in (*PLAIN, *WITH_VALUE) or bool(value) != (name in WITH_VALUE):
        raise ValueError(_FIX)
    if name == "slow":
        _factor(value)
    return name, value


def _factor(value: object) -> float:
    try:
        factor = float(value)  # type: ignore[arg-type]  # whatever it is: that is what is asked
    except (TypeError, ValueError):
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise ValueError("give slow a factor above 0")
    return factor


@dataclass(frozen=True, kw_only=True)
class FaultSettings:
    """What is wrong from the start, and who may change it."""

    fault: Sequence[str] = flag(
        [],
        f"begin with this fault, for tests: {', '.join(PLAIN)}, slow=FACTOR, die=PROMPT",
        nargs="+",
        action="extend",
        metavar="FAULT",
    )
    fault_control: bool = flag(
        False, "take POST /faults, which sets and clears faults: whoever reaches the port may", action="store_true"
    )
    enable_sleep_mode: bool = flag(
        False, "take /sleep, /wake_up and /is_sleeping, as vLLM in development mode does", action="store_true"
    )

    def __post_init__(self) -> None:
        for given in self.fault:
            try:
                _faults(given)
            except ValueError as error:
                raise ValueError(f"--fault {given}: {error}") from None


class Faults:
    """What is wrong with one server just now. Owned by its event loop."""

    def __init__(self, engine: Engine, loop: EngineLoop, settings: FaultSettings) -> None:
        self._engine = engine
        self._loop = loop
        self._awake = asyncio.Event()
        self._awake.set()
        self.hung = False
        self._status = 0
        self._die = b""
        self.draining = False
        for given in settings.fault:
            self._set(*_faults(given))

    @property
    def sleeping(self) -> int:
        """vLLM's level of sleep, 1 or 2; 0: awake."""
        return self._engine.sleep_level

    def change(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Set and clear faults: {"hang": true, "slow": 10, "500": false, ...}; the state after it. Raises ApiError."""
        for name, value in body.items():
            if name not in (*PLAIN, *WITH_VALUE):
                raise bad_field(name, value, _FIX)
            if name in PLAIN and not isinstance(value, bool):
                raise bad_field(name, value, "give true or false")
            if name == "die" and value and not isinstance(value, str):
                raise bad_field(name, value, "give a text that requests have, or null")
            if name == "slow" and value:
                try:
                    _factor(value)
                except ValueError as error:
                    raise bad_field(name, value, str(error)) from None
        for name, value in body.items():
            self._set(name, value)
        return self.state()

    def state(self) -> dict[str, Any]:
        """Every fault, and whether it is set."""
        return {
            "hang": self.hung,
            "sleep": bool(self.sleeping),
            "500": self._status == 500,
            "503": self._status == 503,
            "drain": self.draining,
            "slow": self._engine.slowness,
            "die": self._die.decode(),
        }

    def _set(self, name: str, value: object) -> None:
        # A flag's text, or a value of POST /faults: a plain fault is set by the flag's empty text.
        on = value is True or value == ""
        if name == "hang":
            self.hung = on
            self._apply()
        elif name == "sleep":
            self.sleep(1) if on else self.wake()
        elif name in ("500", "503"):
            if on or self._status == int(name):
                self._status = int(name) if on else 0
        elif name == "drain":
            self.draining = on
        elif name == "slow":
            self._engine.slowness = _factor(value) if value else 1.0
        else:
            self._die = str(value or "").encode()

    def sleep(self, level: int) -> None:
        """Fall asleep. What runs ends as aborted; what comes waits, and the page does not count it."""
        self._loop.abort_all()
        self._engine.sleep_level = level
        self._apply()

    def wake(self) -> None:
        """Wake up, and answer what has come meanwhile."""
        self._engine.sleep_level = 0
        self._apply()

    def _apply(self) -> None:
        self._loop.pause(self.hung)
        if self.hung or self.sleeping:
            self._awake.clear()
        else:
            self._awake.set()

    # ---- what a request meets

    def read(self, body: bytes) -> None:
        """A request's body has come: of one kind the server dies."""
        if self._die and self._die in body:
            os.kill(os.getpid(), signal.SIGKILL)

    def admit(self) -> None:
        """Refuse a request that this server cannot take. Raises ApiError."""
        if self.draining:
            raise ApiError(500, "cannot schedule new futures after shutdown", kind="InternalServerError")
        if self._status == 503:
            raise ApiError(503, "simulated failure (503)", kind="ServiceUnavailableError")
        if self._status:
            raise ApiError(500, "simulated failure (500)", kind="InternalServerError")

    async def engine_takes(self) -> None:
        """Wait until the engine takes requests: for ever, while it hangs or sleeps."""
        await self._awake.wait()
