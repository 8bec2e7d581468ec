"""The fuzz targets on their own seeds and on some bytes: a target that fails by itself finds nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ...fuzz import body_scan, config_file, ext_proc, http2, kv_events, metrics_page, responses
from ...fuzz.seeds import CORPORA, SEEDS, kept

TARGETS: dict[str, Callable[[bytes], None]] = {
    "ext_proc": ext_proc.target,
    "responses": responses.target,
    "metrics_page": metrics_page.target,
    "config_file": config_file.target,
    "http2": http2.target,
    "body_scan": body_scan.target,
    "kv_events": kv_events.target,
}


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    seeds = list(SEEDS[name]())
    assert len(set(seeds)) > 10
    for seed in seeds:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_before(name: str) -> None:
    inputs = kept(name)
    assert inputs
    for one in inputs:
        TARGETS[name](one)


def test_what_is_kept_is_small_and_of_a_target() -> None:
    assert {path.stem for path in CORPORA.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPORA.iterdir()) < 100_000


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)


def test_a_target_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OverflowError

    monkeypatch.setattr(config_file, "parse_config", fail)
    with pytest.raises(OverflowError):
        config_file.target(b"\0x")
    monkeypatch.setattr(responses.ModelNames, "feed", lambda self, piece: piece[1:])
    with pytest.raises(AssertionError):
        responses.target(b'\0\2\1\2{"usage":{}}')
