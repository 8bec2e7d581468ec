"""Stop strings, and the forms of answers."""

from __future__ import annotations

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.simulator.answers import AnswerForm, StopScanner, Usage, embedding

letters = st.text("ab", max_size=12)


@given(st.lists(letters), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.booleans())
def test_text_ends_at_the_stop_string_that_is_complete_first(
    pieces: list[str], stops: list[str], include: bool
) -> None:
    scanner = StopScanner(stops, include)
    sent = ""
    whole = ""
    for piece in pieces:
        if scanner.found is not None:
            break
        for letter in piece:
            if scanner.found is None:
                whole += letter
                sent += scanner.feed(letter)
    sent += scanner.flush()
    if scanner.found is None:
        assert sent == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert whole.endswith(scanner.found)
        assert not any(stop in whole[:-1] for stop in stops), "an earlier one was missed"
        assert sent == (whole if include else whole[: -len(scanner.found)])


@given(letters, st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.integers(1, 12))
def test_a_stop_string_is_found_in_pieces_of_any_size(text: str, stops: list[str], size: int) -> None:
    def scan(step: int) -> tuple[str, bool]:
        scanner = StopScanner(stops, False)
        sent = "".join(scanner.feed(text[at : at + step]) for at in range(0, len(text), step))
        return sent + scanner.flush(), scanner.found is not None

    assert scan(size)[1] == scan(1)[1] == any(stop in text for stop in stops)


def test_nothing_stops_an_answer_before_min_tokens() -> None:
    scanner = StopScanner(["ab"], False)
    assert scanner.feed("ab ab", armed=False) + scanner.feed(" ab", armed=False) + scanner.flush() == "ab ab ab"
    assert scanner.found is None


@pytest.fixture
def form() -> AnswerForm:
    return AnswerForm(request_id="r", model="m", created=5, chat=True, continuous_usage=True)


def test_whole_answer(form: AnswerForm) -> None:
    body = json.loads(form.whole([form.choice(0, " hi", "stop", "x")], Usage(3, 1, 2)))
    # The fields that nothing fills are held to a real server's by tests/component/simulator/test_recorded.py.
    assert (body["id"], body["object"], body["created"], body["model"]) == ("r", "chat.completion", 5, "m")
    assert body["system_fingerprint"] == "headrace-simulator"
    (choice,) = body["choices"]
    assert (choice["index"], choice["finish_reason"], choice["stop_reason"]) == (0, "stop", "x")
    assert (choice["message"]["role"], choice["message"]["content"]) == ("assistant", " hi")
    usage = body["usage"]
    assert [usage[f"{name}_tokens"] for name in ("prompt", "completion", "total")] == [3, 1, 4]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 2


def test_events(form: AnswerForm) -> None:
    for event in (
        form.role_event(0, Usage(1, 0)),
        form.text_event(0, "\n", None, None, Usage(1, 1)),
        form.usage_event(Usage(1, 1)),
    ):
        assert event.startswith(b"data: {")
        assert event.endswith(b"}\n\n")
        assert event.count(b"\n") == 2, "a line break in the text must be escaped"
        assert json.loads(event[6:])["object"] == "chat.completion.chunk"
        assert json.loads(event[6:])["usage"]["prompt_tokens"] == 1


@given(st.integers(0, 2**64 - 1), st.integers(1, 8))
def test_embeddings_are_unit_vectors_and_the_same_in_both_encodings(digest: int, dimensions: int) -> None:
    values = embedding(digest, dimensions, False)
    assert isinstance(values, list)
    assert sum(value * value for value in values) == pytest.approx(1.0)
    encoded = embedding(digest, dimensions, True)
    assert isinstance(encoded, str)
    assert struct.unpack(f"<{dimensions}f", base64.b64decode(encoded)) == pytest.approx(values, rel=1e-6)
