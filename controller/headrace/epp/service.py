"""The ext_proc gRPC service: carries bytes between streams and conversations, and tells the director what they saw.

Registered with raw bytes for messages (no protobuf classes of gRPC's own): the conversation reads and writes them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum, auto

import grpc
import grpc.aio

from headrace.core import Refusal, RefusalReason
from headrace.datalayer.ledger import InFlight
from headrace.datalayer.pool_state import PoolState, ResponseTotals
from headrace.epp.director import Director, Pick
from headrace.epp.metrics import Metrics
from headrace.extproc import ConversationSettings, ExtProcStream, MalformedMessage, ProtocolViolation
from headrace.extproc.events import (
    Event,
    PickNeeded,
    RequestObserved,
    RequestRefused,
    ResponseChunk,
    ResponseEnded,
    ResponseStarted,
)
from headrace.protocol import rpc

logger = logging.getLogger(__name__)


class Next(Enum):
    """What has to come next on a stream."""

    # A pick that has to wait: `decided` has the answers.
    DECISION = auto()
    # Work in steps: `go_on` has the answers of the next, after a turn for others.
    STEP = auto()
    # The rest of a request's body, within the time that it is given.
    BODY = auto()
    # Whatever the gateway has to say.
    MESSAGE = auto()
    # The end: nothing is left to do.
    END = auto()


# To look a member up in its class costs more than all else that is done with it.
DECISION, STEP, BODY, MESSAGE, END = Next


class StreamSession:
    """One stream's conversation and its part in the in-flight account. `end` must be called when it is over."""

    # What a session begins with. They are the class's: most sessions change few of them.
    _entry: InFlight | None = None
    # What is to be picked for, when what has to be waited for is there.
    _needed: PickNeeded | None = None
    _covers_response = _response_seen = _streaming = False
    _totals: ResponseTotals | None = None
    # When a request's body has to be complete, by the pool's clock.
    _body_due: float | None = None

    def __init__(
        self, director: Director, pool: PoolState, settings: ConversationSettings, *, observed: bool = False
    ) -> None:
        self.director = director
        self.pool = pool
        self.observed = observed
        if observed:
            pool.ledger.expect_observers()
        self._stream = ExtProcStream(settings)
        self._body_seconds = settings.body_seconds

    @property
    def observing(self) -> bool:
        """Whether the stream only watches."""
        return self._stream.observing

    @property
    def request_id(self) -> str:
        """The request's id, once it is known."""
        return self._stream.request_id

    @property
    def next(self) -> Next:
        """What has to come after the answers so far. At BODY, MESSAGE and END all of them were given."""
        if self._needed is not None:
            return DECISION
        machine = self._stream.machine
        if machine is None:
            return MESSAGE
        if machine.work.steps is not None:
            return STEP
        if machine.collecting:
            return BODY
        # In the buffered and streamed modes the gateway keeps a stream open until the response is over, needed or not,
        # and cuts the response if the picker dies. So where a second filter observes responses, the pick ends its
        # stream; the gateway takes that as "no more processing".
        ends = not self._covers_response and (self.observed or self.pool.ledger.observers_seen)
        return END if ends and machine.request_done else MESSAGE

    @property
    def patience(self) -> float | None:
        """Seconds to wait for the next message, then `body_is_late`; None: as long as it takes."""
        if not self._stream.collecting:
            return None
        now = self.pool.clock()
        if self._body_due is None:
            self._body_due = now + self._body_seconds
        return max(0.0, self._body_due - now)

    def body_is_late(self) -> list[bytes]:
        """The answers where the rest of a request's body has not come in time."""
        answers = self._stream.give_up_body()
        for event in self._stream.take_events():
            self._note(event)
        return answers

    def sent(self) -> None:
        """The answers so far are sent: the request's body that they carry is not held any more."""
        self._stream.sent()

    def feed(self, raw: bytes) -> list[bytes]:
        """The answers to one message that there are at once. `next` says what else has to come before another message.
        Call `sent` when all are sent.

        Raises MalformedMessage or ProtocolViolation, as the other two do."""
        return self._handle(self._stream.feed(raw))

    def go_on(self) -> list[bytes]:
        """The answers of the next step."""
        return self._handle(self._stream.go_on())

    async def decided(self) -> list[bytes]:
        """The answers when the pick is decided."""
        needed, self._needed = self._needed, None
        assert needed is not None
        pick = await self.director.decide(needed)
        return self._handle(self._resume(needed, pick))

    async def finish(self, answers: list[bytes]) -> list[bytes]:
        """The answers so far, with all that follow before the next message."""
        while (following := self.next) in _OURS:
            if following is DECISION:
                answers += await self.decided()
            else:
                await asyncio.sleep(0)
                answers += self.go_on()
        return answers

    def _handle(self, answers: list[bytes]) -> list[bytes]:
        """Handle what the conversation tells; gives the answers with those that come of it."""
        stream = self._stream
        while stream.events:
            for event in stream.take_events():
                if type(event) is PickNeeded:
                    pick = self.director.decide_at_once(event)
                    if pick is None:
                        self._needed = event
                    else:
                        answers += self._resume(event, pick)
                else:
                    self._note(event)
        return answers

    def _resume(self, needed: PickNeeded, pick: Pick) -> list[bytes]:
        self._entry = pick.entry
        self._covers_response = needed.covers_response
        assert pick.answer is not None
        try:
            return self._stream.resume(pick.answer)
        except BaseException:
            if pick.entry is not None:
                self.pool.finished(pick.entry)
            raise

    def end(self) -> None:
        """The stream is over, in whatever way."""
        self._stream.close()
        entry = self._entry
        if entry is None:
            return
        # A stream that does not see the response ends before it: then an observer, or the clock, ends the request.
        if self._stream.observing or self._covers_response or (self._response_seen and not entry.observed):
            self.pool.finished(entry)

    def _note(self, event: Event) -> None:
        pool = self.pool
        if isinstance(event, ResponseChunk):
            self._note_chunk(event)
        elif isinstance(event, RequestObserved):
            self._entry = pool.observed(event.request_id, event.destination, event.flow)
        elif isinstance(event, ResponseStarted):
            self._response_seen = True
            self._streaming = event.streaming
            if self._tells_of_response:
                pool.answered(self._entry, event.served, event.status, streaming=event.streaming)  # type: ignore[arg-type]
        elif isinstance(event, ResponseEnded):
            if self._entry is not None:
                if self._totals is not None and self._tells_of_response:
                    self._totals.usage = event.usage
                    pool.responded(self._entry, self._totals)
                pool.finished(self._entry)
        elif isinstance(event, RequestRefused):
            refusal = Refusal(event.status, RefusalReason(event.reason), "the stream refused the request")
            self.director.refused(event.request, refusal)

    @property
    def _tells_of_response(self) -> bool:
        """Whether this is the stream whose word on the response counts: an observer's, where there is one."""
        return self._entry is not None and (self._stream.observing or not self._entry.observed)

    def _note_chunk(self, chunk: ResponseChunk) -> None:
        totals = self._totals
        if totals is None:
            totals = self._totals = ResponseTotals()
        totals.size += chunk.size
        if self._streaming and totals.first_at is None and chunk.size:
            totals.first_at = self.pool.clock()
            if self._entry is not None and self._tells_of_response:
                self.pool.first_token(self._entry)


# What has to come next is ours to do.
_OURS = (DECISION, STEP)


@dataclass(eq=False)
class ExtProcService:
    """`envoy.service.ext_proc.v3.ExternalProcessor`."""

    director: Director
    pool: PoolState
    metrics: Metrics
    settings: ConversationSettings

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._process)
        return grpc.method_handlers_generic_handler(rpc.EXT_PROC_SERVICE, {"Process": method})

    def session(self, *, observed: bool) -> StreamSession:
        """What a new stream is driven with: `stream_begun` after its first message, `stream_ended` in the end."""
        return StreamSession(self.director, self.pool, self.settings, observed=observed)

    def stream_begun(self, session: StreamSession) -> str:
        """Count a stream; gives its kind."""
        kind = "observe" if session.observing else "pick"
        self.metrics.streams[(kind,)].inc()
        return kind

    def stream_ended(self, session: StreamSession, kind: str) -> None:
        """A stream is over, in whatever way. `kind` is "" where it did not begin."""
        if kind:
            self.metrics.streams[(kind,)].dec()
        session.end()

    def failed(self, session: StreamSession, error: Exception) -> tuple[grpc.StatusCode, str]:
        """Count and log what the session raised. Gives the status that the stream is to end with."""
        told = {"request_id": session.request_id}
        if isinstance(error, MalformedMessage | ProtocolViolation):
            self.metrics.stream_errors.labels("protocol").inc()
            logger.warning("the gateway broke the protocol: %s", error, extra=told)
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        self.metrics.stream_errors.labels("fault").inc()
        logger.error("a stream failed: a fault in the picker", extra=told, exc_info=error)
        return grpc.StatusCode.INTERNAL, "a fault in the endpoint picker; its log has the details"

    async def _process(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        observed = any(name == rpc.OBSERVED and value == "true" for name, value in context.invocation_metadata() or ())
        session = self.session(observed=observed)
        kind = ""
        try:
            while True:
                raw = await _read(context, session.patience)
                if raw is None:
                    answers = session.body_is_late()
                elif isinstance(raw, bytes):
                    answers = await session.finish(session.feed(raw))
                else:  # grpc.aio.EOF
                    return
                if not kind:
                    kind = self.stream_begun(session)
                for answer in answers:
                    await context.write(answer)
                session.sent()
                if session.next is END or raw is None:
                    return
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 (logged there; one stream's fault stays that stream's)
            await context.abort(*self.failed(session, error))
        finally:
            self.stream_ended(session, kind)


async def _read(context: grpc.aio.ServicerContext[bytes, bytes], seconds: float | None) -> object:
    """The next message, or EOF; None where none has come in time."""
    if seconds is None:
        return await context.read()
    try:
        async with asyncio.timeout(seconds):
            return await context.read()
    except TimeoutError:
        return None
