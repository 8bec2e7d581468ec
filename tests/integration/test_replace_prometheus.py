"""Gates that measure with a real Prometheus, which scrapes the pools' pages; none of them is read by the command."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.replace.prometheus import Credentials

from ..certificates import Authority
from ..hang import HANG_SECONDS
from ..ports import free_port
from .replacement import Stage, replaced, simple

pytestmark = pytest.mark.slow

# "open sesame", as bcrypt: what its file of web settings wants.
PASSWORD = "open sesame"
HASHED = "$2b$04$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy"
PROMETHEUS = Path("~/.cache/headrace/tools/prometheus").expanduser()


@contextmanager
def scraping(stage: Stage, *, secret: Path | None = None) -> Iterator[str]:
    """A Prometheus that scrapes both pools every second, with the labels that its operator gives.

    With a folder for a secret it is asked over TLS, with a name and a password; the folder gets what that takes."""
    assert PROMETHEUS.exists(), f"{PROMETHEUS} is missing: run `make tools`"
    targets = [
        {
            "targets": [f"{served.host}:{served.port}"],
            "labels": {"namespace": stage.namespace, "pod": f"{stage.name}-{which}-{part}", "cluster": "one"},
        }
        for which, served in (("old", stage.old), ("new", stage.new))
        for part in ("server", "picker")
    ]
    config = stage.directory / "prometheus.yml"
    scrape = {"job_name": "pools", "static_configs": targets}
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={stage.directory}/tsdb",
        f"--web.listen-address={address}", "--log.level=warn",
    ]  # fmt: skip
    url, opener = f"http://{address}", urllib.request.build_opener()
    if secret is not None:
        command.append(f"--web.config.file={_protected(stage.directory, secret)}")
        url, trusted = f"https://{address}", ssl.create_default_context(cafile=secret / "ca.crt")
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trusted))
        opener.addheaders = [("Authorization", Credentials(secret).headers()["authorization"])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while not _scraped(url, opener):
            assert process.poll() is None, "Prometheus has ended"
            assert time.monotonic() < deadline, "Prometheus scrapes nothing"
            time.sleep(0.5)
        yield url
    finally:
        process.kill()
        process.wait()


def _protected(directory: Path, secret: Path) -> Path:
    """Prometheus's file of web settings, and in `secret` what a client needs."""
    authority = Authority("prometheus")
    served = authority.issue("127.0.0.1").write(directory / "served")
    secret.mkdir()
    (secret / "ca.crt").write_bytes(authority.certificate)
    (secret / "username").write_text("headrace")
    (secret / "password").write_text(PASSWORD)
    settings = {
        "tls_server_config": {"cert_file": str(served / "tls.crt"), "key_file": str(served / "tls.key")},
        "basic_auth_users": {"headrace": HASHED},
    }
    (directory / "web.yml").write_text(json.dumps(settings))
    return directory / "web.yml"


def _scraped(url: str, opener: urllib.request.OpenerDirector) -> bool:
    """Whether every target has been scraped."""
    try:
        with opener.open(f"{url}/api/v1/query?query=sum(up)", timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
    except (OSError, urllib.error.URLError, ValueError):
        return False
    return bool(result) and float(result[0]["value"][1]) == 4


def test_a_whole_replacement_is_measured_with_prometheus(stage: Stage) -> None:
    before = simple(stage)
    with scraping(stage) as url:
        plan = stage.plan(
            steps=[50, 100], interval=6, gate_timeout=600, drain_timeout=1, prometheus_url=url,
            prometheus_match='cluster="one"',
        )  # fmt: skip
        # The API server here has no nodes to reach Pods through: pages could not be read this way.
        code, output = stage.run(plan, "--read-via", "proxy")
    assert code == 0, output
    assert stage.specs() == replaced(stage, before)
    for gate in stage.kept()["history"]:
        assert gate["verdict"] == "pass"
        assert gate["requests_new"] >= 20
        ttft = next(check for check in gate["checks"] if check["name"] == "TTFT p90")
        assert 0.02 < ttft["new"] < 0.25, "the stage's answers take about 50 ms"


def test_errors_that_prometheus_tells_of_take_the_new_pool_back(stage: Stage) -> None:
    before = simple(stage)
    stage.new.behaviour.errors = 0.5
    with scraping(stage) as url:
        code, output = stage.run(
            stage.plan(interval=10, gate_timeout=600), "--prometheus-url", url, "--read-via", "proxy"
        )
    assert code == 3, output
    assert "server errors" in stage.kept()["reason"]
    assert stage.specs() == before


def test_a_prometheus_that_asks_who_is_asking(stage: Stage) -> None:
    before = simple(stage)
    secret = stage.directory / "secret"
    with scraping(stage, secret=secret) as url:
        (secret / "password").write_text("wrong")
        plan = stage.plan(steps=[100], interval=1, gate_timeout=5, prometheus_url=url)
        code, output = stage.run(plan, "--prometheus-credentials", str(secret))
        assert code == 3, output
        assert "401: give credentials that may read" in output
        (secret / "password").write_text(PASSWORD)
        plan = stage.plan(steps=[100], interval=5, gate_timeout=600, drain_timeout=1, prometheus_url=url)
        code, output = stage.run(plan, "--read-via", "proxy", "--prometheus-credentials", str(secret), run="two")
    assert code == 0, output
    assert stage.specs() == replaced(stage, before)
    assert PASSWORD not in output


def test_a_prometheus_that_does_not_answer_lets_nothing_pass(stage: Stage) -> None:
    before = simple(stage)
    url = f"http://127.0.0.1:{free_port()}"
    code, output = stage.run(stage.plan(interval=1, gate_timeout=5, prometheus_url=url))
    assert code == 3, output
    assert "Prometheus cannot be asked" in output
    assert "0 requests at the new pool, 20 are needed" in stage.kept()["reason"]
    assert stage.specs() == before
