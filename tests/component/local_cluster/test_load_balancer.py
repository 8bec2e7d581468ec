"""The load balancer's own tests: which Service gets which address, and which is published. They are Go, as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
def test_addresses_are_given_kept_and_taken_back(repository: Path) -> None:
    done = subprocess.run(
        ["go", "test", "-count=1", "-trimpath", "./cmd/local-load-balancer"],
        cwd=repository / "roles/local_cluster/files/kubeall",
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "no test files" not in done.stdout
