"""What is predicted of one server, and what that is learnt from."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from headrace.datalayer.ledger import InFlight
from headrace.datalayer.metrics_page import Work
from headrace.prediction.queue import Prompt, PromptQueue
from headrace.prediction.steps import Group, ServerSteps, StepTimes, Window, makes_sense
from headrace.scheduling.latency import Predicted

# Prompt tokens of one step, at most: vLLM's own default on large GPUs is 8192, on others 2048.
_STEP_TOKENS = 4096.0
# A window is long enough once so many seconds were expected of it, or all prompts that were sent are computed: pages
# count a prompt's tokens all at once, when its answer begins.
_ENOUGH_SECONDS = 3.0
# What no server counts between two pages.
_MOST_COUNTED = 1e9
_NO_WINDOW = Window(0.0, 0.0, 0.0, 0.0)
# Of the sums that tell how wrong predictions are, so much is kept with each answer.
_KEPT = 0.99


@dataclass(slots=True)
class Errors:
    """How wrong predicted first tokens were: sums over the last hundred answers or so."""

    off: float = 0.0
    seconds: float = 0.0
    answers: float = 0.0

    def add(self, predicted: float, actual: float, answers: int = 1) -> None:
        """The first tokens of so many answers took these seconds, in all."""
        keep = _KEPT**answers
        self.off = self.off * keep + abs(predicted - actual)
        self.seconds = self.seconds * keep + actual
        self.answers = self.answers * keep + answers

    @property
    def ratio(self) -> float:
        """The mean error over the mean time to the first token; 0 where little is known."""
        return self.off / self.seconds if self.answers > 10 and self.seconds else 0.0


@dataclass(slots=True, eq=False)
class ServerModel:
    """One server. Times are seconds of the caller's clock."""

    group: Group
    errors: Errors
    steps: ServerSteps = field(init=False)
    queue: PromptQueue[InFlight] = field(default_factory=PromptQueue)
    # The last page: what it counted, when it was asked for, and whether the server was busy and has been ever since.
    _work: Work | None = None
    _asked_at: float = 0.0
    _busy: bool = False
    # The window that is not long enough yet; prompt tokens that were computed in it, weighted and as they are.
    _window: Window = _NO_WINDOW
    _weighted: float = 0.0
    _plain: int = 0

    def __post_init__(self) -> None:
        self.steps = ServerSteps(self.group)

    def predict(self, tokens: float, requests: int, others: float, now: float) -> Predicted:
        """What a prompt of so many weighted tokens would wait. The server has so many requests; `others` is how many
        times the prompts that wait are those that are known here: other replicas send some."""
        queue, times = self.queue, self.steps.times
        answers = max(0, requests - round(len(queue) * others))
        queue.drain(now, _seconds_a_token(times, answers))
        before = queue.tokens * others
        beside = times.step + times.written * answers
        steps = max(1, ceil((before + tokens) / _STEP_TOKENS))
        # A step under way is half done.
        under_way = 0.5 if answers or before else 0.0
        return Predicted(
            queue=before * times.prompt,
            prefill=tokens * times.prompt,
            decode=(steps + under_way) * beside,
            token=beside + times.written,
            work=tokens * _seconds_a_token(times, answers),
            answers=answers,
        )

    def sent(self, entry: InFlight, plain: int, tokens: float, requests: int, now: float) -> None:
        """A request is sent there, that has so many requests without it."""
        predicted = self.predict(tokens, requests, 1.0, now).first_token
        self.queue.add(entry, Prompt(plain, tokens, now, predicted))

    def began(self, entry: InFlight, seconds: float) -> None:
        """An answer's first token was seen, so many seconds after its pick."""
        prompt = self.queue.drop(entry)
        if prompt is not None:
            self.errors.add(prompt.predicted, seconds)

    def idle(self) -> None:
        """Nothing is in flight there."""
        self._busy = False

    def page(self, work: Work | None, waiting: int, running: int, asked_at: float) -> None:
        """A page has come."""
        before, self._work = self._work, work
        since, self._asked_at = self._asked_at, asked_at
        was_busy, self._busy = self._busy, waiting + running > 0
        if work is None or before is None or asked_at <= since or not _goes_on(before, work):
            # Nothing is counted, or a server has begun anew.
            self._begin_window()
            return
        answers = max(0, waiting + running - len(self.queue))
        self.queue.drain(asked_at, _seconds_a_token(self.steps.times, answers))
        unseen = self.queue.unseen(asked_at)
        begun = int(work.first_tokens - before.first_tokens)
        computed = self.queue.begun(begun, waiting, unseen)
        self._weighted += sum(prompt.tokens for prompt in computed)
        self._plain += sum(prompt.plain for prompt in computed)
        if computed and len(computed) == begun:
            self.errors.add(sum(p.predicted for p in computed), work.waited - before.waited, begun)
        if not (was_busy and self._busy):
            self._begin_window()
            return
        window = self._window = Window(
            self._window.seconds + asked_at - since,
            self._window.steps + work.steps - before.steps,
            self._window.prompt + work.prompt - before.prompt,
            self._window.written + work.written - before.written,
        )
        if len(self.queue) > unseen and self.steps.times.expected(window) < _ENOUGH_SECONDS:
            return
        dearer = self._weighted / self._plain if self._plain else 1.0
        window = window._replace(prompt=max(0.0, window.prompt) * dearer)
        if makes_sense(window):
            self.steps.add(window, asked_at)
        self._begin_window()

    def _begin_window(self) -> None:
        self._window, self._weighted, self._plain = _NO_WINDOW, 0.0, 0


def _goes_on(before: Work, after: Work) -> bool:
    """Whether counters went forward, by numbers that a server can count. Cache hits are counted before the rest."""
    grown = [late - early for early, late in zip(before, after, strict=True)]
    return all(0 <= grown[at] <= _MOST_COUNTED for at in (0, 2, 3, 4)) and abs(grown[1]) <= _MOST_COUNTED


def _seconds_a_token(times: StepTimes, answers: int) -> float:
    """For each prompt token, while prompts wait and so many answers are written beside."""
    return times.prompt + (times.step + times.written * answers) / _STEP_TOKENS
