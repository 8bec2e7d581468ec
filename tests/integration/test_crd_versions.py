"""Role inference_crds on clusters that have newer CRDs than it brings, against a real API server.

The policy in tests/data is the Gateway API's own, of release 1.6.1, with the two changes that its RELEASE.md asks of a
release 1.7.0. The CRDs are those of 1.6.1 that say they are of 1.7.0."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..hang import HANG_SECONDS
from .apiserver import ApiServer, running
from .roles import Run, run_role

GATEWAY_API = "gateway.networking.k8s.io"
POOLS = "inferencepools.inference.networking.k8s.io"


def labelled(repository: Path, version: str, target: Path) -> Path:
    """A file of the Gateway API's CRDs that are of the standard channel and of this release."""
    content = (repository / "build/bin/crds/gateway-api/gatewayapi-crds.yaml").read_text()
    content = content.replace(f"{GATEWAY_API}/channel: experimental", f"{GATEWAY_API}/channel: standard")
    target.write_text(
        content.replace(f"{GATEWAY_API}/bundle-version: v1.6.1", f"{GATEWAY_API}/bundle-version: {version}")
    )
    return target


@pytest.fixture(scope="module")
def pinned(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the role's default names: the standard channel of 1.6.1."""
    return labelled(repository, "v1.6.1", tmp_path_factory.mktemp("pinned") / "standard-install.yaml")


@pytest.fixture(scope="module")
def cluster(repository: Path, pinned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One with the Gateway API 1.7.0, its policy in force, and a newer InferencePool."""
    directory = tmp_path_factory.mktemp("cluster")
    with running(repository / "build/bin", directory) as server:
        newer = labelled(repository, "v1.7.0", directory / "newer.yaml")
        done = server.kubectl("apply", "--server-side", "-f", str(newer))
        assert done.returncode == 0, done.stderr
        pools = yaml.safe_load((repository / "crds/inference.networking.k8s.io-v1/inferencepools.yaml").read_text())
        pools["metadata"]["annotations"]["inference.networking.k8s.io/bundle-version"] = "v1.7.0"
        server.apply(pools)
        server.wait_established()
        server.apply(
            *yaml.safe_load_all((repository / "tests/data/gateway-api-1.7-safe-upgrades.yaml").read_text()),
        )
        # The API server takes a moment to put a policy into force.
        deadline = time.monotonic() + HANG_SECONDS
        while (done := install(server, pinned)).returncode == 0:
            assert time.monotonic() < deadline, "the policy denies nothing"
            time.sleep(0.1)
        assert "ValidatingAdmissionPolicy 'safe-upgrades.gateway.networking.k8s.io'" in done.stderr
        yield server


def install(server: ApiServer, crds: Path) -> Any:
    """A dry run of what the role did before it looked at versions."""
    return server.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", str(crds))


def run(cluster: ApiServer, folder: Path, source: Path | str, *arguments: str, **more: Any) -> Run:
    given = {"inference_crds_gateway_api_source": str(source), "inference_crds_envoy_gateway_source": "", **more}
    return run_role(cluster, folder, "inference_crds", given, *arguments)


def releases(cluster: ApiServer) -> dict[str, str]:
    """CRD -> the release that it says it is of; "" for none."""
    found = {}
    for one in cluster.get("crds")["items"]:
        annotations = one["metadata"].get("annotations", {})
        said = [value for key, value in annotations.items() if key.endswith("/bundle-version")]
        found[one["metadata"]["name"]] = said[0] if said else ""
    return found


def test_newer_crds_stay_and_what_is_missing_is_installed(cluster: ApiServer, pinned: Path, tmp_path: Path) -> None:
    before = releases(cluster)
    assert {name: one for name, one in before.items() if one != "v1.7.0"} == {}
    # Three CRDs of pools are missing: one task changes something, and nothing without --check.
    planned = run(cluster, tmp_path, pinned, "--check", "--diff")
    assert (planned.returncode, planned.changed) == (0, 1), planned.output[-6000:]
    assert releases(cluster) == before

    done = run(cluster, tmp_path, pinned)
    assert (done.returncode, done.changed) == (0, 1), done.output[-6000:]
    after = releases(cluster)
    assert {name: one for name, one in after.items() if name in before} == before
    assert set(after) - set(before) == {
        "inferencepools.inference.networking.x-k8s.io",
        "inferenceobjectives.inference.networking.x-k8s.io",
        "inferencemodelrewrites.inference.networking.x-k8s.io",
    }
    for arguments in (("--check", "--diff"), ()):
        again = run(cluster, tmp_path, pinned, *arguments)
        assert (again.returncode, again.changed) == (0, 0), again.output[-6000:]
    assert releases(cluster) == after


def test_the_experimental_channel_is_not_put_over_the_standard_one(
    cluster: ApiServer, repository: Path, tmp_path: Path
) -> None:
    """A newer one as well: the policy refuses it."""
    content = labelled(repository, "v1.8.0", tmp_path / "experimental.yaml").read_text()
    experimental = tmp_path / "experimental.yaml"
    experimental.write_text(content.replace(f"{GATEWAY_API}/channel: standard", f"{GATEWAY_API}/channel: experimental"))
    assert install(cluster, experimental).returncode != 0
    done = run(cluster, tmp_path, experimental)
    assert done.returncode == 0, done.output[-6000:]
    assert releases(cluster)[f"httproutes.{GATEWAY_API}"] == "v1.7.0"


def test_a_newer_release_is_installed(cluster: ApiServer, repository: Path, tmp_path: Path) -> None:
    newer = labelled(repository, "v1.7.1", tmp_path / "newer.yaml")
    # What kubectl has applied before is kubectl's.
    done = run(cluster, tmp_path, newer, inference_crds_force_conflicts=True)
    assert (done.returncode, done.changed) == (0, 1), done.output[-6000:]
    assert releases(cluster)[f"httproutes.{GATEWAY_API}"] == "v1.7.1"
    again = run(cluster, tmp_path, newer, "--check", inference_crds_force_conflicts=True)
    assert (again.returncode, again.changed) == (0, 0), again.output[-6000:]


def test_a_kept_release_must_serve_what_is_needed(cluster: ApiServer, pinned: Path, tmp_path: Path) -> None:
    """The last of the module: it takes a version away."""
    name = f"referencegrants.{GATEWAY_API}"
    versions = [one["name"] for one in cluster.get("crd", name)["spec"]["versions"]]
    patch = f'[{{"op": "replace", "path": "/spec/versions/{versions.index("v1beta1")}/served", "value": false}}]'
    done = cluster.kubectl("patch", "crd", name, "--type=json", "-p", patch)
    assert done.returncode == 0, done.stderr
    before = releases(cluster)
    refused = run(cluster, tmp_path, pinned)
    assert refused.returncode != 0
    assert f"{name} with version v1beta1" in refused.said
    assert f"inference_crds_gateway_api_source: {pinned} has v1.6.1" in refused.said
    assert "Fix:" in refused.said
    assert releases(cluster) == before
