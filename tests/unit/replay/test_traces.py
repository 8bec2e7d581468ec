"""Traces, as files and made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.replay.traces import (
    BLOCK_TOKENS,
    BadTrace,
    at_load,
    conversations,
    read_trace,
    shared_prefixes,
    stretch,
    with_adapters,
    work_seconds,
)
from headrace.simulator.timing import StepCost


def row(at: float, tokens: int, written: int = 5, first: int = 0) -> str:
    blocks = -(-tokens // BLOCK_TOKENS)
    ids = list(range(first, first + blocks))
    return json.dumps({"timestamp": at, "input_length": tokens, "output_length": written, "hash_ids": ids})


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "trace"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_requests_of_one_step_of_the_clock_are_spread_over_it(tmp_path: Path) -> None:
    found = read_trace(written(tmp_path, row(3000, 512), row(3000, 700, 9), row(6000, 1)))
    assert [arrival.at for arrival in found] == [0.0, 1.5, 3.0]
    assert [(a.input_tokens, a.output_tokens, a.blocks) for a in found] == [
        (512, 5, (0,)),
        (700, 9, (0, 1)),
        (1, 5, (0,)),
    ]


def test_a_trace_of_lengths_has_prompts_without_common_beginnings(tmp_path: Path) -> None:
    header, stamp = "TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:4"
    found = read_trace(written(tmp_path, header, f"{stamp}6.6805900,600,44", f"{stamp}8.1805900,10,2"))
    assert [(a.at, a.blocks, a.input_tokens, a.output_tokens) for a in found] == [
        (0.0, (0, 1), 600, 44),
        (1.5, (2,), 10, 2),
    ]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "no requests"),
        ([row(0, 5), "{}"], "trace:2"),
        ([row(0, 5), "nothing"], "trace:2"),
        (['{"timestamp":0,"input_length":0,"output_length":1,"hash_ids":[]}'], "trace:1: 0 tokens"),
        (['{"timestamp":0,"input_length":513,"output_length":1,"hash_ids":[1]}'], "trace:1: hash_ids"),
        (["TIMESTAMP,ContextTokens", "2023-11-16 18:15:46,5"], "trace:2"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,5,5"], "trace:2"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(tmp_path: Path, lines: list[str], named: str) -> None:
    with pytest.raises(BadTrace, match=named):
        read_trace(written(tmp_path, *lines))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="nowhere"):
        read_trace(tmp_path / "nowhere")


def test_stretches_follow_each_other_and_come_round(tmp_path: Path) -> None:
    found = read_trace(written(tmp_path, *(row(1000 * number, 10 + number) for number in range(10))))
    assert [[a.input_tokens for a in stretch(found, 4, number)] for number in range(3)] == [
        [10, 11, 12, 13],
        [14, 15, 16, 17],
        [11, 12, 13, 14],
    ]
    assert stretch(found, 4, 1)[0].at == 0.0


@pytest.mark.parametrize("made", [conversations, shared_prefixes])
def test_made_up_requests_depend_on_the_seed_alone(made: object) -> None:
    assert callable(made)
    assert made(50, 1) == made(50, 1) != made(50, 2)
    assert len(made(50, 1)) == 50


def test_a_conversation_keeps_its_adapter() -> None:
    found = with_adapters(conversations(200, 3), 3)
    assert len({arrival.adapter for arrival in found}) > 1
    homes: dict[int, set[str]] = {}
    for arrival in found:
        homes.setdefault(arrival.blocks[2], set()).add(arrival.adapter)
    assert all(len(adapters) == 1 for adapters in homes.values())


@pytest.mark.parametrize("busy", [0.2, 0.9])
def test_requests_are_spread_to_the_load_asked_for(busy: float) -> None:
    cost = StepCost()
    found = at_load(conversations(100, 1), 4, busy, cost)
    assert work_seconds(found, cost) / 4 / found[-1].at == pytest.approx(busy)
