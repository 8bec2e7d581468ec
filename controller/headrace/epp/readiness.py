"""Whether the picker is ready and whether it serves: the answers to health checks, while it starts, runs and drains."""

from __future__ import annotations

from collections.abc import Callable

from headrace.protocol import rpc
from headrace.serving.health import Health


class Readiness:
    """`synced` says whether the pool is known. With an election only the replica that leads is ready.

    The kubelet asks for readiness. Gateways ask for the ext_proc service, which serves on for a while during a drain.
    The other names are those that charts and the conformance suite ask for."""

    def __init__(self, synced: Callable[[], bool], *, leading: bool) -> None:
        self._synced = synced
        self._leading = leading
        self._draining = False
        self._serves_on = False
        readiness = dict.fromkeys(("", "readiness", "inference-extension"), self.ready)
        self.health = Health({"liveness": lambda: True, rpc.EXT_PROC_SERVICE: self._serving, **readiness})

    def ready(self) -> bool:
        """Whether the process is to get requests."""
        return self._synced() and self._leading and not self._draining

    def _serving(self) -> bool:
        return self._serves_on if self._draining else self.ready()

    def lead(self, leading: bool) -> None:
        """The election has been won or lost."""
        self._leading = leading
        self.health.changed()

    def drain(self) -> None:
        """Not ready any more. To gateways it still serves."""
        self._serves_on, self._draining = self.ready(), True
        self.health.changed()

    def leave(self) -> None:
        """Gateways are told, too."""
        self._serves_on = False
        self.health.changed()
