"""What is asked of a Prometheus, and what its answers come to, whatever they are."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.replace.counters import in_flight_at_server, picker_counters, server_counters
from headrace.replace.plan import InvalidPlan, parse_plan
from headrace.replace.prometheus import Credentials, NoAnswer, queries, read_answer


def answer(*result: dict[str, Any], kind: str = "vector") -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": list(result)}}).encode()


def sample(name: str, value: object, *, pod: str = "a", **labels: str) -> dict[str, Any]:
    return {"metric": {"__name__": name, "pod": pod, "instance": "10.0.0.1:8000", **labels}, "value": [1.5, value]}


def test_the_queries_name_metrics_and_pods() -> None:
    counters, gauges = queries("serving", ["b-1", "a.1"], 'cluster="x"')
    for query in (counters, gauges):
        assert 'namespace="serving",pod=~"a\\\\.1|b\\\\-1",cluster="x"}' in query
    assert "vllm:time_to_first_token_seconds_bucket" in counters
    assert gauges.endswith("[2m]")


def test_samples_are_the_pods_pages() -> None:
    found = read_answer(
        answer(
            sample("inference_objective_request_total", "7", model_name="x"),
            sample("inference_objective_request_total", "3", model_name="y"),
            sample("inference_objective_request_error_total", "2", error_code="500"),
            sample("vllm:time_to_first_token_seconds_bucket", "1", pod="b", le="0.5"),
            sample("vllm:time_to_first_token_seconds_bucket", "4", pod="b", le="+Inf"),
            sample("vllm:time_to_first_token_seconds_bucket", "NaN", pod="b", le="1"),
        )
    )
    counted = picker_counters(found["a", "10.0.0.1:8000"])
    assert (counted.requests, counted.errors, counted.server_errors) == (10, 2, 2)
    ttft = server_counters(found["b", "10.0.0.1:8000"]).ttft
    assert ttft is not None and ttft.counts == (1, 3)


def test_a_pod_that_two_jobs_scrape_counts_once() -> None:
    name = "inference_objective_request_total"
    found = read_answer(answer(sample(name, "7", job="b"), sample(name, "8", job="a")))
    assert picker_counters(found["a", "10.0.0.1:8000"]).requests == 8


def test_of_a_range_the_most_counts() -> None:
    entry = sample("vllm:num_requests_running", "0")
    entry["values"] = [[1, "0"], [2, "5"], [3, "0"]]
    del entry["value"]
    assert in_flight_at_server(read_answer(answer(entry, kind="matrix"))["a", "10.0.0.1:8000"]) == 5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "no answer of the HTTP API v1: <html>"),
        (b"[]", "no answer"),
        (b'{"status": "error", "errorType": "bad_data", "error": "parse error"}', "bad_data: parse error"),
        (answer({"metric": {"__name__": "x"}, "value": [1, "1"]}), "no answer"),
        (answer({"metric": {"__name__": "x", "pod": "a"}, "values": []}), "no answer"),
    ],
)
def test_other_answers_are_named(body: bytes, message: str) -> None:
    with pytest.raises(NoAnswer, match=message):
        read_answer(body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(_JSON)
def test_no_answer_breaks_the_reader(result: object) -> None:
    for body in (result, {"status": "success", "data": result}, {"status": "success", "data": {"result": [result]}}):
        with contextlib.suppress(NoAnswer):
            read_answer(json.dumps(body).encode())


def test_a_url_is_a_url() -> None:
    with pytest.raises(InvalidPlan, match="prometheus_url: 'prometheus:9090': give a URL with http"):
        parse_plan({"old": "a", "new": "b", "prometheus_url": "prometheus:9090"})


@pytest.mark.parametrize(
    ("files", "header"),
    [
        ({"token": "abc\n"}, "Bearer abc"),
        ({"username": "a", "password": "b\n"}, "Basic YTpi"),
        ({"username": "a", "password": "b "}, "Basic YTpiIA=="),
        ({"token": "abc", "username": "a", "password": "b"}, "Bearer abc"),
    ],
)
def test_credentials_are_read_from_files_each_time(tmp_path: Path, files: dict[str, str], header: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    credentials = Credentials(tmp_path)
    assert credentials.headers() == {"authorization": header}
    if "token" in files:
        (tmp_path / "token").write_text("newer")
        assert credentials.headers() == {"authorization": "Bearer newer"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "none of the files token"),
        ({"username": "a"}, "both needed"),
        ({"token": "a", "ca.crt": "no certificate"}, "no certificate in it"),
    ],
)
def test_a_folder_without_credentials_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Credentials(tmp_path).check()
