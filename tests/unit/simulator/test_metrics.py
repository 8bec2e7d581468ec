"""The metrics page: the real server's names, types, labels and buckets, and values that follow the engine."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.simulator.engine import Engine, EngineSettings
from headrace.simulator.metrics import EngineMetrics, MetricsPage
from headrace.simulator.request import FinishReason, Sequence

from .workloads import PLAIN_COST, sequence

SETTINGS = EngineSettings(
    max_num_seqs=2, max_num_batched_tokens=64, num_gpu_blocks=101, block_size=4, max_loras=2, cost=PLAIN_COST
)
# What the real server says of its KV cache's inner layout means nothing here.
LAYOUT_ONLY = {"vllm:cache_config_info"}


class Page:
    """A parsed page."""

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.labels: dict[str, set[frozenset[str]]] = defaultdict(set)
        self.buckets: dict[str, set[str]] = defaultdict(set)
        self.values: dict[str, dict[frozenset[tuple[str, str]], float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            if not family.name.startswith("vllm:") or family.name.endswith("_created"):
                continue
            self.types[family.name] = family.type
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                self.labels[sample.name].add(frozenset(sample.labels))
                self.values[sample.name][frozenset(sample.labels.items())] = sample.value
                if sample.name.endswith("_bucket"):
                    self.buckets[sample.name].add(sample.labels["le"])

    def value(self, name: str, **labels: str) -> float:
        (found,) = [value for key, value in self.values[f"vllm:{name}"].items() if frozenset(labels.items()) <= key]
        return found


class Simulation:
    """An engine whose metrics are kept, on a virtual clock."""

    def __init__(self, *, lora_enabled: bool = True, settings: EngineSettings = SETTINGS) -> None:
        self.engine = Engine(settings)
        self.wall = 1000.0
        self.metrics = EngineMetrics(self.engine, "m", lora_enabled=lora_enabled, wall_clock=lambda: self.wall)
        self.page_source = MetricsPage(self.metrics)

    def add(self, *sequences: Sequence, at: float = 0.0) -> None:
        for one in sequences:
            self.engine.add(one, at)

    def steps(self, count: int | None = None) -> None:
        self.engine.step(0.0)
        while self.engine.due is not None and count != 0:
            self.wall += 1
            report = self.engine.step(self.engine.due)
            assert report is not None
            self.metrics.on_step(report)
            for one in report.generated:
                if one.finish_reason:
                    self.metrics.on_finished(one)
            count = None if count is None else count - 1

    def page(self) -> Page:
        return Page(self.page_source.render().decode())


@pytest.fixture
def real(repository: Path) -> Page:
    return Page((repository / "tests/data/vllm-0.32.0-metrics.txt").read_text())


def test_names_types_labels_and_buckets_are_the_real_servers(real: Page) -> None:
    simulation = Simulation()
    simulation.add(sequence([1] * 9, 3, "a"), sequence([1] * 9, 3))
    simulation.steps()
    ours = simulation.page()
    assert ours.types == real.types
    assert ours.buckets == real.buckets
    assert set(ours.labels) == set(real.labels)
    for name in set(real.labels) - LAYOUT_ONLY:
        assert ours.labels[name] == real.labels[name], name
    for name in LAYOUT_ONLY:
        (own,), (theirs,) = ours.labels[name], real.labels[name]
        assert own <= theirs


def test_label_values_are_the_real_servers(real: Page) -> None:
    ours = Simulation().page()
    for label in ("reason", "source", "finished_reason", "sleep_state"):
        for name, series in real.values.items():
            expected = {dict(key).get(label) for key in series}
            assert {dict(key).get(label) for key in ours.values[name]} == expected or expected == {None}, name


def test_counters_and_gauges_follow_the_engine() -> None:
    simulation = Simulation()
    prompt = list(range(12))
    simulation.add(sequence(prompt, 3), sequence([50] * 8, 9), sequence([60] * 4, 2))
    simulation.steps(2)
    page = simulation.page()
    assert page.value("num_requests_running") == 2
    assert page.value("num_requests_waiting") == 1
    assert page.value("num_requests_waiting_by_reason", reason="capacity") == 1
    # 12 + 1 and 8 + 1 tokens are being computed: 4 and 3 blocks of 100.
    assert page.value("kv_cache_usage_perc") == pytest.approx(0.07)
    simulation.steps()
    simulation.add(sequence(prompt, 1), at=simulation.engine.due or 0.0)
    simulation.steps()
    page = simulation.page()
    assert page.value("num_requests_running") == 0
    assert page.value("kv_cache_usage_perc") == 0
    assert page.value("prompt_tokens_total") == 12 + 8 + 4 + 12
    assert page.value("generation_tokens_total") == 3 + 9 + 2 + 1
    assert page.value("prefix_cache_queries_total") == 12 + 8 + 4 + 12
    assert page.value("prefix_cache_hits_total") == 8
    assert page.value("prompt_tokens_by_source_total", source="local_compute") == 28
    assert page.value("prompt_tokens_by_source_total", source="local_cache_hit") == 8
    assert page.value("prompt_tokens_cached_by_source_total", source="device") == 8
    assert page.value("request_success_total", finished_reason="length") == 4
    assert page.value("request_generation_tokens_sum") == 15
    assert page.value("request_prefill_kv_computed_tokens_sum") == 28
    assert page.value("iteration_tokens_total_sum") == 28 + 15
    assert page.value("request_generation_tokens_bucket", le="1.0") == 1, "a bound is part of its bucket"
    assert page.value("request_generation_tokens_bucket", le="2.0") == 2


def test_histograms_of_time_are_exact() -> None:
    simulation = Simulation(settings=replace(SETTINGS, max_num_seqs=1))
    simulation.add(sequence([1] * 9, 3), sequence([2] * 19, 1))
    simulation.steps()
    page = simulation.page()
    # 10 ms to the first token, two more of 1 ms; the second waits 12 ms and takes 20.
    assert page.value("time_to_first_token_seconds_sum") == pytest.approx(0.010 + 0.032)
    assert page.value("time_to_first_token_seconds_bucket", le="0.01") == 1
    assert page.value("time_to_first_token_seconds_bucket", le="0.04") == 2
    assert page.value("inter_token_latency_seconds_count") == 2
    assert page.value("inter_token_latency_seconds_sum") == pytest.approx(0.002)
    assert page.value("request_queue_time_seconds_sum") == pytest.approx(0.012)
    assert page.value("request_prefill_time_seconds_sum") == pytest.approx(0.030)
    assert page.value("request_decode_time_seconds_sum") == pytest.approx(0.002)
    assert page.value("request_inference_time_seconds_sum") == pytest.approx(0.032)
    assert page.value("e2e_request_latency_seconds_sum") == pytest.approx(0.012 + 0.032)
    assert page.value("request_time_per_output_token_seconds_count") == 1
    assert page.value("request_time_per_output_token_seconds_sum") == pytest.approx(0.001)


def test_preemptions_are_counted_once_and_do_not_count_the_prompt_twice() -> None:
    simulation = Simulation(settings=replace(SETTINGS, num_gpu_blocks=7))
    simulation.add(sequence(list(range(8)), 8), sequence(list(range(20, 28)), 8))
    simulation.steps()
    page = simulation.page()
    assert page.value("num_preemptions_total") == 1
    assert page.value("request_num_preemptions_sum") == 1
    assert page.value("prefix_cache_queries_total") == page.value("prompt_tokens_total") == 16
    assert page.value("generation_tokens_total") == 16


def test_an_aborted_request_counts_as_such() -> None:
    simulation = Simulation()
    one = sequence([1], 5)
    simulation.add(one)
    simulation.steps(1)
    simulation.engine.finish(one, FinishReason.ABORT, 1.0)
    simulation.metrics.on_finished(one)
    assert simulation.page().value("request_success_total", finished_reason="abort") == 1


def test_adapters_appear_with_a_time_and_never_disappear() -> None:
    simulation = Simulation()
    assert "vllm:lora_requests_info" not in simulation.page().values, "none before the first request"
    simulation.add(sequence([1], 2, "a"), sequence([2], 1, "b"))
    simulation.steps()
    series = simulation.page().values["vllm:lora_requests_info"]
    by_running = {dict(key)["running_lora_adapters"]: (dict(key), value) for key, value in series.items()}
    assert {name: value for name, (_, value) in by_running.items()} == {"a,b": 1001, "a": 1002, "": 1002}
    for labels, _ in by_running.values():
        assert labels["waiting_lora_adapters"] == labels["running_lora_adapters"]
        assert labels["max_lora"] == "2"


def test_without_lora_there_is_no_lora_series() -> None:
    simulation = Simulation(lora_enabled=False)
    simulation.add(sequence([1], 2))
    simulation.steps()
    assert "vllm:lora_requests_info" not in simulation.page().types


def test_cache_config_says_what_the_engine_has() -> None:
    page = Simulation().page()
    (labels,) = [dict(key) for key in page.values["vllm:cache_config_info"]]
    assert (labels["block_size"], labels["num_gpu_blocks"], labels["kv_cache_size_tokens"]) == ("4", "101", "404")
