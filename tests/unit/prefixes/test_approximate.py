"""The prefix index against a plain model of it, and within its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.prefixes.approximate import PrefixIndex, block_hashes
from headrace.scheduling import PrefixSettings

SETTINGS = PrefixSettings(block_bytes=4, max_blocks=6, blocks_per_endpoint=1000)


def test_equal_beginnings_have_equal_hashes() -> None:
    one = block_hashes("m", b"aaaabbbbccccdd", SETTINGS)
    two = block_hashes("m", b"aaaabbbbxxxx", SETTINGS)
    assert len(one) == 3
    assert one[:2] == two[:2]
    assert one[2] != two[2]
    assert block_hashes("other", b"aaaa", SETTINGS) != one[:1]
    # The same block further in is another block.
    again = block_hashes("m", b"aaaaaaaa", SETTINGS)
    assert again[0] != again[1]
    assert len(block_hashes("m", b"a" * 1000, SETTINGS)) == SETTINGS.max_blocks


def common(a: list[int], b: list[int]) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


PROMPTS = st.text("ab", max_size=24).map(str.encode)
STEPS = st.lists(st.tuples(st.sampled_from(["send", "remove", "add"]), st.integers(0, 3), PROMPTS), max_size=40)


@given(STEPS, PROMPTS)
def test_matches_are_the_longest_prefix_sent(steps: list[tuple[str, int, bytes]], asked: bytes) -> None:
    index = PrefixIndex(SETTINGS)
    sent: dict[str, list[list[int]]] = {}
    for what, number, prompt in steps:
        key = f"e{number}"
        if what == "add":
            index.add(key)
            sent.setdefault(key, [])
        elif what == "remove":
            index.remove(key)
            sent.pop(key, None)
        else:
            hashes = block_hashes("m", prompt, SETTINGS)
            index.insert(hashes, key)
            if key in sent:
                sent[key].append(hashes)
    hashes = block_hashes("m", asked, SETTINGS)
    expected = {key: max((common(hashes, other) for other in lists), default=0) for key, lists in sent.items()}
    assert index.matches(hashes) == {key: length for key, length in expected.items() if length}
    assert len(index) == len({block for lists in sent.values() for prompt in lists for block in prompt})


@given(st.lists(st.tuples(st.integers(0, 2), st.binary(min_size=4, max_size=24)), max_size=60))
def test_memory_is_bounded(prompts: list[tuple[int, bytes]]) -> None:
    index = PrefixIndex(PrefixSettings(block_bytes=4, max_blocks=6, blocks_per_endpoint=8))
    for number in range(3):
        index.add(f"e{number}")
    for number, prompt in prompts:
        hashes = block_hashes("m", prompt, index.settings)
        index.insert(hashes, f"e{number}")
        assert index.entries(f"e{number}") <= 8
        assert index.matches(hashes)[f"e{number}"] == len(hashes)
    assert len(index) <= 24
    for number in range(3):
        index.remove(f"e{number}")
    assert len(index) == 0


@given(st.lists(st.text("ab", min_size=1, max_size=6).map(lambda text: text.encode().ljust(24, b"c")), max_size=40))
def test_what_is_forgotten_is_an_end_of_what_was_used_least(prompts: list[bytes]) -> None:
    index = PrefixIndex(PrefixSettings(block_bytes=1, max_blocks=24, blocks_per_endpoint=60))
    index.add("e")
    sent = [block_hashes("m", prompt, index.settings) for prompt in prompts]
    for number, hashes in enumerate(sent):
        index.insert(hashes, "e")
        known = set(index.blocks("e"))
        assert len(known) == index.entries("e") == len(index) <= 60
        assert sorted(known) == sorted(index.blocks("e"))
        for earlier in sent[: number + 1]:
            # The blocks that are known of a prompt are its first ones.
            length = index.matches(earlier).get("e", 0)
            assert [block in known for block in earlier] == [True] * length + [False] * (len(earlier) - length)
        # The last two prompts fit, and the blocks that are shared with them.
        for latest in sent[max(0, number - 1) : number + 1]:
            assert index.matches(latest).get("e", 0) == len(latest)


def test_what_is_used_again_outlives_what_is_not() -> None:
    index = PrefixIndex(PrefixSettings(blocks_per_endpoint=6))
    index.add("e")
    system, one, two, three = [1, 2], [1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 7, 8]
    index.insert(one, "e")
    index.insert(two, "e")
    index.insert(one, "e")
    index.insert(three, "e")
    assert [index.matches(hashes).get("e") for hashes in (system, one, two, three)] == [2, 4, 2, 4]
    index.empty("e")
    assert (index.blocks("e"), len(index), bool(index.matches(one))) == ([], 0, False)


def test_the_total_is_shared_among_the_endpoints() -> None:
    index = PrefixIndex(PrefixSettings(block_bytes=4, max_blocks=5000), max_entries=2048)
    for number in range(4):
        index.add(f"e{number}")
    for number in range(4):
        prompt = b"".join(f"{number}{block:07d}".encode() for block in range(1000))
        index.insert(block_hashes("m", prompt, index.settings), f"e{number}")
    assert len(index) <= 2048
    assert index.entries("e3") == 512


def test_an_endpoint_is_taken_at_its_word_about_its_cache() -> None:
    settings = PrefixSettings(blocks_per_endpoint=1000)
    index = PrefixIndex(settings)
    index.add("a")
    hashes = list(range(1, 41))
    # 640 tokens are ten blocks of 64.
    index.insert(hashes, "a", cache_tokens=640)
    assert index.entries("a") == 10
    assert index.matches(hashes) == {"a": 10}
    index.insert(hashes, "a")
    assert index.entries("a") == 40
    index.reconfigure(PrefixSettings(blocks_per_endpoint=20, auto_tune=False))
    # Also where the prompt brings nothing new.
    index.insert(hashes, "a", cache_tokens=640)
    assert index.entries("a") == 20
