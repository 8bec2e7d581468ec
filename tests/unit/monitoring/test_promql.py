"""What the tests of rules and dashboard rest on."""

from __future__ import annotations

import pytest

from .promql import metrics


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("up == 0", {"up"}),
        ('sum by (a, b) (rate(requests_total{x=~"y.*"}[5m])) > 0', {"requests_total"}),
        ("histogram_quantile(0.95, sum by (le) (rate(vllm:ttft_bucket[$__rate_interval])))", {"vllm:ttft_bucket"}),
        ('sum(a{x="b(c)"}) / ignoring (code) group_left sum(d) and e', {"a", "d", "e"}),
        ("sum(a) by (pod) + on (pod) group_right (x) b offset 5m", {"a", "b"}),
        ("1e3 * a > bool 2", {"a"}),
    ],
)
def test_metrics_are_told_from_the_rest(expression: str, named: set[str]) -> None:
    assert metrics(expression) == named
