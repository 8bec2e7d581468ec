"""SGLang in place of vLLM: its `/generate`, and the metrics of its `/metrics`.

The engine below is the same one: what differs is how a server is asked and what it says of itself.
Source: SGLang 0.5, sampling parameters, native API and production metrics (https://docs.sglang.ai)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
from prometheus_client.core import Metric

from headrace.simulator.answers import AnswerForm, Usage
from headrace.simulator.engine import StepReport
from headrace.simulator.metrics import BucketCounts, EngineMetrics
from headrace.simulator.openai import GenerationRequest, bad_field, parse_completion
from headrace.simulator.request import FinishReason
from headrace.simulator.request import Sequence as EngineSequence

_DEFAULT_NEW_TOKENS = 128
# SGLang's names of sampling parameters, and the completion fields that mean the same.
_PARAMETERS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "top_p": "top_p",
    "temperature": "temperature",
    "n": "n",
}


def parse_generate(body: Mapping[str, Any]) -> GenerationRequest:
    """A /generate body: one prompt, as `text` or `input_ids`. Raises ApiError (400)."""
    given = [field for field in ("text", "input_ids") if body.get(field) is not None]
    if len(given) != 1:
        raise bad_field("text", body.get("text"), "give 'text' or 'input_ids', one of the two")
    prompt = body[given[0]]
    single = isinstance(prompt, str) if given[0] == "text" else isinstance(prompt, list) and _flat(prompt)
    if not single:
        raise bad_field(given[0], prompt, "give one prompt: a string as 'text', or a list of token ids as 'input_ids'")
    parameters = body.get("sampling_params") or {}
    if not isinstance(parameters, dict):
        raise bad_field("sampling_params", parameters, "give an object")
    if parameters.get("n") not in (None, 1):
        raise bad_field("sampling_params.n", parameters["n"], "the simulator writes one answer to a /generate: give 1")
    completion = {
        ours: parameters[theirs] for theirs, ours in _PARAMETERS.items() if parameters.get(theirs) is not None
    }
    completion.setdefault("max_tokens", _DEFAULT_NEW_TOKENS)
    completion |= {"prompt": prompt, "stream": body.get("stream"), "model": body.get("lora_path") or body.get("model")}
    return parse_completion(completion)


def _flat(value: list[object]) -> bool:
    return bool(value) and not isinstance(value[0], list | str)


class GenerateForm(AnswerForm):
    """An answer of /generate: `text` and `meta_info`. Each event of a stream has the whole text so far."""

    def __init__(self, *, request_id: str, model: str, created: int) -> None:
        super().__init__(request_id=request_id, model=model, created=created, chat=False, continuous_usage=False)
        self._text = ""

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage) -> bytes:
        """The answer to a request without `stream`."""
        (choice,) = choices
        return orjson.dumps(self._answer(choice["text"], choice["finish_reason"], choice["stop_reason"], usage))

    def text_event(
        self, index: int, text: str, finish_reason: str | None, stop_reason: str | int | None, usage: Usage
    ) -> bytes:
        """An event with the text so far; the last one has the finish reason."""
        self._text += text
        return b"data: %b\n\n" % orjson.dumps(self._answer(self._text, finish_reason, stop_reason, usage))

    def _answer(
        self, text: str, finish_reason: str | None, stop_reason: str | int | None, usage: Usage
    ) -> dict[str, Any]:
        reason: dict[str, Any] | None = None
        if finish_reason is not None:
            reason = {"type": str(finish_reason)}
            reason |= {"length": usage.completion_tokens} if finish_reason == FinishReason.LENGTH else {}
            reason |= {"matched": stop_reason} if stop_reason is not None else {}
        meta = {
            "id": self.id,
            "finish_reason": reason,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        }
        return {"text": text, "meta_info": meta}


# ---- metrics

_FIRST_TOKEN = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
_INTER_TOKEN = (
    *(0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.060, 0.080),
    *(0.100, 0.200, 0.400, 0.600, 0.800, 1.0, 2.0, 4.0, 6.0, 8.0),
)
_END_TO_END = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 1200, 1800, 2400)
_HISTOGRAMS = {
    "time_to_first_token_seconds": (_FIRST_TOKEN, "Time to first token in seconds."),
    "inter_token_latency_seconds": (_INTER_TOKEN, "Inter-token latency in seconds."),
    "e2e_request_latency_seconds": (_END_TO_END, "Time from arrival to the last token in seconds."),
    "queue_time_seconds": (_END_TO_END, "Time a request waited in seconds."),
}
_COUNTERS = {
    "prompt_tokens": "Prompt tokens processed.",
    "generation_tokens": "Generated tokens.",
    "cached_tokens": "Cached prompt tokens.",
    "num_requests": "Requests processed.",
    "num_aborted_requests": "Requests aborted.",
}


class SGLangMetrics(EngineMetrics):
    """Accounts for what the engine did, and shows it as SGLang would."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sglang = {name: BucketCounts(tuple(map(float, bounds))) for name, (bounds, _) in _HISTOGRAMS.items()}
        self._requests = {"num_requests": 0, "num_aborted_requests": 0}

    def on_step(self, report: StepReport) -> None:
        """Account for a step that ended."""
        super().on_step(report)
        for sequence in report.generated:
            if sequence.token_interval is None:
                self._sglang["time_to_first_token_seconds"].observe(report.ended - sequence.arrival)
            else:
                self._sglang["inter_token_latency_seconds"].observe(sequence.token_interval)

    def on_finished(self, sequence: EngineSequence) -> None:
        """Account for a sequence that ended."""
        super().on_finished(sequence)
        self._requests["num_requests"] += 1
        self._requests["num_aborted_requests"] += sequence.finish_reason is FinishReason.ABORT
        assert sequence.finished_at is not None
        self._sglang["e2e_request_latency_seconds"].observe(sequence.finished_at - sequence.arrival)
        if sequence.scheduled_at is not None:
            self._sglang["queue_time_seconds"].observe(sequence.scheduled_at - sequence.arrival)

    def on_left(self, sequence: EngineSequence) -> None:
        """A client left: SGLang counts that as an aborted request."""
        self.on_finished(sequence)

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the page."""
        model = {"model_name": self._labels["model_name"]}
        ranks = {**model, "engine_type": "unified", "tp_rank": "0", "pp_rank": "0"}
        state, settings = self._engine.state(), self._engine.settings
        used = state.kv_cache_usage * settings.kv_cache_tokens
        for name, help_text, value in (
            ("num_running_reqs", "Requests that run.", state.num_running),
            ("num_queue_reqs", "Requests that wait.", state.num_waiting),
            ("num_used_tokens", "Tokens in the KV cache.", round(used)),
            ("token_usage", "Usage of the KV cache, 0 to 1.", state.kv_cache_usage),
            ("max_total_num_tokens", "Tokens that the KV cache holds.", settings.kv_cache_tokens),
        ):
            yield _metric(name, help_text, "gauge", ranks, value)
        counts = {
            "prompt_tokens": self._counters["prompt_tokens"],
            "generation_tokens": self._counters["generation_tokens"],
            "cached_tokens": self._counters["prompt_tokens_cached"],
            **self._requests,
        }
        for name, help_text in _COUNTERS.items():
            yield _metric(name, help_text, "counter", model, counts[name])
        for name, (_, help_text) in _HISTOGRAMS.items():
            metric = Metric(f"sglang:{name}", help_text, "histogram")
            self._sglang[name].add_samples(metric, model, self._created)
            yield metric
        info = {"page_size": str(settings.block_size), "num_pages": str(settings.num_gpu_blocks)}
        yield _metric("cache_config_info", "Configuration of the KV cache.", "gauge", {**model, **info}, 1)


def _metric(name: str, help_text: str, kind: str, labels: dict[str, str], value: float) -> Metric:
    metric = Metric(f"sglang:{name}", help_text, kind)
    metric.add_sample(f"sglang:{name}_total" if kind == "counter" else metric.name, labels, value)
    return metric
