"""The entrance to the package: one object per ext_proc stream, bytes in and bytes out."""

from __future__ import annotations

from headrace.core import Decision, Refusal
from headrace.extproc.conversation import Conversation
from headrace.extproc.events import Event
from headrace.extproc.observation import Observation
from headrace.extproc.settings import ConversationSettings
from headrace.extproc.wire import read_message


class ExtProcStream:
    """One ext_proc stream, whichever sort its first message says it is."""

    __slots__ = ("_machine", "_settings")

    def __init__(self, settings: ConversationSettings) -> None:
        self._settings = settings
        self._machine: Conversation | Observation | None = None

    def feed(self, raw: bytes) -> list[bytes]:
        """Serialized ProcessingResponses to one serialized ProcessingRequest, in the order to send them.

        Afterwards look at `take_events`, and at `busy`. Raises MalformedMessage or ProtocolViolation: end the stream
        then."""
        message = read_message(raw)
        machine = self._machine
        if machine is None:
            machine = self._machine = (
                Observation(self._settings) if message.observability_mode else Conversation(self._settings)
            )
        return machine.handle(message)

    @property
    def busy(self) -> bool:
        """Whether work is left, as there is with a long body: call `go_on` until none is, others having their turn
        between."""
        return isinstance(self._machine, Conversation) and self._machine.work.steps is not None

    def go_on(self) -> list[bytes]:
        """The answers that a bounded step of the work gives, in the order to send them. Then look at `take_events`."""
        return self._machine.work.go_on() if isinstance(self._machine, Conversation) else []

    def resume(self, outcome: Decision | Refusal) -> list[bytes]:
        """The answers after a PickNeeded event, once it is decided."""
        if self._machine is None:
            raise RuntimeError("no pick was asked for")
        return self._machine.resume(outcome)

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        machine = self._machine
        if machine is None or not machine.events:
            return []
        events = machine.events.copy()
        machine.events.clear()  # the machine's parts share this list
        return events

    @property
    def collecting(self) -> bool:
        """Whether the rest of a request's body is waited for."""
        return isinstance(self._machine, Conversation) and self._machine.collecting

    def give_up_body(self) -> list[bytes]:
        """The answers where the rest of a request's body has not come in time. Look at `take_events` then."""
        return self._machine.give_up_body() if isinstance(self._machine, Conversation) and self.collecting else []

    def sent(self) -> None:
        """All answers so far are sent: the body that they were made of does not count as held any more."""
        if isinstance(self._machine, Conversation):
            self._machine.sent()

    def close(self) -> None:
        """The stream is over, in whatever way: it holds nothing any more."""
        if self._machine is not None:
            self._machine.close()

    @property
    def observing(self) -> bool:
        """Whether this stream only watches."""
        return isinstance(self._machine, Observation)

    @property
    def request_done(self) -> bool:
        """Whether the request is picked for and nothing of it is to come that has to be answered."""
        return isinstance(self._machine, Conversation) and self._machine.request_done

    @property
    def request_id(self) -> str:
        """The request's id; "" before its headers."""
        return "" if self._machine is None else self._machine.request_id
