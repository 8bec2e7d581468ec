"""The simulator is as a real vLLM: the 93 requests that one was sent, and what it answered, are sent to the simulator.

What is held together: statuses, kinds of content, the fields of answers and events, the framing of events, how answers
end, and the type, parameter and code of errors. The texts of errors are our own, and so are the headers that say that a
simulator answered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from .client import Client, Reply
from .process import simulator

# What differs, and why it may: names of requests, the differences, the reason. At most ten.
DIFFERENCES = (
    ("version", r"more: \.(simulator|simulates)", "it says that it is a simulator"),
    ("completion_logprobs|chat_logprobs", r"less: .*\.logprobs\..*", "its model has no probabilities"),
    ("(un)?load_.*", "content: text/plain not ", "aiohttp names the kind of a text"),
)
FLAGS = (
    *("--model", "/models/tiny", "--served-model-name", "tiny", "--lora-adapter", "a1=/adapters/a1", "a2=/adapters/a2"),
    *("--max-model-len", "2048", "--block-size", "32", "--num-gpu-blocks", "256", "--vocab-size", "100000"),
    *("--max-loras", "2", "--check-lora-paths", "--enable-sleep-mode", "--speedup", "100"),
)


# Of the same server's page, the labels of the series that are not the engine's. Those are held to a page by
# tests/unit/simulator/test_metrics.py.
_REQUEST = {"handler", "method"}
PAGE: dict[str, set[str]] = {
    "http_requests_total": {*_REQUEST, "status"},
    "http_request_size_bytes_count": {"handler"},
    "http_request_size_bytes_sum": {"handler"},
    "http_response_size_bytes_count": {"handler"},
    "http_response_size_bytes_sum": {"handler"},
    "http_request_duration_highr_seconds_bucket": {"le"},
    "http_request_duration_highr_seconds_count": set(),
    "http_request_duration_highr_seconds_sum": set(),
    "http_request_duration_seconds_bucket": {*_REQUEST, "le"},
    "http_request_duration_seconds_count": _REQUEST,
    "http_request_duration_seconds_sum": _REQUEST,
    "vllm:sleep_mode_operation_duration_seconds_bucket": {"operation", "le"},
    "vllm:sleep_mode_operation_duration_seconds_count": {"operation"},
    "vllm:sleep_mode_operation_duration_seconds_sum": {"operation"},
    "vllm:sleep_mode_operations_in_flight": {"operation"},
}
# The handlers of these requests, but for those that a server does not count.
HANDLERS = {
    *("/detokenize", "/inference/v1/generate", "/is_sleeping", "/reset_prefix_cache", "/sleep", "/tokenize", "none"),
    *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/models"),
    *("/v1/responses", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
}


def recorded(repository: Path) -> list[dict[str, Any]]:
    """Requests and answers, in the order in which they were sent."""
    lines = (repository / "tests/data/vllm-0.32.0-requests.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def expand(value: Any, adapters: str) -> Any:
    """A recorded body as it was sent: long repetitions are written short, and adapters lie elsewhere here."""
    if isinstance(value, dict):
        if value.keys() == {"repeat", "of"}:
            return value["of"] * value["repeat"]
        return {key: expand(item, adapters) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, adapters) for item in value]
    return value.replace("/adapters/", f"{adapters}/") if isinstance(value, str) else value


def shape(value: Any) -> Any:
    """The fields of some JSON: objects with their keys, lists with their first item, and nothing else."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else [] if isinstance(value, list) else None


def compared(real: Any, ours: Any, at: str = "") -> Iterator[str]:
    """The fields that one of two shapes has and the other has not."""
    if isinstance(real, dict):
        there = ours if isinstance(ours, dict) else {}
        for key in real.keys() - there.keys():
            yield f"less: {at}.{key}"
        for key in there.keys() - real.keys():
            yield f"more: {at}.{key}"
        for key in real.keys() & there.keys():
            yield from compared(real[key], there[key], f"{at}.{key}")
    elif isinstance(real, list) and real and isinstance(ours, list) and ours:
        yield from compared(real[0], ours[0], f"{at}[]")
    elif isinstance(ours, dict):
        yield from (f"more: {at}.{key}" for key in ours)


def events(body: bytes) -> list[tuple[str | None, Any]]:
    """Names and shapes of a stream's events, runs of equal ones as one. What is no event is one of its own."""
    found: list[tuple[str | None, Any]] = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        match = re.fullmatch(r"(?:event: (\S+)\n)?data: (.*)", block)
        if match is None:
            found.append((None, block))
            continue
        event = (match[1], match[2] if match[2] == "[DONE]" else shape(json.loads(match[2])))
        if not found or found[-1] != event:
            found.append(event)
    return found


def differences(entry: dict[str, Any], reply: Reply) -> Iterator[str]:
    """In what the simulator's answer differs from the recorded one."""
    if reply.status != entry["status"]:
        yield f"status: {reply.status} not {entry['status']}"
    kind = reply.headers.get("content-type", "").partition(";")[0]
    if kind != entry["type"]:
        yield f"content: {kind} not {entry['type']}"
    if "finish" in entry and re.findall(r'"finish_reason":"(\w+)"', reply.body.decode()) != entry["finish"]:
        yield "finish"
    if "events" in entry:
        ours = events(reply.body)
        real = [(name, content) for name, content in entry["events"]]
        if [name for name, _ in ours] != [name for name, _ in real]:
            yield f"framing: {[name for name, _ in ours]} not {[name for name, _ in real]}"
        for (_, there), (_, here) in zip(real, ours, strict=False):
            yield from compared(there, here, " event")
    elif "shape" in entry:
        body = reply.json() if kind == "application/json" else None
        yield from compared(entry["shape"], shape(body))
        for field, value in entry.get("error", {}).items():
            got = body.get("error", {}).get(field) if isinstance(body, dict) else None
            if got != value:
                yield f"error: {field} {got!r} not {value!r}"


async def test_the_recorded_requests_are_answered_as_a_real_server_answered_them(
    session: aiohttp.ClientSession, tmp_path: Path, repository: Path
) -> None:
    (tmp_path / "a3").mkdir()
    entries = recorded(repository)
    assert len(entries) == 93
    found: dict[str, list[str]] = {}
    with simulator(*FLAGS) as (_, url):
        client = Client(session, url)
        for entry in entries:
            body = json.dumps(expand(entry["json"], str(tmp_path))) if "json" in entry else entry.get("text", "")
            # aiohttp would add a kind of content of its own.
            reply = await client.send(
                entry["method"], entry["path"], body.encode(), entry["headers"], skip=["content-type"]
            )
            found[entry["name"]] = list(differences(entry, reply))
        page = (await client.get("/metrics")).body.decode()
    assert len(DIFFERENCES) <= 10
    unexpected = {
        name: left
        for name, listed in found.items()
        if (left := [d for d in listed if not any(_allows(row, name, d) for row in DIFFERENCES)])
    }
    assert unexpected == {}, json.dumps(unexpected, indent=1)
    unused = [row for row in DIFFERENCES if not any(_allows(row, n, d) for n, ds in found.items() for d in ds)]
    assert unused == []
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    ours = {s.name: set(s.labels) for s in samples if s.name.startswith(("http_", "vllm:sleep_mode"))}
    assert {name: labels for name, labels in ours.items() if not name.endswith("_created")} == PAGE
    assert {s.labels["handler"] for s in samples if s.name == "http_requests_total"} == HANDLERS


def _allows(row: tuple[str, str, str], name: str, difference: str) -> bool:
    return bool(re.fullmatch(row[0], name) and re.fullmatch(row[1], difference))
