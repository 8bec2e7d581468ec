"""KV cache events: as vLLM writes them, broken ones, and what the index makes of them."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.core import Request
from headrace.datalayer.kv_events import (
    AllCleared,
    Batch,
    BlocksRemoved,
    BlocksStored,
    Event,
    MalformedEvents,
    read_batch,
)
from headrace.datalayer.kv_settings import KvEventsSettings, read_kv_events
from headrace.datalayer.precise_prefix import EXPECTED_SECONDS, PreciseIndex, in_common
from headrace.scheduling import InvalidConfig, Parameters
from headrace.scheduling.tokens import given_tokens


def frames(*events: Any, sequence: int = 0, rank: int | None = 0) -> list[bytes]:
    """A message as vLLM sends it."""
    return [b"kv@10.0.0.1@model", sequence.to_bytes(8, "big"), msgspec.msgpack.encode([1.5, list(events), rank])]


def test_what_vllm_writes() -> None:
    batch = read_batch(
        frames(
            ["BlockStored", [11, 12], None, [1, 2, 3, 4], 2, None, "GPU"],
            ["BlockStored", [b"\x01\x02"], 12, [5, 6], 2, 3, "GPU", "my-adapter"],
            ["BlockRemoved", [11], "GPU"],
            ["AllBlocksCleared"],
            # Of older and of newer servers.
            ["BlockStored", [13], 11, [7, 8], 2, None],
            ["BlockRemoved", [11]],
            ["BlockStored", [14], 11, [7, 8], 2, None, "CPU"],
            ["BlockRemoved", [11], "CPU"],
            ["SomethingNew", 5],
            ["BlockStored", [15], None, [7, 8], 2, 4, "GPU", None, "more", "fields"],
            sequence=7,
        )
    )
    assert batch == Batch(
        7,
        (
            BlocksStored((11, 12), None, (1, 2, 3, 4), 2),
            BlocksStored((b"\x01\x02",), 12, (5, 6), 2, "my-adapter"),
            BlocksRemoved((11,)),
            AllCleared(),
            BlocksStored((13,), 11, (7, 8), 2),
            BlocksRemoved((11,)),
            BlocksStored((15,), None, (7, 8), 2, None),
        ),
    )


@pytest.mark.parametrize(
    "broken",
    [
        [],
        [b"topic", b"12345678"],
        [b"topic", b"123", msgspec.msgpack.encode([0, [], 0])],
        [b"topic", b"12345678", b"\xc1"],
        [b"topic", b"12345678", b""],
        [b"topic", b"12345678", msgspec.msgpack.encode({"events": []})],
        [b"topic", b"12345678", msgspec.msgpack.encode([0])],
        frames("BlockStored"),
        frames([]),
        frames(["BlockStored", [1], None, [1, 2], 0, None]),
        frames(["BlockStored", [1], None, [1, 2], "2", None]),
        frames(["BlockStored", [1], None, [1, 2, 3], 2, None]),
        frames(["BlockStored", [1], None, [-1, 2], 2, None]),
        frames(["BlockStored", [1], None, [1 << 32, 2], 2, None]),
        frames(["BlockStored", [1], 1.5, [1, 2], 2, None]),
        frames(["BlockStored", "12", None, [1, 2], 2, None]),
        frames(["BlockRemoved", [1.5]]),
        frames(["BlockRemoved", None]),
        [b"topic", b"12345678", b"\x91" * 5000 + b"\xc0"],
    ],
)
def test_broken_messages_are_told_as_such(broken: list[bytes]) -> None:
    with pytest.raises(MalformedEvents):
        read_batch(broken)


VALUE = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=4) | st.sampled_from(["BlockStored", "GPU"]),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=12,
)


@given(st.lists(VALUE, max_size=4) | st.just([]), st.binary(max_size=40))
def test_any_message_is_read_or_refused(events: list[Any], raw: bytes) -> None:
    for message in (frames(*events), [b"", b"\0" * 8, raw]):
        with contextlib.suppress(MalformedEvents):
            read_batch(message)


# The index.


def stored(hashes: list[int], tokens: list[int], parent: int | None = None, adapter: str | None = "") -> BlocksStored:
    return BlocksStored(tuple(hashes), parent, tuple(tokens), 2, adapter)


class Told:
    """An index, and servers that number what they tell."""

    def __init__(self, *keys: str) -> None:
        self.index = PreciseIndex()
        self.sequences = dict.fromkeys(keys, -1)
        for key in keys:
            self.index.add(key)

    def tell(self, key: str, *events: Event, skipping: int = 0) -> None:
        self.sequences[key] += 1 + skipping
        self.index.apply(key, Batch(self.sequences[key], events))

    def matches(self, tokens: list[int], adapter: str = "", now: float = 0.0) -> dict[str, int]:
        return self.index.matches(adapter, tokens, 2, now)


def test_blocks_are_the_same_on_servers_that_name_them_differently() -> None:
    told = Told("a", "b")
    told.tell("a", stored([1, 2], [10, 11, 12, 13]))
    told.tell("b", stored([77], [10, 11]))
    assert told.matches([10, 11, 12, 13, 14]) == {"a": 2, "b": 1}
    assert told.matches([10, 11, 12]) == {"a": 1, "b": 1}
    assert told.matches([99, 11, 12, 13]) == {}
    assert told.matches([10]) == {}
    # A block continues the one its server names.
    told.tell("b", stored([78], [12, 13], parent=77))
    assert told.matches([10, 11, 12, 13]) == {"a": 2, "b": 2}
    # The same tokens after others are another block.
    assert told.matches([12, 13]) == {}


def test_what_is_gone_is_gone() -> None:
    told = Told("a", "b")
    for key in ("a", "b"):
        told.tell(key, stored([1, 2], [10, 11, 12, 13]))
    told.tell("a", BlocksRemoved((2, 999)))
    assert told.matches([10, 11, 12, 13]) == {"a": 1, "b": 2}
    told.tell("b", AllCleared())
    assert told.matches([10, 11, 12, 13]) == {"a": 1}
    told.index.remove("a")
    assert told.matches([10, 11]) == {}
    assert len(told.index) == 0
    told.index.add("c")
    told.tell("b", stored([1], [10, 11]))
    assert told.matches([10, 11]) == {"b": 1}


def test_a_server_that_starts_anew_and_messages_that_did_not_come() -> None:
    told = Told("a")
    told.tell("a", stored([1], [10, 11]))
    told.tell("a", stored([2], [20, 21]), skipping=3)
    assert told.index.lost == 3
    assert told.matches([10, 11]) == {"a": 1}
    assert told.index.apply("a", Batch(0, (stored([3], [30, 31]),)))
    assert not told.index.apply("a", Batch(1, ()))
    assert not told.index.apply("absent", Batch(0, (AllCleared(),)))
    assert told.matches([10, 11]) == {}
    assert told.matches([30, 31]) == {"a": 1}


def test_blocks_whose_beginning_is_not_known_are_not_guessed() -> None:
    told = Told("a")
    told.tell("a", stored([5, 6], [12, 13, 14, 15], parent=4))
    assert told.matches([12, 13]) == {}
    assert told.index.unknown == 2
    told.tell("a", stored([8], [10, 11], adapter=None))
    assert told.index.unknown == 3
    assert told.index.entries("a") == 0


def test_caches_are_per_adapter() -> None:
    told = Told("a")
    told.tell("a", stored([1], [10, 11], adapter="x"))
    assert told.matches([10, 11]) == {}
    assert told.matches([10, 11], adapter="x") == {"a": 1}


def test_two_blocks_of_the_same_tokens_need_two_removals() -> None:
    told = Told("a")
    told.tell("a", stored([1], [10, 11]), stored([2], [10, 11]))
    told.tell("a", BlocksRemoved((1,)))
    assert told.matches([10, 11]) == {"a": 1}
    told.tell("a", BlocksRemoved((2,)))
    assert told.matches([10, 11]) == {}


def test_the_oldest_are_forgotten_where_there_are_too_many() -> None:
    index = PreciseIndex(max_blocks=600)
    index.add("a")
    for number in range(700):
        index.apply("a", Batch(number, (stored([number], [number, 0]),)))
    assert index.entries("a") == 600
    assert index.matches("", [99, 0], 2, 0.0) == {}
    assert index.matches("", [100, 0], 2, 0.0) == {"a": 1}


def test_what_was_sent_counts_until_the_server_tells() -> None:
    told = Told("a", "b")
    told.tell("a", stored([1], [10, 11]))
    prompt = [10, 11, 12, 13]
    told.index.expect("a", "", prompt, 5.0)
    # Of a server that has told nothing, the size of its blocks is not known.
    told.index.expect("b", "", prompt, 5.0)
    assert told.matches(prompt, now=5.5) == {"a": 2}
    assert told.matches(prompt, now=5.0 + EXPECTED_SECONDS) == {"a": 1}
    told.index.expect("a", "", prompt, 10.0)
    told.index.remove("a")
    assert told.matches(prompt, now=10.5) == {}


def test_servers_that_tell_nothing_are_estimated() -> None:
    told = Told("a", "b")
    told.tell("a", stored([1], [10, 11]))
    prompt = [10, 11, *range(100, 126)]
    assert in_common(told.index, "", prompt, 0.0, {"a": 3, "b": 1}, 8) == (2, 14, {"a": 1, "b": 4})
    assert in_common(PreciseIndex(), "", prompt, 0.0, {"b": 1}, 8) == (8, 3, {"b": 1})


class Servers(RuleBasedStateMachine):
    """Whatever servers tell, the index knows what a search through all they have would find."""

    def __init__(self) -> None:
        super().__init__()
        self.told = Told("a", "b", "c")
        # By server: its name of a block to all the tokens up to that block's end.
        self.truth: dict[str, dict[int, tuple[int, ...]]] = {key: {} for key in ("a", "b", "c")}
        self.names = 0

    @rule(key=st.sampled_from("abc"), tokens=st.lists(st.integers(0, 1), min_size=2, max_size=6), data=st.data())
    def store(self, key: str, tokens: list[int], data: st.DataObject) -> None:
        truth = self.truth[key]
        parent = data.draw(st.none() | st.sampled_from(sorted(truth))) if truth else None
        before = truth[parent] if parent is not None else ()
        whole = tokens[: len(tokens) // 2 * 2]
        names = list(range(self.names, self.names + len(whole) // 2))
        self.names += len(names)
        self.told.tell(key, stored(names, whole, parent))
        for at, name in enumerate(names):
            truth[name] = (*before, *whole[: 2 * at + 2])

    @rule(key=st.sampled_from("abc"), data=st.data())
    def drop(self, key: str, data: st.DataObject) -> None:
        if self.truth[key]:
            name = data.draw(st.sampled_from(sorted(self.truth[key])))
            self.told.tell(key, BlocksRemoved((name,)))
            del self.truth[key][name]

    @rule(key=st.sampled_from("abc"))
    def clear(self, key: str) -> None:
        self.told.tell(key, AllCleared())
        self.truth[key] = {}

    @rule(key=st.sampled_from("abc"))
    def replace(self, key: str) -> None:
        self.told.index.remove(key)
        self.told.index.add(key)
        self.told.sequences[key] = -1
        self.truth[key] = {}

    @rule(prompt=st.lists(st.integers(0, 1), max_size=8))
    def ask(self, prompt: list[int]) -> None:
        expected = {}
        for key, truth in self.truth.items():
            has = set(truth.values())
            length = 0
            while tuple(prompt[: 2 * length + 2]) in has and 2 * length + 2 <= len(prompt):
                length += 1
            if length:
                expected[key] = length
        assert self.told.matches(prompt) == expected

    @invariant()
    def counts_agree(self) -> None:
        for key, truth in self.truth.items():
            assert self.told.index.entries(key) == len(truth)
        assert len(self.told.index) == len({tokens for truth in self.truth.values() for tokens in truth.values()})


TestServers = Servers.TestCase
TestServers.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)


# Prompts and settings.


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (b"[1,2,3]", [1, 2, 3]),
        (b"[[1,2,3]]", [1, 2, 3]),
        (b"[[1],[2]]", None),
        (b"[]", None),
        (b"[1,-2]", None),
        (b"[1,true]", None),
        (b'["a"]', None),
        (b"[1,2", None),
        (b"hello", None),
        (b"", None),
        (b"[nonsense]", None),
    ],
)
def test_prompts_given_as_tokens(prompt: bytes, tokens: list[int] | None) -> None:
    assert given_tokens(Request(request_id="r", prompt=prompt)) == tokens


def test_settings_of_llm_d() -> None:
    parameters = Parameters(
        {
            "tokenProcessorConfig": {"blockSize": 64, "hashSeed": "42"},
            "indexerConfig": {"kvBlockIndexConfig": {"enableMetrics": True}},
            "kvEventsConfig": {
                "topicFilter": "kv@",
                "concurrency": 4,
                "discoverPods": True,
                "podDiscoveryConfig": {"podLabelSelector": "a=b", "socketPort": 5556},
            },
        },
        "",
    )
    assert read_kv_events(parameters) == KvEventsSettings(5556, "kv@")
    parameters.finish()
    assert read_kv_events(Parameters({}, "")) == KvEventsSettings(5557, "")
    for wrong in (
        {"discoverPods": False},
        {"podDiscoveryConfig": {"socketPort": 0}},
        {"podDiscoveryConfig": {"socketPort": 66_000}},
    ):
        with pytest.raises(InvalidConfig):
            read_kv_events(Parameters({"kvEventsConfig": wrong}, ""))
