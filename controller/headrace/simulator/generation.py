"""From a checked request to its answer: submits its sequences to the engine and collects what they write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from headrace.config.flags import flag, whole
from headrace.simulator.answers import AnswerForm, StopScanner, Usage
from headrace.simulator.loop import EngineLoop, Ticket
from headrace.simulator.openai import ApiError, GenerationRequest, Prompt
from headrace.simulator.request import FinishReason, Limits, Sequence
from headrace.simulator.tokens import WORD_OF_ID, Writer, answer_seed, decode


@dataclass(frozen=True, kw_only=True)
class ModelBehaviour:
    """What the simulated model writes."""

    seed: int = flag(0, "of the simulated answers and failures", whole())
    mean_answer_tokens: int = flag(
        256, "tokens after which an answer without max_tokens ends by itself, give or take a half", whole(1)
    )
    """Answers without max_tokens end by themselves after this many tokens, give or take a half."""

    def __post_init__(self) -> None:
        if self.mean_answer_tokens < 1:
            raise ValueError(f"--mean-answer-tokens {self.mean_answer_tokens}: give 1 or more")


def check_length(prompt: Prompt, max_tokens: int | None, context_length: int) -> None:
    """Refuse what does not fit into the context, in vLLM's words. Raises ApiError (400)."""
    output = 1 if max_tokens is None else max_tokens
    if output > context_length:
        text = f"max_tokens={output} cannot be greater than max_model_len={context_length}. Please request fewer"
        raise ApiError(400, f"{text} output tokens. (parameter=max_tokens, value={output})", field="max_tokens")
    if len(prompt.tokens) + output > context_length:
        raise ApiError(
            400,
            f"This model's maximum context length is {context_length} tokens. However, you requested {output} output "
            f"tokens and your prompt contains {len(prompt.tokens)} input tokens, for a total of "
            f"{len(prompt.tokens) + output} tokens. Please reduce the length of the input prompt or the number of "
            "requested output tokens.",
            field="input_tokens",
        )


class _Choice:
    """One answer of a request while it grows."""

    def __init__(self, index: int, ticket: Ticket, scanner: StopScanner, min_tokens: int) -> None:
        self.index = index
        self.ticket = ticket
        self.num_tokens = 0
        self.ended = False
        self._scanner = scanner
        self._min_tokens = min_tokens

    def pieces(self) -> list[str]:
        """Text of the tokens written since the last call, a piece for each; the last piece of an answer ends it."""
        pieces = []
        for token in self.ticket.take():
            self.num_tokens += 1
            text = WORD_OF_ID.get(token) or decode([token])
            pieces.append(self._scanner.feed(text, armed=self.num_tokens > self._min_tokens))
            if self._scanner.found is not None:
                self.ended = True
                return pieces
        if self.ticket.at_end:
            self.ended = True
            held = self._scanner.flush()
            if pieces:
                pieces[-1] += held
            else:
                pieces.append(held)
        return pieces

    @property
    def finish_reason(self) -> str:
        """In OpenAI's words; only once ended."""
        if self._scanner.found is not None:
            return FinishReason.STOP
        return self.ticket.sequence.finish_reason or FinishReason.ERROR

    @property
    def stop_reason(self) -> str | int | None:
        """What stopped the answer: a stop string or a stop token's id; None for its natural end."""
        if self._scanner.found is not None:
            return self._scanner.found
        sequence = self.ticket.sequence
        last = sequence.tokens[-1]
        return last if self.finish_reason == FinishReason.STOP and last in sequence.limits.stop_token_ids else None


class Generation:
    """The running answer to one request. Use as a context manager: whatever is unfinished on exit is aborted."""

    def __init__(
        self,
        loop: EngineLoop,
        request: GenerationRequest,
        *,
        adapter: str | None,
        behaviour: ModelBehaviour,
        form: AnswerForm,
    ) -> None:
        """Raises ApiError (400) when a sequence does not fit into the context."""
        self._loop = loop
        self._request = request
        self._form = form
        self._adapter, self._behaviour = adapter, behaviour
        self._news = asyncio.Event()
        for prompt in request.prompts:
            check_length(prompt, request.max_tokens, loop.engine.settings.context_length)
        self._choices: list[_Choice] = []

    def start(self) -> None:
        """Give the request's sequences to the engine."""
        request = self._request
        for prompt in request.prompts:
            for number in range(request.n):
                scanner = StopScanner(request.stop, request.include_stop_text)
                ticket = self._loop.submit(self._sequence(prompt, number), self._news)
                self._choices.append(_Choice(len(self._choices), ticket, scanner, request.min_tokens))

    def _sequence(self, prompt: Prompt, number: int) -> Sequence:
        request, behaviour, adapter = self._request, self._behaviour, self._adapter
        context_length = self._loop.engine.settings.context_length
        seed = answer_seed(prompt.tokens, behaviour.seed, request.seed, number)
        natural = None
        if request.max_tokens is None and not request.ignore_eos:
            mean = behaviour.mean_answer_tokens
            natural = max(1, request.min_tokens, mean - mean // 2 + seed % (mean + 1))
        return Sequence(
            prompt=prompt.tokens,
            adapter=adapter,
            num_choices=request.n,
            writer=Writer(seed),
            limits=Limits(
                max_tokens=request.max_tokens or context_length - len(prompt.tokens),
                natural_tokens=natural,
                stop_token_ids=request.stop_token_ids,
                min_tokens=request.min_tokens,
            ),
        )

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_exc: object) -> None:
        for choice in self._choices:
            self._loop.leave(choice.ticket)

    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once, however many answers it has."""
        firsts = self._choices[:: self._request.n]
        return Usage(
            prompt_tokens=sum(len(prompt.tokens) for prompt in self._request.prompts),
            completion_tokens=sum(choice.num_tokens for choice in self._choices),
            cached_tokens=sum(choice.ticket.sequence.num_prefix_hits for choice in firsts),
        )

    async def whole(self) -> bytes:
        """Wait for all answers; returns the body. Raises ApiError (500) when the engine failed."""
        texts = [self._echo(choice.index) for choice in self._choices]
        async for choice, pieces in self._news_of_choices():
            texts[choice.index] += "".join(pieces)
        choices: list[dict[str, Any]] = [
            self._form.choice(choice.index, text, choice.finish_reason, choice.stop_reason)
            for choice, text in zip(self._choices, texts, strict=True)
        ]
        return self._form.whole(choices, self.usage())

    async def events(self) -> AsyncIterator[bytes]:
        """The answers as server-sent events, one for each token, several in one item when they came together.

        Raises ApiError (500) when the engine failed.
        """
        started: set[int] = set()
        async for choice, pieces in self._news_of_choices():
            usage = self.usage()
            events = []
            if choice.index not in started:
                started.add(choice.index)
                if self._request.chat:
                    events.append(self._form.role_event(choice.index, usage))
                elif self._request.echo:
                    events.append(self._form.text_event(choice.index, self._echo(choice.index), None, None, usage))
            last = len(pieces) - 1 if choice.ended else -1
            for number, text in enumerate(pieces):
                if number == last:
                    reason, stop_reason = choice.finish_reason, choice.stop_reason
                    events.append(self._form.text_event(choice.index, text, reason, stop_reason, usage))
                elif text:
                    events.append(self._form.text_event(choice.index, text, None, None, usage))
            if events:
                yield b"".join(events)
        if self._request.include_usage:
            yield self._form.usage_event(self.usage())

    def _echo(self, index: int) -> str:
        return self._request.prompts[index // self._request.n].text if self._request.echo else ""

    async def _news_of_choices(self) -> AsyncIterator[tuple[_Choice, list[str]]]:
        unfinished = self._choices
        while unfinished:
            await self._news.wait()
            self._news.clear()
            for choice in unfinished:
                pieces = choice.pieces()
                if choice.ended:
                    if choice.ticket.sequence.finish_reason is FinishReason.ERROR:
                        raise ApiError(500, "the simulated engine stopped", kind="InternalServerError")
                    # Where a stop string ended the text, the engine does not know of it yet.
                    self._loop.finish(choice.ticket, FinishReason.STOP)
                if pieces:
                    yield choice, pieces
            unfinished = [choice for choice in unfinished if not choice.ended]
