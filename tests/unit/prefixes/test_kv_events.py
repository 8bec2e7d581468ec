"""KV cache events: as vLLM writes them, broken ones, and what the index makes of them."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.config.decode import InvalidConfig, decode
from headrace.core import Request
from headrace.prefixes import kv_events
from headrace.prefixes.kv_events import (
    AllCleared,
    Batch,
    BlocksRemoved,
    BlocksStored,
    Event,
    MalformedEvents,
    read_batch,
    read_parts,
)
from headrace.prefixes.kv_settings import KvEventsParameters, KvEventsSettings
from headrace.prefixes.kv_subscriber import waiting_messages
from headrace.prefixes.precise import EXPECTED_SECONDS, PreciseIndex, in_common
from headrace.scheduling.tokens import MOST_TOKENS, given_tokens, token_count


def frames(*events: Any, sequence: int = 0, rank: int | None = 0) -> list[bytes]:
    """A message as vLLM sends it."""
    return [b"kv@10.0.0.1@model", sequence.to_bytes(8, "big"), msgspec.msgpack.encode([1.5, list(events), rank])]


T8, T16 = list(range(8)), list(range(16))


def test_arrays_as_older_servers_write_them() -> None:
    batch = read_batch(
        frames(
            ["BlockStored", [11, 12], None, T16, 8, None, "GPU"],
            ["BlockStored", [b"\x01\x02"], 12, T8, 8, 3, "GPU", "my-adapter"],
            ["BlockRemoved", [11], "GPU"],
            ["AllBlocksCleared"],
            # Of older and of newer servers.
            ["BlockStored", [13], 11, T8, 8, None],
            ["BlockRemoved", [11]],
            ["BlockStored", [14], 11, T8, 8, None, "CPU"],
            ["BlockRemoved", [11], "CPU"],
            ["SomethingNew", 5],
            ["BlockStored", [15], None, T8, 8, 4, "GPU", None, "more", "fields"],
            sequence=7,
        )
    )
    assert batch == Batch(
        7,
        (
            BlocksStored((11, 12), None, tuple(T16), 8),
            BlocksStored((b"\x01\x02",), 12, tuple(T8), 8, "my-adapter"),
            BlocksRemoved((11,)),
            AllCleared(),
            BlocksStored((13,), 11, tuple(T8), 8),
            BlocksRemoved((11,)),
            BlocksStored((15,), None, tuple(T8), 8, None),
        ),
    )


RECORDED = [json.loads(line) for line in (Path(__file__).parent / "data/vllm-0.32.0-kv-events.jsonl").open()]


def test_maps_as_vllm_0_32_writes_them() -> None:
    kinds: Counter[str] = Counter()
    adapters = set()
    for message in RECORDED:
        batch = read_batch([bytes.fromhex(frame) for frame in message["frames_hex"]])
        wanted = message["decoded"][1]
        assert batch.sequence == int(message["frames_hex"][1], 16)
        assert len(batch.events) == len(wanted)
        for event, fields in zip(batch.events, wanted, strict=True):
            kinds[fields["type"]] += 1
            if isinstance(event, BlocksStored):
                adapter = fields["lora_name"] or ""
                adapters.add(adapter)
                assert event == BlocksStored(
                    tuple(fields["block_hashes"]),
                    fields["parent_block_hash"],
                    tuple(fields["token_ids"]),
                    fields["block_size"],
                    adapter,
                )
            elif isinstance(event, BlocksRemoved):
                assert event == BlocksRemoved(tuple(fields["block_hashes"]))
            else:
                assert fields["type"] == "AllBlocksCleared"
    assert set(kinds) == {"BlockStored", "BlockRemoved", "AllBlocksCleared"}
    assert {"", "a1"} <= adapters


def stored_map(**changes: Any) -> dict[str, Any]:
    fields = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": T8, "block_size": 8}
    return {**fields, **changes}


def test_maps_with_more_and_with_fewer_fields() -> None:
    stored = BlocksStored((1,), None, tuple(T8), 8)
    batch = read_batch(
        frames(
            stored_map(),
            stored_map(medium="GPU", group_idx=0, kv_cache_spec_kind="full_attention", extra_keys=[None], new=[{}]),
            # Of other layers, and of other tiers.
            stored_map(group_idx=1),
            stored_map(medium="CPU"),
            stored_map(lora_id=3, lora_name="x"),
            stored_map(lora_id=3),
            {"type": "BlockRemoved", "block_hashes": [1], "group_idx": 1},
            {"type": "BlockRemoved", "block_hashes": [b"1"], "medium": "GPU"},
            {"type": "SomethingNew", "block_hashes": 5},
            {"type": "AllBlocksCleared", "new": 1},
            ["AllBlocksCleared"],
        )
    )
    with_adapter = [replace(stored, adapter=adapter) for adapter in ("x", None)]
    assert batch.events == (stored, stored, *with_adapter, BlocksRemoved((b"1",)), AllCleared(), AllCleared())


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
        frames({}),
        frames({"type": 5}),
        frames({"type": "BlockStored"}),
        frames(["BlockStored", [1], None, T8, 0, None]),
        frames(["BlockStored", [1], None, T8, "8", None]),
        frames(["BlockStored", [1], None, [*T8, 1], 8, None]),
        frames(["BlockStored", [1], None, [-1, *T8[1:]], 8, None]),
        frames(["BlockStored", [1], None, [1 << 32, *T8[1:]], 8, None]),
        frames(["BlockStored", [1], None, [True, *T8[1:]], 8, None]),
        frames(["BlockStored", [1], 1.5, T8, 8, None]),
        frames(["BlockStored", "12", None, T8, 8, None]),
        frames(["BlockRemoved", [1.5]]),
        frames(["BlockRemoved", None]),
        frames(stored_map(token_ids=T16)),
        frames(stored_map(block_hashes=None)),
        frames(stored_map(medium=[])),
        [b"topic", b"12345678", b"\x91" * 5000 + b"\xc0"],
        # Blocks of sizes that no server has: each pick would hash its prompt in thousands of them.
        frames(stored_map(token_ids=[1], block_size=1)),
        frames(stored_map(token_ids=[], block_hashes=[], block_size=1 << 20)),
        # Too much at once.
        frames(*([] for _ in range(1_000_000))),
        frames(*(["X"] for _ in range(20_000))),
        frames(["BlockRemoved", [1] * 40_000]),
        frames(stored_map(extra_keys=b"x" * (2 << 20))),
    ],
)
def test_broken_messages_are_told_as_such(broken: list[bytes]) -> None:
    with pytest.raises(MalformedEvents):
        read_batch(broken)


FIELDS = ("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "medium", "group_idx")
VALUE = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=4) | st.sampled_from(["BlockStored", "GPU"]),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
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
    assert told.matches([10, 11]) == told.matches([20, 21]) == {"a": 1}
    assert told.index.apply("a", Batch(0, (stored([3], [30, 31]),)))
    assert not told.index.apply("a", Batch(1, ()))
    assert not told.index.apply("absent", Batch(0, (AllCleared(),)))
    assert told.matches([10, 11]) == {}
    assert told.matches([30, 31]) == {"a": 1}


def test_blocks_whose_beginning_is_not_known_are_not_guessed() -> None:
    told = Told("a")
    told.tell("a", stored([5, 6], [12, 13, 14, 15], parent=4))
    assert told.matches([12, 13]) == {}
    told.tell("a", stored([8], [10, 11], adapter=None))
    assert told.matches([10, 11]) == {}
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
    parameters = decode(
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
        KvEventsParameters,
        "",
    )
    assert parameters.settings() == KvEventsSettings(5556, "kv@")
    assert decode({}, KvEventsParameters, "").settings() == KvEventsSettings(5557, "")
    for wrong in (
        {"discoverPods": False},
        {"podDiscoveryConfig": {"socketPort": 0}},
        {"podDiscoveryConfig": {"socketPort": 66_000}},
    ):
        with pytest.raises(InvalidConfig):
            decode({"kvEventsConfig": wrong}, KvEventsParameters, "")


HASHES = st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True)
TOLD = st.one_of(
    st.tuples(HASHES, st.sampled_from(["", "x"])).map(
        lambda told: stored_map(block_hashes=told[0], token_ids=T8 * len(told[0]), lora_name=told[1])
    ),
    HASHES.map(lambda hashes: {"type": "BlockRemoved", "block_hashes": hashes}),
    st.just({"type": "AllBlocksCleared"}),
)


@given(st.lists(st.lists(TOLD, max_size=4), max_size=4), st.integers(1, 9), st.booleans())
def test_a_message_in_parts_comes_to_the_same(messages: list[list[Any]], part: int, again: bool) -> None:
    whole, parts = PreciseIndex(), PreciseIndex()
    for index in (whole, parts):
        index.add("a")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kv_events, "_PART", part)
        for number, events in enumerate(messages):
            # A server that starts anew counts from 0 again.
            sent = frames(*events, sequence=0 if again else number)
            found = list(read_parts(sent))
            assert [batch.continued for batch in found] == [False] + [True] * (len(found) - 1)
            assert all(len(getattr(event, "hashes", ())) <= part for batch in found for event in batch.events)
            emptied = [parts.apply("a", batch) for batch in found]
            assert any(emptied) == whole.apply("a", read_batch(sent))
            assert parts._masks == whole._masks
            assert parts._caches["a"].blocks == whole._caches["a"].blocks


def test_a_long_event_goes_on_where_its_parent_is() -> None:
    first = stored_map(block_hashes=[1], token_ids=T8)
    long = stored_map(block_hashes=list(range(2, 1500)), parent_block_hash=1, token_ids=T8 * 1498)
    whole, parts = PreciseIndex(), PreciseIndex()
    for index in (whole, parts):
        index.add("a")
    sent = frames(first, long)
    whole.apply("a", read_batch(sent))
    found = list(read_parts(sent))
    assert len(found) == 3
    for batch in found:
        parts.apply("a", batch)
    assert len(whole) == 1499
    assert parts._masks == whole._masks


def test_parts_before_a_malformed_one_count() -> None:
    sent = frames(*[stored_map(block_hashes=[number]) for number in range(600)], stored_map(block_size=1))
    parts = read_parts(sent)
    assert len(next(parts).events) > 100
    with pytest.raises(MalformedEvents):
        list(parts)


def test_what_waits_is_bounded_in_bytes_over_all_endpoints() -> None:
    assert waiting_messages(64 << 20, 1) == 64
    assert waiting_messages(64 << 20, 8) == 8
    # Each has some: a message is hardly ever that long.
    assert waiting_messages(64 << 20, 1000) == 2
    assert waiting_messages(1 << 50, 1) == 10_000
    assert waiting_messages(64 << 20, 0) == 64


def tokens_prompt(count: int, *, nested: bool = False) -> Request:
    text = ",".join(str(number % 100_000) for number in range(count))
    return Request("r", prompt=f"[[{text}]]".encode() if nested else f"[{text}]".encode())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("count", [1, MOST_TOKENS - 1, MOST_TOKENS, MOST_TOKENS + 1, 200_000, 1_000_000])
def test_of_a_long_prompt_the_first_tokens_are_looked_at_and_all_counted(count: int, nested: bool) -> None:
    request = tokens_prompt(count, nested=nested)
    tokens = given_tokens(request)
    assert tokens is not None
    assert list(tokens) == [number % 100_000 for number in range(min(count, MOST_TOKENS))]
    assert token_count(request, tokens) == count
    index = PreciseIndex()
    index.add("a")
    index.apply("a", Batch(0, (BlocksStored((1,), None, tuple(T16), 16),)))
    unit, blocks, matches = in_common(index, "", tokens, 0.0, {}, 64)
    assert (unit, blocks) == (16, min(count, MOST_TOKENS) // 16)
    assert matches == ({"a": 1} if count > 16 else {})


@pytest.mark.parametrize(
    "prompt",
    [
        b"[]",
        b"[[]]",
        b"[[1],[2]]",
        b'["a"]',
        b"[true]",
        b"[1.5]",
        b"[-1]",
        b"[4294967296]",
        b"[1",
        b"[" + b"1" * 10**6 + b"]",
    ],
)
def test_what_only_looks_like_tokens_is_text(prompt: bytes) -> None:
    assert given_tokens(Request("r", prompt=prompt)) is None


def test_what_is_expected_of_long_prompts_is_dropped_in_time() -> None:
    index = PreciseIndex()
    index.add("a")
    index.apply("a", Batch(0, (BlocksStored((1,), None, tuple(T16), 16),)))
    index.expect("a", "", [7] * MOST_TOKENS, now=0.0)
    assert len(index._expected) == MOST_TOKENS // 16
    index.expire(EXPECTED_SECONDS - 0.1)
    assert index._expected
    index.expire(EXPECTED_SECONDS)
    assert not index._expected
    assert not index._expecting
