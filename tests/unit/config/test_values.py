"""Durations and quantities: the same in flags and files."""

import pytest

from headrace.config.values import duration, quantity


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50ms", 0.05), ("2s", 2.0), ("1m30s", 90.0), ("0", 0.0), ("1.5h", 5400.0), ("0s", 0.0), ("500us", 0.0005),
        ("500µs", 0.0005), ("10ns", 1e-8), ("87840h", 316_224_000.0),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "5 s", "-1s", "s", "1s2", "1d", "٣s", "1e3s", "1s" * 1000])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="1m30s"):
        duration(text)


def test_a_duration_of_more_than_ten_years() -> None:
    with pytest.raises(ValueError, match="ten years"):
        duration("87841h")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0), ("5000", 5000), ("1k", 1000), ("500M", 500_000_000), ("1Gi", 1 << 30), ("1.5Ki", 1536),
        ("64000m", 64), ("0m", 0), ("0.0", 0), ("2.3k", 2300), ("0.001k", 1),
        ("1e3", 1000), ("1E3", 1000), ("2E", 2 * 10**18), (str(1 << 62), 1 << 62),
    ],
)  # fmt: skip
def test_quantities(text: str, number: int) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "k", "1 k", "-1", "1kb", "0x10", "٣", "1٣k", "1" * 65])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="500M"):
        quantity(text)


@pytest.mark.parametrize("text", [str((1 << 62) + 1), "1e99", "5E", "1" * 60])
def test_a_quantity_that_nothing_has(text: str) -> None:
    with pytest.raises(ValueError, match=str(1 << 62)):
        quantity(text)


@pytest.mark.parametrize("text", ["64m", "0.5", "1m", "64500m", "1.1Ki", "0.0001k"])
def test_a_quantity_that_is_not_whole(text: str) -> None:
    with pytest.raises(ValueError, match="M or Mi"):
        quantity(text)


@pytest.mark.parametrize(("text", "number"), [("2500m", 2), ("1.1Ki", 1126), ("64000m", 64), ("0m", 0)])
def test_a_quantity_may_be_rounded_down(text: str, number: int) -> None:
    assert quantity(text, rounded=True) == number


@pytest.mark.parametrize("text", ["64m", "0.5", "999m"])
def test_what_is_over_0_never_becomes_0(text: str) -> None:
    with pytest.raises(ValueError, match="M or Mi"):
        quantity(text, rounded=True)
