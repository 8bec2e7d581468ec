"""The Job of a replacement, as its template makes it, to the letter of the API; `test_replace_role` runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .apiserver import ApiServer
from .roles import render, validate

FOLDER = "/var/run/headrace/prometheus"
VARIABLES: dict[str, Any] = {
    "pool_replacement_pool": "before",
    "pool_replacement_new": "after",
    "pool_replacement_image": "example.com/headrace:1",
    "__pool_replacement_plan": {"prometheus_url": "https://prometheus.monitoring:9090"},
    "pool_replacement_namespace": "default",
    "__pool_replacement_run": "one",
    "__pool_replacement_routes": [{"kind": "HTTPRoute", "namespace": "default", "name": "r"}],
}


@pytest.mark.parametrize("secret", ["", "prometheus-reader"])
def test_the_job_is_valid_and_has_the_secret_that_it_is_given(api: ApiServer, tmp_path: Path, secret: str) -> None:
    variables = {**VARIABLES, "pool_replacement_prometheus_secret": secret}
    (job,) = render(tmp_path, "pool_replacement", "job.yaml.j2", variables)
    assert validate(api, [job]) == ""
    pod = job["spec"]["template"]["spec"]
    arguments = pod["containers"][0]["args"]
    assert arguments[:3] == ["pool", "replace", "--action=run"]
    assert (f"--prometheus-credentials={FOLDER}" in arguments) == bool(secret)
    assert [volume["secret"]["secretName"] for volume in pod.get("volumes", [])] == ([secret] if secret else [])
    mounts = [mount["mountPath"] for mount in pod["containers"][0].get("volumeMounts", [])]
    assert mounts == ([FOLDER] if secret else [])
