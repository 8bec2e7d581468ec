"""Prometheus as the gates' source: the newest samples of a pool's Pods, in place of their own metrics pages.

What a Pod's page would say is asked for by metric name and Pod, so that the same counts go through the same gates.
A sample is as old as the time between two scrapes at most: windows are late by that much, and should have several.
Source: Prometheus HTTP API v1, instant queries (https://prometheus.io/docs/prometheus/latest/querying/api/)."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import math
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from headrace.protocol import http
from headrace.replace.counters import COUNTERS, GAUGES, Rows
from headrace.serving.http_client import HttpClient, HttpError

_SECONDS = 10.0
_MOST_BYTES = 16 << 20
# A gauge may be zero by chance when it is scraped: it counts with the most that it was for so long.
_IDLE_RANGE = "2m"
# (Pod, instance): a Pod of several servers has several.
Source = tuple[str, str]


class NoAnswer(Exception):  # noqa: N818
    """Prometheus does not answer, or not with what was asked for; the message says what it said."""


def queries(namespace: str, pods: Iterable[str], match: str) -> tuple[str, ...]:
    """The instant queries for the newest counts of some Pods, and for what was in flight there of late.

    `match` are further label matchers, as PromQL writes them: `cluster="a"`."""
    names = "|".join(re.escape(pod).replace("\\", "\\\\") for pod in sorted(pods))
    labels = f'namespace="{namespace}",pod=~"{names}"{f",{match}" if match else ""}'
    counters = f'{{__name__=~"{"|".join(COUNTERS)}",{labels}}}'
    return (counters, f'{{__name__=~"{"|".join(GAUGES)}",{labels}}}[{_IDLE_RANGE}]')


def read_answer(body: bytes) -> dict[Source, Rows]:
    """The samples of an instant query's answer, by (Pod, instance); of a range the greatest. Raises NoAnswer.

    A Pod that several jobs scrape counts once: with the samples of the job that comes first by name."""
    try:
        answer = json.loads(body)
        if answer["status"] != "success":
            raise NoAnswer(f"{answer.get('errorType')}: {answer.get('error')}")
        samples = [_sample(entry) for entry in answer["data"]["result"]]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise NoAnswer(f"no answer of the HTTP API v1: {body[:200].decode('utf-8', 'replace')}") from None
    jobs: dict[Source, str] = {}
    for labels, _ in samples:
        source, job = _source(labels), labels.get("job", "")
        jobs[source] = min(jobs.get(source, job), job)
    found: dict[Source, Rows] = {}
    for labels, value in samples:
        source = _source(labels)
        if labels.get("job", "") == jobs[source] and math.isfinite(value) and value >= 0:
            found.setdefault(source, {}).setdefault(labels["__name__"], []).append((labels, value))
    return found


def _sample(entry: Mapping[str, Any]) -> tuple[dict[str, str], float]:
    labels = {str(name): str(value) for name, value in entry["metric"].items()}
    if "__name__" not in labels or "pod" not in labels:
        raise KeyError("pod")
    values = [entry["value"]] if "value" in entry else entry["values"]
    return labels, max(float(text) for _, text in values)


def _source(labels: Mapping[str, str]) -> Source:
    return labels["pod"], labels.get("instance", "")


class Credentials(Struct, frozen=True):
    """What a Prometheus wants to be asked with: files of a folder, as a Secret is mounted.

    `token`, else `username` and `password`; `ca.crt` where no public authority has signed its certificate. Each is read
    when it is needed, for a kubelet replaces them."""

    folder: Path

    def check(self) -> None:
        """Whether there is anything of use. Raises OSError, ValueError."""
        names = {path.name for path in self.folder.iterdir()}
        if not names & {"token", "username", "ca.crt"}:
            raise ValueError("none of the files token, username, password and ca.crt is there")
        if ("username" in names) != ("password" in names):
            raise ValueError("username and password are both needed, in a file each")
        self.context()

    def headers(self) -> dict[str, str]:
        """The request's headers. Raises OSError, ValueError."""
        if (token := self.folder / "token").exists():
            return {http.AUTHORIZATION: f"Bearer {_line(token)}"}
        if not (self.folder / "username").exists():
            return {}
        username, password = _line(self.folder / "username"), _line(self.folder / "password")
        both = base64.b64encode(f"{username}:{password}".encode()).decode()
        return {http.AUTHORIZATION: f"Basic {both}"}

    def context(self) -> ssl.SSLContext | bool:
        """Whom to trust; True for the public authorities. Raises OSError, ValueError."""
        authority = self.folder / "ca.crt"
        return _trusting(authority, authority.stat().st_mtime_ns) if authority.exists() else True


def _line(path: Path) -> str:
    return path.read_text(encoding="utf-8").rstrip("\r\n")


@functools.lru_cache(maxsize=1)
def _trusting(authority: Path, _: int) -> ssl.SSLContext:
    """The same one until the file changes: connections are kept by it."""
    try:
        return ssl.create_default_context(cafile=authority)
    except ssl.SSLError as error:
        raise ValueError(f"{authority}: no certificate in it ({error.reason or error})") from None


@dataclass(eq=False)
class Prometheus:
    """A Prometheus by its URL, or anything that has its HTTP API."""

    http_client: HttpClient
    url: str
    match: str = ""
    credentials: Credentials | None = None

    async def rows(self, namespace: str, pods: Iterable[str]) -> dict[Source, Rows]:
        """The newest samples of some Pods. Raises NoAnswer."""
        wanted = sorted(set(pods))
        if not wanted:
            return {}
        answers = await asyncio.gather(*(self._ask(query) for query in queries(namespace, wanted, self.match)))
        found: dict[Source, Rows] = {}
        for answer in answers:
            for source, rows in answer.items():
                found.setdefault(source, {}).update(rows)
        return found

    async def _ask(self, query: str) -> dict[Source, Rows]:
        url = f"{self.url.rstrip('/')}/api/v1/query"
        try:
            headers = self.credentials.headers() if self.credentials else {}
            trusted = self.credentials.context() if self.credentials else True
            status, body = await self.http_client.read(
                *("POST", url),
                max_bytes=_MOST_BYTES,
                seconds=_SECONDS,
                verify=trusted,
                headers=headers,
                data={"query": query},
            )
        except (HttpError, OSError, ValueError) as error:
            raise NoAnswer(f"{url}: {error or type(error).__name__}") from None
        if status in (401, 403):
            raise NoAnswer(f"{url}: {status}: give credentials that may read (--prometheus-credentials)")
        try:
            return read_answer(body)
        except NoAnswer as error:
            raise NoAnswer(f"{url}: {error}") from None
