"""What earlier picks have to tell later ones: where sessions went, and which endpoints got prompts no cache had."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from headrace.scheduling import Binding
from headrace.scheduling.plugin import BindSession, ColdPick

# Sessions are named by clients: so many are remembered. One costs about 400 bytes.
MAX_SESSIONS = 100_000


class PickMemory:
    """Notes of picks, kept. Not safe for threads: one event loop owns it."""

    def __init__(self, *, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        # By last use, oldest first, and with each how long it is to be kept.
        self._sessions: OrderedDict[str, Binding] = OrderedDict()
        self._ttls: dict[str, float] = {}
        self._cold: OrderedDict[str, int] = OrderedDict()
        self._cold_count = 0

    @property
    def sessions(self) -> Mapping[str, Binding]:
        """Where each session is bound. May have bindings whose time is over."""
        return self._sessions

    @property
    def cold_picks(self) -> Mapping[str, int]:
        """By endpoint, the number of the last pick that was cold there."""
        return self._cold

    def bind(self, note: BindSession, now: float) -> None:
        """A session's request went to a Pod."""
        self._sessions[note.session] = Binding(note.pod, now)
        self._sessions.move_to_end(note.session)
        self._ttls[note.session] = note.ttl_seconds
        if len(self._sessions) > self._max_sessions:
            self._drop_oldest()

    def cold_pick(self, note: ColdPick) -> None:
        """An endpoint was picked for a prompt that its cache did not have."""
        self._cold_count += 1
        self._cold[note.key] = self._cold_count
        self._cold.move_to_end(note.key)
        while len(self._cold) > note.keep:
            self._cold.popitem(last=False)

    def expire(self, now: float) -> None:
        """Drop the bindings whose time is over. Call it now and then."""
        while self._sessions:
            session, binding = next(iter(self._sessions.items()))
            if now - binding.used_at <= self._ttls[session]:
                return
            self._drop_oldest()

    def remove(self, key: str) -> None:
        """An endpoint left the pool."""
        self._cold.pop(key, None)

    def _drop_oldest(self) -> None:
        session, _ = self._sessions.popitem(last=False)
        del self._ttls[session]
