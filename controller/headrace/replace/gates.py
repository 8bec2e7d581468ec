"""The verdict on a step: the new pool against the old over the same window, and against absolute limits. Pure.

A relative check fails when the new pool is worse by more than is tolerated and the difference is significant: p below
the plan's alpha. With few requests nothing is significant, with many everything is; so both are asked. An absolute
limit on errors fails when the measured rate is above it."""

from __future__ import annotations

from msgspec import Struct

from headrace.replace.counters import Counters, Histogram
from headrace.replace.plan import Plan
from headrace.replace.statistics import binomial_greater, fisher_greater, mann_whitney_greater

PASS, FAIL, INSUFFICIENT = "pass", "fail", "insufficient"

# Looking at a running window over and over finds chance events; only what is this improbable ends one early.
_EARLY_ALPHA = 1e-4
_NO_REFERENCE = "the old pool had no traffic to compare with"


class Check(Struct, frozen=True):
    """One line of a gate's table. `old` and `new` are rates (0..1) or seconds; None: not measured."""

    name: str
    old: float | None
    new: float | None
    limit: str
    p_value: float | None
    verdict: str
    detail: str = ""


class GateResult(Struct, frozen=True):
    """A gate's verdict. `reference` is whether the old pool was measured in an earlier window, for want of traffic."""

    percent: int
    seconds: float
    requests_old: float
    requests_new: float
    checks: tuple[Check, ...]
    verdict: str
    reference: bool = False
    at: float = 0.0

    @property
    def reason(self) -> str:
        """What failed, in words."""
        found = [check.detail for check in self.checks if check.verdict == self.verdict != PASS]
        return "; ".join(text for text in found if text)


def enough(plan: Plan, counted: Counters) -> bool:
    """Whether a window has as many requests as the plan's gates ask for, and as many latencies."""
    counts = {"errors": counted.requests, "ttft": _count(counted.ttft), "tpot": _count(counted.tpot)}
    return all(counts[gate] >= plan.min_sample for gate in plan.gates)


def judge(
    plan: Plan, percent: int, seconds: float, old: Counters, new: Counters, reference: Counters | None = None
) -> GateResult:
    """The verdict on a window. `reference` is the last window in which the old pool had traffic enough.

    INSUFFICIENT if the new pool had too few requests for a check, and nothing else failed."""
    lent = reference is not None and not enough(plan, old)
    against = reference if lent and reference is not None else old
    checks: list[Check] = []
    if "errors" in plan.gates:
        checks += [_errors(plan, against, new), _server_errors(plan, against, new)]
    if "ttft" in plan.gates:
        checks.append(_latency(plan, "TTFT", against.ttft, new.ttft, plan.max_ttft, plan.max_ttft_ratio))
    if "tpot" in plan.gates:
        checks.append(
            _latency(plan, "time per output token", against.tpot, new.tpot, plan.max_tpot, plan.max_tpot_ratio)
        )
    verdicts = {check.verdict for check in checks}
    verdict = FAIL if FAIL in verdicts else INSUFFICIENT if INSUFFICIENT in verdicts else PASS
    return GateResult(percent, seconds, old.requests, new.requests, tuple(checks), verdict, lent)


def hopeless(plan: Plan, new: Counters) -> str:
    """Why a window need not be waited out: server errors far beyond the absolute limit. "" if there is no reason."""
    if "errors" not in plan.gates or plan.max_error_rate <= 0 or new.server_errors < 3:
        return ""
    errors, requests = round(new.server_errors), round(new.requests)
    if binomial_greater(errors, requests, plan.max_error_rate) >= _EARLY_ALPHA:
        return ""
    return f"{errors} of {max(requests, errors)} requests to the new pool ended in server errors"


def not_taken(percent: int, old: Counters, new: Counters) -> str:
    """Why a window says nothing of a step: the gateway does not divide requests as the routes say. "" if it does.

    A gateway that was cut off from the API server goes on with weights of before. What it needs to take them is little
    of a window, so that less than three quarters of the share is no such moment, and must be no chance either."""
    total, share = round(old.requests + new.requests), percent / 100
    if total <= 0 or new.requests >= 0.75 * share * (old.requests + new.requests):
        return ""
    if binomial_greater(round(old.requests), total, max(0.01, 1 - share)) >= _EARLY_ALPHA:
        return ""
    return f"the gateway gives the new pool {new.requests:.0f} of {total} requests, which is no {percent} %"


def _errors(plan: Plan, old: Counters, new: Counters) -> Check:
    if new.requests < plan.min_sample:
        return _too_few("errors", f"{new.requests:.0f} requests", plan)
    limit = f"+{100 * plan.max_error_increase:g} points at p < {plan.alpha:g}"
    rate, before = _rate(new.errors, new), _rate(old.errors, old)
    if old.requests < plan.min_sample:
        return Check("errors", None, rate, limit, None, PASS, _NO_REFERENCE)
    p_value = fisher_greater(round(new.errors), round(new.requests), round(old.errors), round(old.requests))
    detail = f"errors: {100 * rate:.2f} % at the new pool, {100 * before:.2f} % at the old (p = {p_value:.2g})"
    failed = p_value < plan.alpha and rate - before > plan.max_error_increase
    return Check("errors", before, rate, limit, p_value, *_verdict(failed, detail))


def _server_errors(plan: Plan, old: Counters, new: Counters) -> Check:
    if new.requests < plan.min_sample:
        return _too_few("server errors", f"{new.requests:.0f} requests", plan)
    limit = f"{100 * plan.max_error_rate:g} %" if plan.max_error_rate else "none"
    rate, before = _rate(new.server_errors, new), _rate(old.server_errors, old) if old.requests else None
    detail = f"server errors: {100 * rate:.2f} % at the new pool, over the limit of {limit}"
    failed = 0 < plan.max_error_rate < rate
    return Check("server errors", before, rate, limit, None, *_verdict(failed, detail))


def _latency(plan: Plan, name: str, old: Histogram | None, new: Histogram | None, limit: float, ratio: float) -> Check:
    label = f"{name} p{100 * plan.quantile:g}"
    if new is None or new.count < plan.min_sample:
        return _too_few(label, f"{_count(new):.0f} observations", plan)
    allowed = [f"{limit:g} s"] if limit else []
    allowed += [f"{ratio:g} times the old at p < {plan.alpha:g}"] if ratio else []
    shown = ", ".join(allowed) or "none"
    value = new.quantile(plan.quantile) or 0.0
    before = old.quantile(plan.quantile) if old is not None and old.count >= plan.min_sample else None
    if limit and value > limit:
        detail = f"{label}: {value:.3f} s at the new pool, over the limit of {limit:g} s"
        return Check(label, before, value, shown, None, FAIL, detail)
    if old is None or before is None:
        return Check(label, None, value, shown, None, PASS, _NO_REFERENCE)
    p_value = mann_whitney_greater(new, old)
    detail = f"{label}: {value:.3f} s at the new pool, {before:.3f} s at the old (p = {p_value:.2g})"
    failed = bool(ratio) and p_value < plan.alpha and value > before * ratio
    return Check(label, before, value, shown, p_value, *_verdict(failed, detail))


def _verdict(failed: bool, detail: str) -> tuple[str, str]:
    return (FAIL, detail) if failed else (PASS, "")


def _too_few(name: str, found: str, plan: Plan) -> Check:
    detail = f"{name}: {found} at the new pool, {plan.min_sample} are needed"
    return Check(name, None, None, "", None, INSUFFICIENT, detail)


def _rate(errors: float, counted: Counters) -> float:
    return errors / max(counted.requests, errors, 1.0)


def _count(histogram: Histogram | None) -> float:
    return histogram.count if histogram is not None else 0.0


def table(result: GateResult) -> list[str]:
    """A gate's result as lines of equal columns."""
    rows = [("CHECK", "OLD", "NEW", "LIMIT", "P", "VERDICT")]
    for check in result.checks:
        rate = "error" in check.name
        rows.append(
            (
                check.name, _shown(check.old, rate), _shown(check.new, rate), check.limit or "-",
                "-" if check.p_value is None else f"{check.p_value:.3g}", check.verdict,
            )
        )  # fmt: skip
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = (
        f"{result.percent} % at the new pool: {result.verdict}, {result.requests_old:.0f} requests at the old and "
        f"{result.requests_new:.0f} at the new pool in {result.seconds:.0f} s"
    )
    return [head, *lines]


def _shown(value: float | None, rate: bool) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if rate else f"{1000 * value:.1f} ms"
