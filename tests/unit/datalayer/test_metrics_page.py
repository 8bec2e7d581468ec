"""Metrics pages: a real vLLM's, and broken ones."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.decode import decode
from headrace.datalayer.engines import ENGINES, EngineParameters, Series, engine_of, parse_series
from headrace.datalayer.exposition import CostlyPage, PageLimits
from headrace.datalayer.metrics_page import MetricsReader, NoMetrics, ServerMetrics, Work, _label_pairs, parse_page

VLLM = ENGINES["vllm"]
# The page of a vLLM 0.32.0 with four LoRA adapters (two at a time), 8 requests running and 16 waiting.
REAL_PAGE = (Path(__file__).parent / "data" / "vllm-0.32.0-under-load.txt").read_bytes()


def test_a_real_page() -> None:
    assert parse_page(REAL_PAGE, VLLM) == ServerMetrics(
        waiting=16,
        running=8,
        kv_usage=0.0004883110541414881,
        # Of seven label sets the newest.
        running_adapters=frozenset({"a2", "a3"}),
        waiting_adapters=frozenset({"a2", "a3"}),
        max_adapters=2,
        known_adapters=frozenset({"a1", "a2", "a3"}),
        models=frozenset({"tiny"}),
        block_size=128,
        num_blocks=16384,
        progress=3803.0,
        first_tokens=36.0,
        work=Work(steps=251.0, prompt=1942.0, written=1833.0, first_tokens=36.0, waited=36.361109018325806),
    )


def page(*lines: str) -> bytes:
    return "\n".join(lines).encode() + b"\n"


WAITING = 'vllm:num_requests_waiting{engine="0",model_name="m"}'
RUNNING = 'vllm:num_requests_running{engine="0",model_name="m"}'
USAGE = 'vllm:kv_cache_usage_perc{engine="0",model_name="m"}'


@pytest.mark.parametrize("broken", ["NaN", "+Inf", "-Inf", "-1", "many", "1e999", "0x10"])
def test_values_that_make_no_sense_count_as_missing(broken: str) -> None:
    metrics = parse_page(page(f"{WAITING} {broken}", f"{RUNNING} 3"), VLLM)
    assert (metrics.waiting, metrics.running, metrics.kv_usage) == (None, 3, None)


def test_odd_values() -> None:
    metrics = parse_page(page(f"{WAITING} 1e9", f"{RUNNING} 1e300", f"{USAGE} 7"), VLLM)
    assert (metrics.waiting, metrics.running, metrics.kv_usage) == (10**9, 10**9, 1.0)


def test_a_duplicate_counts_once_and_ranks_are_added_up() -> None:
    metrics = parse_page(
        page(
            f"{WAITING} 5",
            f"{WAITING} 7",
            'vllm:num_requests_waiting{engine="1",model_name="m"} 3 1795480361000',
            'vllm:kv_cache_usage_perc{engine="0"} 0.2',
            'vllm:kv_cache_usage_perc{engine="1"} 0.4',
        ),
        VLLM,
    )
    assert metrics.waiting == 10
    assert metrics.kv_usage == pytest.approx(0.3)


def test_names_that_only_begin_alike_are_others() -> None:
    with pytest.raises(NoMetrics, match="vllm"):
        parse_page(page("vllm:num_requests_waiting_by_reason 4", "# vllm:num_requests_running 2", " x 1"), VLLM)


def test_the_old_name_of_cache_usage() -> None:
    assert parse_page(page("vllm:gpu_cache_usage_perc 0.5"), VLLM).kv_usage == 0.5
    both = page("vllm:gpu_cache_usage_perc 0.5", "vllm:kv_cache_usage_perc 0.6")
    assert parse_page(both, VLLM).kv_usage == 0.6


def test_adapter_lists_are_sets_with_blanks_stripped() -> None:
    series = 'vllm:lora_requests_info{max_lora="4",running_lora_adapters=" b, a",waiting_lora_adapters=", c ,"} 1.0'
    metrics = parse_page(page(f"{RUNNING} 1", series), VLLM)
    assert metrics.running_adapters == {"a", "b"}
    assert metrics.waiting_adapters == {"c"}
    assert metrics.max_adapters == 4


def test_label_values_may_hold_anything() -> None:
    name = r"we\"ird}\\name\n{x"
    metrics = parse_page(page(f'vllm:num_requests_running{{model_name="{name}",engine="0"}} 2'), VLLM)
    assert metrics.running == 2
    assert metrics.models == {'we"ird}\\name\n{x'}


@pytest.mark.parametrize(
    ("engine", "lines"),
    [
        ("sglang", ["sglang:num_queue_reqs 2", "sglang:num_running_reqs 3", "sglang:token_usage 0.5"]),
        (
            "triton-tensorrt-llm",
            [
                'nv_trt_llm_request_metrics{model="m",request_type="waiting",version="1"} 2',
                'nv_trt_llm_request_metrics{model="m",request_type="scheduled",version="1"} 3',
                'nv_trt_llm_request_metrics{model="m",request_type="max",version="1"} 99',
                'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="m"} 0.5',
                'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="m"} 900',
                'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="m"} 64',
            ],
        ),
        (
            "trtllm-serve",
            [
                "trtllm_num_requests_waiting 2",
                "trtllm_num_requests_running 3",
                "trtllm_kv_cache_utilization 0.5",
                "trtllm_kv_cache_tokens_per_block 64",
                "trtllm_kv_cache_max_blocks 900",
            ],
        ),
    ],
)
def test_other_engines(engine: str, lines: list[str]) -> None:
    lines = [*lines, 'sglang:cache_config_info{page_size="64",num_pages="900"} 1']
    metrics = parse_page(page(*lines), engine_of({"inference.networking.k8s.io/engine-type": engine}))
    assert (metrics.waiting, metrics.running, metrics.kv_usage) == (2, 3, 0.5)
    assert (metrics.block_size, metrics.num_blocks) == (64, 900)


def test_a_server_that_says_little_is_read_as_far_as_it_goes() -> None:
    triton = engine_of({"llm-d.ai/engine-type": "triton"})
    metrics = parse_page(page('nv_inference_pending_request_count{model="a"} 2', "nv_inference_exec_count 3"), triton)
    assert (metrics.waiting, metrics.running, metrics.kv_usage, metrics.block_size) == (2, 3, None, 0)


def test_metrics_that_the_configuration_names() -> None:
    parameters = {
        "engineLabelKey": "engine",
        "defaultEngine": "mine",
        "engineConfigs": [
            {
                "name": "mine",
                "queuedRequestsSpec": 'q{kind="waiting", model=m}',
                "kvUsageSpec": "usage",
                "loraSpec": "adapters",
                "cacheInfoSpec": "cache",
                "cacheBlockSizeLabelName": "tokens",
                "cacheNumBlocksLabelName": "blocks",
                "customMetrics": [{"attributeKey": "heat", "metricSpec": "gpu_heat{gpu=0}"}],
            },
            {"name": "vllm", "queuedRequestsSpec": "v_q"},
        ],
    }
    engines = decode(parameters, EngineParameters, "").engines()
    lines = [
        'q{model="m",kind="waiting"} 4',
        'q{model="m",kind="running"} 9',
        "usage 0.25",
        'adapters{running_lora_adapters="a",max_lora="2"} 1',
        'cache{tokens="32",blocks="7"} 1',
        'gpu_heat{gpu="0"} 71.5',
        'gpu_heat{gpu="1"} 99',
    ]
    metrics = parse_page(page(*lines), engines.of({}))
    assert (metrics.waiting, metrics.running, metrics.kv_usage) == (4, None, 0.25)
    assert (metrics.block_size, metrics.num_blocks) == (32, 7)
    assert (metrics.running_adapters, metrics.max_adapters) == ({"a"}, 2)
    assert metrics.custom == {"heat": 71.5}
    # Known engines stay, unless they are named too; and Pods say by the configured label which they run.
    assert engines.of({"engine": "sglang"}).name == "sglang"
    assert parse_page(page("v_q 3"), engines.of({"engine": "vllm"})).waiting == 3
    assert engines.of({"llm-d.ai/engine-type": "sglang"}).name == "mine"


@pytest.mark.parametrize(
    ("text", "series"),
    [
        ("a:b_c", Series("a:b_c")),
        (" a{} ", Series("a")),
        ('a{x="1",y=two, z = "three" }', Series("a", (("x", "1"), ("y", "two"), ("z", "three")))),
        ("a{x}", None),
        ("a{x=1", None),
        ("9a", None),
        ("a b", None),
        ('a{x="1}', None),
    ],
)
def test_how_a_metric_is_named(text: str, series: Series | None) -> None:
    assert parse_series(text) == series


@given(st.text(max_size=40))
def test_any_name_of_a_metric_is_one_or_none(text: str) -> None:
    assert parse_series(text) is None or isinstance(parse_series(text), Series)


def test_the_engine_label() -> None:
    assert engine_of({}).name == "vllm"
    assert engine_of({"llm-d.ai/engine-type": "sglang"}).name == "sglang"
    assert engine_of({"llm-d.ai/engine-type": "unheard-of"}).name == "vllm"


LINE = st.one_of(
    st.text(max_size=40),
    st.tuples(st.sampled_from([WAITING, RUNNING, USAGE, "vllm:lora_requests_info{"]), st.text(max_size=20)).map(
        " ".join
    ),
)


@given(st.lists(LINE, max_size=10))
def test_any_text_is_metrics_or_none(lines: list[str]) -> None:
    try:
        metrics = parse_page("\n".join(lines).encode("utf-8", "replace"), VLLM)
    except NoMetrics:
        return
    assert metrics.kv_usage is None or 0.0 <= metrics.kv_usage <= 1.0
    assert metrics.waiting is None or metrics.waiting >= 0


@given(st.integers(0, len(REAL_PAGE)))
def test_a_page_cut_anywhere_is_read_as_far_as_it_goes(length: int) -> None:
    try:
        parse_page(REAL_PAGE[:length], VLLM)
    except NoMetrics:
        assert length < REAL_PAGE.index(b"\nvllm:kv_cache_usage_perc{")


def adapters_page(rows: int) -> bytes:
    """The page of a server that has served so many mixes of 1,000 adapters, the newest in the middle."""
    rng = Random(1)
    names = [f"tenant-{number}/sql.v{number % 7}-lora" for number in range(1000)]
    lines = [f"{RUNNING} 1", f"{WAITING} 0", f"{USAGE} 0.1"]
    for row in range(rows):
        mix = ",".join(rng.sample(names, 8)) if row != rows // 2 else "newest,tenant-1/sql.v1-lora"
        labels = f'max_lora="8",running_lora_adapters="{mix}",waiting_lora_adapters="w{row}"'
        lines.append(f"vllm:lora_requests_info{{{labels}}} {1.7e9 + (row if row != rows // 2 else 1e6)}")
    return page(*lines)


def test_thousands_of_old_label_sets_of_adapters_are_read_and_dropped() -> None:
    rows = 6_000
    content = adapters_page(rows)
    assert len(content) > 1 << 20
    kept = 0
    before = _label_pairs.cache_info().currsize
    reader = MetricsReader(VLLM, PageLimits(kept_bytes=256 << 10, cpu_seconds=60.0))
    for at in range(0, len(content), 1 << 16):
        reader.feed(content[at : at + (1 << 16)])
        kept = max(kept, len(reader._rows.get("vllm:lora_requests_info", {})))
    metrics = reader.end()
    assert metrics.running_adapters == {"newest", "tenant-1/sql.v1-lora"}
    assert metrics.waiting_adapters == {f"w{rows // 2}"}
    assert (metrics.max_adapters, len(metrics.known_adapters), kept) == (8, 1001, 0)
    assert _label_pairs.cache_info().currsize <= before + 3


def test_names_of_adapters_are_capped() -> None:
    lines = [f'vllm:lora_requests_info{{running_lora_adapters="a{n},{"x" * 300}"}} {n}' for n in range(5000)]
    metrics = parse_page(page(f"{RUNNING} 1", *lines), VLLM)
    assert metrics.running_adapters == {"a4999"}
    assert len(metrics.known_adapters) == 2049


def test_of_one_long_list_of_adapters_as_many_are_known_as_there_may_be() -> None:
    names = ",".join(f"a{number}" for number in range(6000))
    metrics = parse_page(page(f"{RUNNING} 1", f'vllm:lora_requests_info{{running_lora_adapters="{names}"}} 1'), VLLM)
    assert len(metrics.known_adapters) == 2048
    older = page(f"{RUNNING} 1", f'vllm:lora_requests_info{{running_lora_adapters="{names}"}} 1')
    newer = b'vllm:lora_requests_info{running_lora_adapters="b"} 2\n'
    assert len(parse_page(older + newer, VLLM).known_adapters) == 2048 + 1


def test_names_of_models_are_capped() -> None:
    lines = [f'vllm:num_requests_running{{model_name="m{number}"}} 1' for number in range(1000)]
    assert len(parse_page(page(*lines), VLLM).models) == 256
    assert parse_page(page(f'vllm:num_requests_running{{model_name="{"x" * 257}"}} 1'), VLLM).models == frozenset()


def test_a_page_of_endless_series_is_refused() -> None:
    lines = [f'vllm:num_requests_running{{model_name="{n}"}} 1' for n in range(10_000)]
    with pytest.raises(CostlyPage, match="wanted series"):
        parse_page(page(*lines), VLLM)


def test_long_labels_are_not_kept() -> None:
    before = _label_pairs.cache_info().currsize
    parse_page(b'vllm:num_requests_running{model_name="%s"} 3\n' % (b"m" * 5000), VLLM)
    assert _label_pairs.cache_info().currsize == before
