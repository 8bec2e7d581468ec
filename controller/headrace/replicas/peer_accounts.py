"""What other replicas tell, put into our own books: their requests into the ledger, where they count for their
endpoints as ours do, and what they have sent where into the prefix index. No I/O.

A replica that is silent for too long is forgotten, with all that it had in flight. One whose updates are out of step is
told so by OutOfStep: follow it anew, and it begins with its account as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field

from google.protobuf.message import DecodeError

from headrace.core import Asked
from headrace.datalayer.evidence import Failure, Origin
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.store import EndpointStore
from headrace.prefixes.approximate import PrefixIndex
from headrace.replicas import peers_pb2 as messages

# A replica with nothing to tell says so once a second.
SILENT_SECONDS = 3.0
# Two clocks drift apart by no more than this.
_DRIFT = 2e-4


class OutOfStep(ValueError):  # noqa: N818
    """An update that does not follow the last one, or cannot be read: the replica has to be followed anew."""


def read_update(raw: bytes) -> messages.Update:
    """The update that these bytes are. Raises OutOfStep."""
    try:
        update = messages.Update.FromString(raw)
    except DecodeError as error:
        raise OutOfStep(f"not an Update: {error}") from None
    if not update.replica:
        raise OutOfStep("an Update that names no replica")
    return update


@dataclass(slots=True)
class Peer:
    """Another replica, as far as it has told of itself. Times are seconds of our clock."""

    replica: str
    name: str = ""
    sequence: int = 0
    heard_at: float = 0.0
    updates: int = 0
    # How much longer than the fastest update the last one took to get here.
    lag: float = 0.0
    entries: dict[int, InFlight] = field(default_factory=dict)
    # Their clock to ours, plus the shortest way seen.
    _offset: float | None = None

    def heard(self, made_at: float, now: float) -> None:
        """An update came, that was made at this time of the replica's own clock."""
        offset = now - made_at
        if self._offset is None:
            self._offset = offset
        self._offset = min(offset, self._offset + (now - self.heard_at) * _DRIFT)
        self.lag = offset - self._offset
        self.heard_at = now
        self.updates += 1


@dataclass(eq=False)
class PeerAccounts:
    """The other replicas' part of the books. Belongs to the event loop that owns the ledger.

    `me` is our own name among replicas. `on_pick` is told the endpoint of each request that another one has picked,
    `on_failure` each failed answer that another one has seen."""

    store: EndpointStore
    ledger: Ledger
    index: PrefixIndex
    _: KW_ONLY
    me: str
    clock: Callable[[], float]
    on_pick: Callable[[str], None] = lambda key: None
    on_failure: Callable[[Failure], None] = lambda failure: None

    def __post_init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def peers(self) -> Iterator[Peer]:
        """Those that are heard."""
        return iter(self._peers.values())

    def get(self, replica: str) -> Peer | None:
        """One of them."""
        return self._peers.get(replica)

    def receive(self, update: messages.Update) -> None:
        """Take an update. Raises OutOfStep."""
        now = self.clock()
        peer = self._peers.get(update.replica)
        if update.reset:
            peer = self._reset(update.replica, now)
        elif peer is None or update.sequence not in (peer.sequence, peer.sequence + 1):
            expected = "a whole account" if peer is None else f"update {peer.sequence} or the next"
            raise OutOfStep(f"update {update.sequence} of {update.replica} came in place of {expected}")
        peer.sequence, peer.name = update.sequence, update.name
        peer.heard(update.made_at, now)
        for change in update.changes:
            kind = change.WhichOneof("change")
            if kind == "started":
                self._started(peer, change.started, now)
            elif kind == "finished":
                self._finished(peer, change.finished, now)
            elif kind == "moved":
                self._moved(peer, change.moved, now)
        for sent in update.sent:
            self._sent(sent)
        for failure in update.failures:
            origin = Origin(failure.flow, failure.first_block)
            self.on_failure(Failure(failure.endpoint, origin, failure.served))

    def expire(self) -> list[str]:
        """Forget those that are silent; gives their names."""
        now = self.clock()
        silent = [replica for replica, peer in self._peers.items() if now - peer.heard_at > SILENT_SECONDS]
        for replica in silent:
            self.forget(replica)
        return silent

    def forget(self, replica: str) -> None:
        """A replica is gone: what it had in flight is not counted any more."""
        peer = self._peers.pop(replica, None)
        if peer is not None:
            for entry in peer.entries.values():
                self.ledger.abandon(entry, self.clock())

    def add(self, key: str) -> None:
        """An endpoint joined the pool: others may have known it before us."""
        record = self.store.get(key)
        if record is None:
            return
        for peer in self._peers.values():
            for entry in peer.entries.values():
                if entry.endpoint == key and entry.record is None:
                    self.ledger.recount(entry, key, self.clock())

    def remove(self, key: str) -> None:
        """An endpoint left it: what is in flight there has no record any more."""

    def _reset(self, replica: str, now: float) -> Peer:
        self.forget(replica)
        peer = self._peers[replica] = Peer(replica, heard_at=now)
        return peer

    def _started(self, peer: Peer, told: messages.Started, now: float) -> None:
        entry = _entry(peer.replica, told, now)
        known = peer.entries.get(told.number)
        if known is not None:
            if known.pick is None and entry.pick is not None:
                known.pick = entry.pick
                _describe(known, entry)
            self._set(known, told.endpoint, told.tokens, now)
            return
        ledger = self.ledger
        if entry.elsewhere:
            pick = ledger.find_pick(entry.request_id, entry.picked_for, peer.replica)
            if pick is not None:
                self._hand_over(pick, peer, entry, now)
                return
        else:
            name = (peer.replica, told.number)
            observed = ledger.find_observed(entry.request_id, entry.picked_for, name)
            if observed is not None:
                if observed.pick is None:
                    observed.pick = name
                    _describe(observed, entry)
                    if not observed.owner:
                        ledger.described(observed)
                return
            if ledger.ended_elsewhere(entry.request_id, entry.picked_for, name):
                return
        peer.entries[entry.number] = entry
        ledger.put(entry)
        record = entry.record = self.store.get(entry.endpoint)
        if record is not None:
            on_page = record.scraped_at is not None and entry.started_at <= record.scraped_at
            record.started(entry.model, entry.size, now, entry.tokens, page_knows=on_page)
            record.of_peers += 1
            self.on_pick(entry.endpoint)

    def _hand_over(self, pick: InFlight, peer: Peer, entry: InFlight, now: float) -> None:
        """A pick, ours or another replica's, is observed by `peer`: it counts as before, for that one."""
        entry.record = pick.record
        endpoint, tokens = entry.endpoint, entry.tokens
        known = entry.pick is not None
        entry.endpoint = pick.endpoint
        entry.describe(pick)
        if pick.owner:
            entry.pick = (pick.owner, pick.number)
            owner = self._peers.get(pick.owner)
            if owner is not None:
                owner.entries.pop(pick.number, None)
            self.ledger.drop(pick)
        else:
            entry.pick = (self.me, pick.number)
            self.ledger.superseded(pick)
            if entry.record is not None:
                entry.record.of_peers += 1
        peer.entries[entry.number] = entry
        self.ledger.put(entry)
        self._set(entry, endpoint, tokens if known else entry.tokens, now)

    def _moved(self, peer: Peer, told: messages.Moved, now: float) -> None:
        entry = peer.entries.get(told.number)
        if entry is not None:
            self._set(entry, told.endpoint, told.tokens, now)

    def _set(self, entry: InFlight, endpoint: str, tokens: int, now: float) -> None:
        if endpoint != entry.endpoint:
            self.ledger.recount(entry, endpoint, now)
        if tokens != entry.tokens:
            self.ledger.recompute(entry, tokens)

    def _finished(self, peer: Peer, number: int, now: float) -> None:
        entry = peer.entries.pop(number, None)
        if entry is not None:
            self.ledger.finish(entry, now)

    def _sent(self, sent: messages.Sent) -> None:
        if sent.block_bytes != self.index.settings.block_bytes:
            return
        record = self.store.get(sent.endpoint)
        if record is not None:
            tokens = record.metrics.cache_tokens if record.metrics is not None else 0
            self.index.insert_told(sent.blocks, sent.endpoint, cache_tokens=tokens)


def _entry(replica: str, told: messages.Started, now: float) -> InFlight:
    """The entry that another replica tells of; it counts nowhere yet."""
    asked = Asked(
        told.asked_model or told.model,
        told.slo_ttft_ms if told.HasField("slo_ttft_ms") else None,
        told.slo_tpot_ms if told.HasField("slo_tpot_ms") else None,
    )
    return InFlight(
        told.request_id,
        told.endpoint,
        told.model,
        told.bytes,
        now - max(0.0, told.age_seconds),
        attached=True,
        record=None,
        observed=told.elsewhere,
        asked=asked,
        tokens=told.tokens,
        output_tokens=told.output_tokens,
        flow=told.flow,
        priority=told.priority,
        owner=replica,
        number=told.number,
        picked_for=told.picked_for or told.endpoint,
        elsewhere=told.elsewhere,
        pick=(told.pick_replica, told.pick_number) if told.pick_replica else None,
    )


def _describe(observed: InFlight, pick: InFlight) -> None:
    """What is observed, by us or another, is described by its pick: only its place was known."""
    size, tokens = observed.size, observed.tokens
    observed.describe(pick)
    if observed.record is not None:
        observed.record.described(observed.model, observed.size - size, observed.tokens - tokens)
