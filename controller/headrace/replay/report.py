"""The report of a replay: a table for a terminal, JSON, and one HTML page. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from headrace.replay.figures import COMPARED, Figures, Ratio, Runs, fewer_servers, mean, ratio

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 300, 64, 560, 12, 30
_COLOURS = (
    "#4269d0",
    "#efb118",
    "#ff725c",
    "#6cc5b0",
    "#3ca951",
    "#ff8ab7",
    "#a463f2",
    "#97bbf5",
    "#9c6b4e",
    "#9498a0",
)
_STYLE = """
:root{color-scheme:light dark;--ink:#222;--soft:#666;--line:#ccc}
@media (prefers-color-scheme:dark){:root{--ink:#ddd;--soft:#999;--line:#444}}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:var(--ink)}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.15rem .7rem;text-align:right}
td:first-child,th:first-child{text-align:left}tr{border-bottom:1px solid var(--line)}
.soft,text{color:var(--soft);fill:var(--soft)}text{font-size:12px}.axis{stroke:var(--line)}svg{max-width:100%}
"""


@dataclass(frozen=True)
class Report:
    """Runs, and what they were of: `title` names trace, load and fleet for people. Each policy is compared to the first
    one with the same number of servers."""

    title: str
    target: float
    runs: Runs

    @property
    def policies(self) -> list[str]:
        """In the order of the runs, as fleets are."""
        return list(dict.fromkeys(policy for policy, _ in self.runs))

    @property
    def fleets(self) -> list[int]:
        """Numbers of servers."""
        return list(dict.fromkeys(servers for _, servers in self.runs))

    @property
    def seeds(self) -> int:
        """How many runs there are of each policy and fleet."""
        return len(next(iter(self.runs.values())))

    @property
    def base(self) -> str:
        """The policy that the others are compared to."""
        return self.policies[0]

    def ratios(self, policy: str, servers: int) -> dict[str, Ratio]:
        """A policy's ratios to the first one, by the names of COMPARED."""
        of, to = self.runs[policy, servers], self.runs[self.base, servers]
        return {name: ratio(of, to, field) for name, field in COMPARED.items()}

    def sentences(self) -> list[str]:
        """What a policy saves in servers."""
        found = []
        for policy in self.policies[1:]:
            fewer = fewer_servers(self.runs, self.base, policy)
            if fewer:
                enough, most = fewer
                found.append(
                    f"{shown(policy)} gives with {enough} servers the service of {shown(self.base)} with {most}: "
                    f"{most - enough} fewer."
                )
        return found


def shown(policy: str) -> str:
    """A policy's name for people: a file without its folders."""
    return Path(policy).name


def as_json(report: Report) -> dict[str, Any]:
    """Everything, for programs. Times in seconds; an interval that is not known has null for its ends."""
    return {
        "title": report.title,
        "base": report.base,
        "seeds": report.seeds,
        "targetSeconds": report.target,
        "runs": [
            {"policy": policy, "servers": servers, "seed": seed, **asdict(run)}
            for (policy, servers), runs in report.runs.items()
            for seed, run in enumerate(runs)
        ],
        "ratios": [
            {"policy": policy, "servers": servers, "figure": name, **_ends(found)}
            for policy, servers in report.runs
            for name, found in report.ratios(policy, servers).items()
        ],
        "fewerServers": report.sentences(),
    }


def _ends(found: Ratio) -> dict[str, float | None]:
    known = found.high < math.inf
    return {"mean": found.mean, "low": found.low if known else None, "high": found.high if known else None}


def as_text(report: Report) -> str:
    """Tables for a terminal."""
    lines = [report.title]
    for servers in report.fleets:
        lines += [
            "",
            f"{servers} simulated servers: means over {report.seeds} seeds, in seconds; in brackets, to {report.base}",
        ]
        lines.append(
            f"{'policy':24}" + "".join(f"{name:>15}" for name in COMPARED) + "  cached balance goodput refused"
        )
        for policy in report.policies:
            lines.append(f"{shown(policy)[:23]:24}" + "".join(_cells(report, policy, servers)))
    return "\n".join([*lines, "", *report.sentences()]).rstrip() + "\n"


def _cells(report: Report, policy: str, servers: int) -> Iterator[str]:
    runs = report.runs[policy, servers]
    for name, found in report.ratios(policy, servers).items():
        yield f"{mean(runs, COMPARED[name]):8.3f} ({found.mean:.2f})".rjust(15)
    yield f"{mean(runs, 'cached'):8.0%} {mean(runs, 'balance'):7.2f} {mean(runs, 'goodput'):7.2f} "
    yield f"{sum(run.refused for run in runs):7}"


def as_html(report: Report) -> str:
    """The report as one page, which needs nothing else."""
    parts = [f"<h1>{escape(report.title)}</h1>"]
    parts += [f"<p><b>{escape(sentence)}</b></p>" for sentence in report.sentences()]
    parts.append(
        "<p class=soft>The picker is the real one, from the Director down; servers and time are simulated. Each policy "
        f"got the same requests at the same times, {report.seeds} times with other seeds. In brackets: the ratio to "
        f"{escape(shown(report.base))} and its 95 % interval over these pairs; below 1 is better.</p>"
    )
    if len(report.fleets) > 1:
        lines = {
            policy: [(float(servers), mean(report.runs[policy, servers], "p90")) for servers in report.fleets]
            for policy in report.policies
        }
        parts += ["<h2>90th percentile of the time to the first token, by servers</h2>", _chart(lines, "", "s")]
    for servers in report.fleets:
        parts.append(f"<h2>{servers} servers</h2>")
        curves = {policy: _distribution(report.runs[policy, servers]) for policy in report.policies}
        parts += ["<p>Time to the first token by percentile</p>", _chart(curves, "%", "s"), _table(report, servers)]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(report.title)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _distribution(runs: Sequence[Figures]) -> list[tuple[float, float]]:
    return [(float(percent), math.fsum(run.first_token[percent] for run in runs) / len(runs)) for percent in range(100)]


def _table(report: Report, servers: int) -> str:
    rows = []
    for policy in report.policies:
        runs = report.runs[policy, servers]
        cells = [f"<tr><td>{escape(shown(policy))}"]
        for name, found in report.ratios(policy, servers).items():
            interval = f", {found.low:.2f}–{found.high:.2f}" if found.high < math.inf else ""
            cells.append(f"<td>{mean(runs, COMPARED[name]):.3f} s <span class=soft>({found.mean:.2f}{interval})</span>")
        cells.append(f"<td>{mean(runs, 'cached'):.0%}<td>{mean(runs, 'balance'):.2f}<td>{mean(runs, 'goodput'):.2f}/s")
        rows.append("".join([*cells, f"<td>{sum(run.refused for run in runs)}"]))
    heads = "".join(
        f"<th>{name}" for name in (*COMPARED, "cached", "balance", f"within {report.target:g} s", "refused")
    )
    return f"<table><tr><th>Policy{heads}{''.join(rows)}</table>"


def _chart(lines: dict[str, list[tuple[float, float]]], x_unit: str, y_unit: str) -> str:
    """Lines with their names at the right. The vertical axis is logarithmic: tails are as readable as medians."""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [max(y, 1e-4) for points in lines.values() for _, y in points]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    high = max(high, low + 1)
    x_low, x_span = min(xs), max(max(xs) - min(xs), 1e-9)

    def x_of(x: float) -> float:
        return _LEFT + (x - x_low) / x_span * (_RIGHT - _LEFT)

    def y_of(y: float) -> float:
        share = (math.log10(max(y, 1e-4)) - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    drawn = []
    for power in range(low, high + 1):
        y = y_of(10.0**power)
        drawn.append(f"<line class=axis x1={_LEFT} x2={_RIGHT} y1={y:.1f} y2={y:.1f} />")
        drawn.append(f"<text x={_LEFT - 8} y={y + 4:.1f} text-anchor=end>{10.0**power:g} {y_unit}</text>")
    drawn += [
        f"<text x={x_of(x):.1f} y={_HEIGHT - 8} text-anchor=middle>{x:.0f} {x_unit}</text>"
        for x in sorted({x_low, x_low + x_span / 2, x_low + x_span})
    ]
    ends = sorted((y_of(points[-1][1]), name) for name, points in lines.items())
    place = dict(zip([name for _, name in ends], _apart([y for y, _ in ends]), strict=True))
    for number, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = "M" + "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in points)
        drawn.append(
            f"<path d='{path}' fill=none stroke='{colour}' stroke-width=2><title>{escape(shown(name))}</title></path>"
        )
        drawn.append(f"<text x={_RIGHT + 8} y={place[name] + 4:.1f} style='fill:{colour}'>{escape(shown(name))}</text>")
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img>{''.join(drawn)}</svg>"


def _apart(places: Sequence[float]) -> list[float]:
    """Labels' places from the top down, moved where they would lie on each other."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + 14) if found else place)
    over = max(0.0, found[-1] - (_HEIGHT - 4)) if found else 0.0
    return [place - over for place in found]
