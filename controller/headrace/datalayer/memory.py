"""What earlier picks have to tell later ones: where sessions went, and which endpoints got prompts no cache had."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from headrace.scheduling import Binding, EndpointState, Facts, Profile
from headrace.scheduling.plugin import BindSession, ColdPick

# Sessions are named by clients: so many are remembered. One costs about 400 bytes.
MAX_SESSIONS = 100_000


class PickMemory:
    """Notes of picks, kept. A data producer. Not safe for threads: one event loop owns it."""

    def __init__(self, *, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        # Where each session is bound, by last use, oldest first.
        self.sessions: OrderedDict[str, Binding] = OrderedDict()
        # By endpoint, the number of the last pick that was cold there.
        self.cold_picks: OrderedDict[str, int] = OrderedDict()
        self._cold_count = 0

    def prepare(self, facts: Facts, states: Sequence[EndpointState]) -> None:
        """Where sessions are bound (some bindings' time may be over), and which endpoints had cold picks when."""
        facts.sessions, facts.cold_picks = self.sessions, self.cold_picks

    def remember(self, profile: Profile, picked: EndpointState, facts: Facts) -> tuple[tuple[str, str], ...]:
        """Keep what the profile's plugins want kept of a pick. Gives the response headers that they ask for."""
        headers = []
        for note in (note for plugin in profile.note_takers for note in plugin.notes(picked, facts)):
            if isinstance(note, BindSession):
                self.bind(note, facts.now)
            elif isinstance(note, ColdPick):
                self.cold_pick(note)
            else:
                headers.append((note.name, note.value))
        return tuple(headers)

    def bind(self, note: BindSession, now: float) -> None:
        """A session's request went to a Pod."""
        self.sessions[note.session] = Binding(note.pod, now, note.ttl_seconds)
        self.sessions.move_to_end(note.session)
        if len(self.sessions) > self._max_sessions:
            self.sessions.popitem(last=False)

    def cold_pick(self, note: ColdPick) -> None:
        """An endpoint was picked for a prompt that its cache did not have."""
        self._cold_count += 1
        self.cold_picks[note.key] = self._cold_count
        self.cold_picks.move_to_end(note.key)
        while len(self.cold_picks) > note.keep:
            self.cold_picks.popitem(last=False)

    def expire(self, now: float) -> None:
        """Drop the bindings whose time is over. Call it now and then."""
        while self.sessions:
            binding = next(iter(self.sessions.values()))
            if now - binding.used_at <= binding.ttl_seconds:
                return
            self.sessions.popitem(last=False)

    def add(self, key: str) -> None:
        """An endpoint joins the pool: nothing is known of it."""

    def remove(self, key: str) -> None:
        """An endpoint left the pool."""
        self.cold_picks.pop(key, None)
