"""The calls that are served over our own HTTP/2: ext_proc and health, each as the application's side of a stream.

Everything happens in the callback that read the message. Only a pick that has to wait has a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

from headrace.epp.service import BODY, DECISION, END, MESSAGE, STEP, ExtProcService, Next
from headrace.extproc.http2 import Call, RequestHeaders, Stream, grpc
from headrace.protocol import rpc
from headrace.serving.health import Health

_LATE_CHECK_SECONDS = 0.25


class Calls:
    """The methods of the ext_proc port: an Application of HTTP/2 connections. `run` watches over bodies that are late.

    `collecting` has the calls that wait for the rest of a request's body, by when they began to."""

    def __init__(self, service: ExtProcService, health: Health) -> None:
        self.collecting: dict[ExtProcCall, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._methods: dict[str, Callable[[RequestHeaders, Stream], Call]] = {
            f"/{rpc.EXT_PROC_SERVICE}/Process": lambda headers, stream: ExtProcCall(
                self, service, headers.metadata.get(rpc.OBSERVED) == "true", stream
            ),
            f"/{rpc.HEALTH_SERVICE}/Check": lambda _, stream: CheckCall(health, stream),
            f"/{rpc.HEALTH_SERVICE}/Watch": lambda _, stream: WatchCall(health, stream),
        }

    def open(self, headers: RequestHeaders, stream: Stream) -> Call | None:
        """A call begins: see Application."""
        method = self._methods.get(headers.path)
        return method(headers, stream) if method is not None else None

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold on to a task until it is done: the event loop does not."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self) -> NoReturn:
        """End the waiting for bodies that do not come. Each waits equally long, so the first are the first to go."""
        while True:
            await asyncio.sleep(_LATE_CHECK_SECONDS)
            for call in list(self.collecting):
                if not call.give_up_if_late():
                    break


class ExtProcCall:
    """A stream of `envoy.service.ext_proc.v3.ExternalProcessor`."""

    _kind = ""
    _task: asyncio.Task[None] | None = None
    _step_due = _over = False
    _next: Next = MESSAGE

    def __init__(self, calls: Calls, service: ExtProcService, observed: bool, stream: Stream) -> None:
        self._calls = calls
        self._service = service
        self._session = service.session(observed=observed)
        self._stream = stream

    def message(self, message: bytes) -> None:
        """A ProcessingRequest."""
        try:
            self._answer(self._session.feed(message))
        except Exception as error:  # noqa: BLE001 (logged there)
            self._fail(error)

    def half_closed(self) -> None:
        """The gateway has said all."""
        self._stream.finish()

    def sent(self) -> None:
        """The gateway has taken what waited: the next step may have waited for that."""
        if self._next is STEP and not self._step_due:
            self._step()

    def ended(self) -> None:
        """The stream is over."""
        self._over = True
        self._calls.collecting.pop(self, None)
        if self._task is None:
            self._end()
        else:
            self._task.add_done_callback(lambda _: self._end())
            self._task.cancel()

    def give_up_if_late(self) -> bool:
        """Answer a request whose body does not come in time. Gives whether the next call is to be looked at."""
        session = self._session
        if self._next is not BODY:
            return True
        if session.patience:
            return False
        try:
            for answer in session.body_is_late():
                self._stream.send(answer)
            self._stream.finish()
        except Exception as error:  # noqa: BLE001 (logged there)
            self._fail(error)
        self._stream.flush()
        return True

    def _answer(self, answers: list[bytes]) -> None:
        """Send answers, and see what has to come next. Raises what the session raises."""
        session, stream = self._session, self._stream
        if not self._kind:
            self._kind = self._service.stream_begun(session)
        for answer in answers:
            stream.send(answer)
        following = self._next = session.next
        collecting = self._calls.collecting
        if following is BODY:
            if self not in collecting:
                collecting[self] = None
                # Its time begins now.
                _ = session.patience
        elif following is not STEP and self in collecting:
            del collecting[self]
        if following is DECISION:
            stream.pause()
            self._task = asyncio.create_task(self._decide())
            self._calls.keep(self._task)
        elif following is STEP:
            stream.pause()
            if not stream.congested:
                self._step_due = True
                asyncio.get_running_loop().call_soon(self._step)
        else:
            if answers:
                session.sent()
            if following is END:
                stream.finish()

    def _step(self) -> None:
        self._step_due = False
        if not self._over:
            self._go_on(self._session.go_on)

    async def _decide(self) -> None:
        try:
            answers = await self._session.decided()
        except Exception as error:  # noqa: BLE001 (logged there)
            self._task = None
            self._fail(error)
            self._stream.flush()
        else:
            self._task = None
            self._go_on(lambda: answers)

    def _go_on(self, answers: Callable[[], list[bytes]]) -> None:
        """Send answers outside of `message`, and hear the next message where these were the last."""
        try:
            self._answer(answers())
        except Exception as error:  # noqa: BLE001 (logged there)
            self._fail(error)
        if not self._over and self._next not in (DECISION, STEP):
            self._stream.resume()
        self._stream.flush()

    def _fail(self, error: Exception) -> None:
        status, text = self._service.failed(self._session, error)
        self._stream.finish(status.value[0], text)

    def _end(self) -> None:
        try:
            self._service.stream_ended(self._session, self._kind)
        except Exception as error:  # noqa: BLE001 (logged there; the other streams of a connection end too)
            self._service.failed(self._session, error)


class CheckCall:
    """A stream of `grpc.health.v1.Health/Check`."""

    __slots__ = ("_health", "_stream")

    def __init__(self, health: Health, stream: Stream) -> None:
        self._health = health
        self._stream = stream

    def message(self, message: bytes) -> None:
        """A HealthCheckRequest."""
        answer = self._health.check(message)
        if isinstance(answer, str):
            self._stream.finish(grpc.NOT_FOUND, answer)
        else:
            self._stream.send(answer)
            self._stream.finish()

    def half_closed(self) -> None:
        """Without a request there is nothing to answer."""
        self._stream.finish(grpc.INTERNAL, "no message")

    def sent(self) -> None:
        """There is nothing to do then."""

    def ended(self) -> None:
        """There is nothing to do then."""


class WatchCall:
    """A stream of `grpc.health.v1.Health/Watch`."""

    __slots__ = ("_health", "_last", "_request", "_stream")

    def __init__(self, health: Health, stream: Stream) -> None:
        self._health = health
        self._stream = stream
        self._request: bytes | None = None
        self._last = b""

    def message(self, message: bytes) -> None:
        """A HealthCheckRequest: the answer now, and each other one as it comes to be."""
        self._request = message
        self._health.watch(self, self._tell)
        self._tell()

    def half_closed(self) -> None:
        """The client only listens from now on."""
        if self._request is None:
            self._stream.finish(grpc.INTERNAL, "no message")

    def sent(self) -> None:
        """There is nothing to do then."""

    def ended(self) -> None:
        """The client is gone."""
        self._health.unwatch(self)

    def _tell(self) -> None:
        assert self._request is not None
        status = self._health.watched(self._request)
        if status != self._last:
            self._last = status
            self._stream.send(status)
            self._stream.flush()
