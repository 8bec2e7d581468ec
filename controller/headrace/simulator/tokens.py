"""The simulated tokenizer and the simulated model's words.

A token is four bytes of UTF-8 text, which is close to what English costs with a real vocabulary. That makes tokens
cheap to make, reversible, and equal for equal text prefixes, so that prefix caching sees what it would see in reality.
Every word the simulated model writes is four bytes with its leading space, thus one token, and comes back as the same
token when a client sends the answer again in the next turn of a chat.

A text prompt starts with one begin-of-text token, as Llama's does; token ids given by a client are taken as they are.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence

import xxhash

BYTES_PER_TOKEN = 4
MAX_TOKEN_ID = 2**32 - 1
# The special tokens hold bytes that UTF-8 text never has, so no text can produce them.
BEGIN_OF_TEXT = 0xFF000001
END_OF_TURN = 0xFF000002

_WORDS = (
    "the and for you are but not all any can had her was one our out day get has him his how man new now old see two "
    "way who boy did its let put say she too use dad mom sun sea sky air ice oak fox owl bee ant cat dog hen cow pig "
    "rat bat elk jay map pen ink box jar cup pot pan lid key bed rug mat hat cap tie bag red dry wet hot raw big tan "
    "low run sit lie fly dig row sew mix try ask add aim act bow"
)


def _token_ids(data: bytes) -> array[int]:
    ids = array("I", data + bytes(-len(data) % BYTES_PER_TOKEN))
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def encode(text: str) -> array[int]:
    """The tokens of a text, without a begin-of-text token. A short last token is filled up with zero bytes."""
    return _token_ids(text.encode("utf-8", "surrogatepass"))


def encode_prompt(text: str) -> array[int]:
    """The tokens of a text prompt: begin-of-text, then the text."""
    prompt = array("I", [BEGIN_OF_TEXT])
    prompt.extend(encode(text))
    return prompt


def encode_chat(messages: Iterable[tuple[str, str]]) -> array[int]:
    """The tokens of a chat prompt, given (role, text) pairs in order.

    Each message is its role as a header, its text and an end-of-turn token, and starts on a token of its own: equal
    first messages give equal first tokens. The prompt ends with the header of the assistant's turn.
    """
    prompt = array("I", [BEGIN_OF_TEXT])
    for role, text in messages:
        prompt.extend(encode(f"<|{role}|>"))
        prompt.extend(encode(text))
        prompt.append(END_OF_TURN)
    prompt.extend(encode("<|assistant|>"))
    return prompt


def decode(token_ids: Sequence[int]) -> str:
    """The text of some tokens. Special tokens have none; bytes that are no UTF-8 become replacement characters."""
    ids = array("I", (token for token in token_ids if token < BEGIN_OF_TEXT))
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes().replace(b"\0", b"").decode("utf-8", "replace")


WORDS: tuple[str, ...] = tuple(f" {word}" for word in _WORDS.split())
WORD_IDS: tuple[int, ...] = tuple(encode(word)[0] for word in WORDS)
WORD_OF_ID: dict[int, str] = dict(zip(WORD_IDS, WORDS, strict=True))


class Writer:
    """Gives the words of one answer, one token id after the other. Equal seeds give equal answers."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & 0xFFFFFFFFFFFFFFFF

    def next_token(self) -> int:
        """The next token id."""
        # Knuth's MMIX generator; its low bits are weak, so the word is taken from the high ones.
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return WORD_IDS[(self._state >> 33) % len(WORD_IDS)]


def answer_seed(prompt: array[int], server_seed: int, request_seed: int, choice: int) -> int:
    """The seed of an answer: the same prompt, seeds and choice give the same text on every replica."""
    digest = xxhash.xxh3_64_intdigest(prompt.tobytes(), seed=server_seed & 0xFFFFFFFFFFFFFFFF)
    return xxhash.xxh3_64_intdigest(f"{digest}/{request_seed}/{choice}".encode())
