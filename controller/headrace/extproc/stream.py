"""The entrance to the package: one object per ext_proc stream, bytes in and bytes out."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.core import Decision, Refusal
from headrace.extproc.conversation import Conversation
from headrace.extproc.events import Event
from headrace.extproc.observation import Observation
from headrace.extproc.settings import ConversationSettings
from headrace.extproc.wire import read_message


class ExtProcStream:
    """One ext_proc stream, whichever sort its first message says it is."""

    __slots__ = ("_settings", "events", "machine")

    def __init__(self, settings: ConversationSettings) -> None:
        self._settings = settings
        # None before the first message.
        self.machine: Conversation | Observation | None = None
        # What happened since the last `take_events`.
        self.events: Sequence[Event] = ()

    def feed(self, raw: bytes) -> list[bytes]:
        """Serialized ProcessingResponses to one serialized ProcessingRequest, in the order to send them.

        Afterwards look at `take_events`, and at `busy`. Raises MalformedMessage or ProtocolViolation: end the stream
        then."""
        message = read_message(raw)
        machine = self.machine
        if machine is None:
            machine = self.machine = (
                Observation(self._settings) if message.observability_mode else Conversation(self._settings)
            )
            self.events = machine.events
        return machine.handle(message)

    @property
    def busy(self) -> bool:
        """Whether work is left, as there is with a long body: call `go_on` until none is, others having their turn
        between."""
        return self.machine is not None and self.machine.work.steps is not None

    def go_on(self) -> list[bytes]:
        """The answers that a bounded step of the work gives, in the order to send them. Then look at `take_events`."""
        return self.machine.work.go_on() if self.machine is not None else []

    def resume(self, outcome: Decision | Refusal) -> list[bytes]:
        """The answers after a PickNeeded event, once it is decided."""
        if self.machine is None:
            raise RuntimeError("no pick was asked for")
        return self.machine.resume(outcome)

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        machine = self.machine
        if machine is None or not machine.events:
            return []
        events = machine.events.copy()
        machine.events.clear()  # the machine's parts share this list
        return events

    @property
    def collecting(self) -> bool:
        """Whether the rest of a request's body is waited for."""
        return self.machine is not None and self.machine.collecting

    def give_up_body(self) -> list[bytes]:
        """The answers where the rest of a request's body has not come in time. Look at `take_events` then."""
        return self.machine.give_up_body() if isinstance(self.machine, Conversation) and self.collecting else []

    def sent(self) -> None:
        """All answers so far are sent: the body that they were made of does not count as held any more."""
        if self.machine is not None:
            self.machine.sent()

    def close(self) -> None:
        """The stream is over, in whatever way: it holds nothing any more."""
        if self.machine is not None:
            self.machine.close()

    @property
    def observing(self) -> bool:
        """Whether this stream only watches."""
        return isinstance(self.machine, Observation)

    @property
    def request_done(self) -> bool:
        """Whether the request is picked for and nothing of it is to come that has to be answered."""
        return self.machine is not None and self.machine.request_done

    @property
    def request_id(self) -> str:
        """The request's id; "" before its headers."""
        return "" if self.machine is None else self.machine.request_id
