"""Metrics that a class declares, and labels with bounds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from headrace.serving.metrics import MAX_LABEL_CHARACTERS, OTHER, CappedLabels, MetricSet, counter, gauge, histogram


class Some(MetricSet):
    """Three kinds."""

    asked = counter("asked_total", "Asked.", "who")
    level = gauge("level", "Level.")
    seconds = histogram("seconds", "Time.", "who", buckets=(1.0, 2.0))


def test_every_instance_has_metrics_of_its_own() -> None:
    registry = CollectorRegistry()
    first, second = Some(), Some(registry)
    assert second.registry is registry
    first.asked.labels("a").inc()
    second.asked.labels("a").inc(2)
    first.level.set(3)
    first.seconds.labels("a").observe(1.5)
    assert first.registry.get_sample_value("asked_total", {"who": "a"}) == 1
    assert registry.get_sample_value("asked_total", {"who": "a"}) == 2
    assert first.registry.get_sample_value("level") == 3
    assert first.registry.get_sample_value("seconds_bucket", {"who": "a", "le": "2.0"}) == 1


def test_labels_are_bounded_in_number() -> None:
    label = CappedLabels(3)
    assert [label(value)[0] for value in ("a", "b", "a", "c", "d", "b")] == ["a", "b", "a", "c", OTHER, "b"]


def test_several_labels_are_bounded_together() -> None:
    labels = CappedLabels(2)
    assert [labels(*pair) for pair in ("ab", "ac", "bc", "ab")] == [("a", "b"), ("a", "c"), (OTHER, OTHER), ("a", "b")]


def test_labels_are_bounded_in_length() -> None:
    label = CappedLabels()
    longest = "x" * MAX_LABEL_CHARACTERS
    assert label(longest, "a") == (longest, "a")
    for number in range(2000):
        assert label(f"{longest}{number}", "a") == (longest, "a")
    assert label("b", "b") == ("b", "b")


def test_inventions_do_not_take_the_places_of_what_is_real() -> None:
    label = CappedLabels(10, unconfirmed=3)
    label.confirm("real", "real")
    seen = [label(f"invented-{number}", "x")[0] for number in range(5)]
    assert seen == ["invented-0", "invented-1", "invented-2", OTHER, OTHER]
    # One of them turns out to be real, as do others that were not seen.
    label.confirm("invented-0", "x")
    assert label("invented-3", "x") == ("invented-3", "x")
    for number in range(20):
        label.confirm(f"model-{number}", "x" * 100)
    kept = [number for number in range(20) if label(f"model-{number}", "x" * 100)[0] != OTHER]
    assert kept == [0, 1, 2, 3, 4]
    assert label("real", "real") == ("real", "real")
    assert label("model-0", "x" * 100) == ("model-0", "x" * MAX_LABEL_CHARACTERS)


def test_where_nothing_is_confirmed_all_places_are_for_all() -> None:
    label = CappedLabels(5, unconfirmed=1)
    assert [label(str(number))[0] for number in range(6)] == ["0", "1", "2", "3", "4", OTHER]
