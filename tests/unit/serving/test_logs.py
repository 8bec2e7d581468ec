"""Logs are JSON lines, whatever is logged."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.serving.logs import JsonFormatter, configure_logging


@pytest.fixture
def restored_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def record(message: str, **extra: object) -> dict[str, object]:
    made = logging.getLogger("a.b").makeRecord("a.b", logging.WARNING, "f", 1, message, (), None, extra=extra)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    parsed: dict[str, object] = json.loads(line)
    return parsed


def test_keys_and_extras() -> None:
    entry = record("two\nlines", pool="p", level="mine")
    assert entry.pop("time").endswith("Z")  # type: ignore[attr-defined]
    assert entry == {
        "level": "warning",
        "logger": "a.b",
        "message": "two\nlines",
        "pool": "p",
        "extra_level": "mine",
    }


@given(st.text(), st.one_of(st.binary(), st.floats(), st.integers(), st.text(), st.sets(st.integers())))
def test_any_message_and_value_is_one_line_of_json(message: str, value: object) -> None:
    assert "value" in record(message.replace("%", "%%"), value=value)


def test_level_is_honoured_and_a_second_call_replaces_the_first(restored_root: None) -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("debug", first)
    configure_logging("warning", second)
    logging.getLogger("x").info("quiet")
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logging.getLogger("x").exception("loud")
    assert first.getvalue() == ""
    (line,) = second.getvalue().splitlines()
    assert "RuntimeError: boom" in json.loads(line)["exception"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="'loud' is not one of debug"):
        configure_logging("loud")
