"""How long plugins take, under the reference picker's name (v1.5.0).

Of one decision in sixteen: looking at the clock and counting after each plugin costs about as much as a plugin does."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from headrace.serving.metrics import MetricSet, histogram

_BUCKETS = (0.000001, 0.000005, 0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.01, 0.1)
_ONE_IN = 16


class PluginDurations(MetricSet):
    """The histograms, and the stopwatch (a scheduling.profile.Stopwatch) of a decision that is measured."""

    _durations = histogram(
        "inference_extension_plugin_duration_seconds",
        f"What a plugin takes of a decision; of one decision in {_ONE_IN}.",
        *("extension_point", "plugin_type", "plugin_name"),
        buckets=_BUCKETS,
    ).by_series()

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(registry)
        self._clock = clock
        self._since = 0.0
        self._left = 1

    def of_next(self) -> PluginDurations | None:
        """The stopwatch for the next decision, started; None where it is not measured."""
        self._left -= 1
        if self._left:
            return None
        self._left = _ONE_IN
        self._since = self._clock()
        return self

    def lap(self, extension_point: str, plugin_type: str, plugin_name: str) -> None:
        """A plugin is done."""
        seconds = self._clock() - self._since
        self._durations[extension_point, plugin_type, plugin_name].observe(seconds)
        self._since = self._clock()
