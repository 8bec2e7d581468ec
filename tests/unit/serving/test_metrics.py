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
