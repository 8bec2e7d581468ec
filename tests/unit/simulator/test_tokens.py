"""The simulated tokenizer: reversible, prefix-preserving, and words are single tokens."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from headrace.simulator import tokens

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(texts)
def test_a_text_comes_back_from_its_tokens(text: str) -> None:
    assert tokens.decode(tokens.encode_prompt(text)) == text


@given(texts)
def test_four_bytes_are_a_token(text: str) -> None:
    assert len(tokens.encode(text)) == -(-len(text.encode()) // 4)


@given(texts, texts, texts)
def test_equal_prefixes_have_equal_tokens(prefix: str, one: str, other: str) -> None:
    whole = len(prefix.encode()) // 4 + 1  # with begin-of-text
    assert tokens.encode_prompt(prefix + one)[:whole] == tokens.encode_prompt(prefix + other)[:whole]


@given(st.lists(st.tuples(st.sampled_from(["system", "user"]), texts), min_size=1), texts)
def test_a_next_turn_starts_with_the_tokens_of_the_turns_before(chat: list[tuple[str, str]], more: str) -> None:
    first = tokens.encode_chat(chat)
    writer = tokens.Writer(1)
    answer = array("I", (writer.next_token() for _ in range(9)))
    second = tokens.encode_chat([*chat, ("assistant", tokens.decode(answer)), ("user", more)])
    assert second[: len(first) + len(answer)] == first + answer, "the answer's KV is found again, too"


def test_every_word_is_one_token() -> None:
    assert len(set(tokens.WORD_IDS)) == len(tokens.WORDS)
    assert all(len(tokens.encode(word)) == 1 for word in tokens.WORDS)


@given(st.integers(min_value=0), st.integers(0, 2**63), st.integers(0, 3))
def test_answers_depend_on_prompt_seeds_and_choice_alone(server: int, request: int, choice: int) -> None:
    prompt = tokens.encode_prompt("hello")

    def words(*seeds: int) -> list[int]:
        writer = tokens.Writer(tokens.answer_seed(prompt, *seeds))
        return [writer.next_token() for _ in range(20)]

    assert words(server, request, choice) == words(server, request, choice)
    assert words(server, request, choice) != words(server, request + 1, choice)
    assert words(server, request, choice) != words(server, request, choice + 1)
