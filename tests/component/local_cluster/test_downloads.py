"""Programs from a file server on loopback, laid out as the projects' releases are: digests are checked."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ...serving import serving

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
CACHE = Path("~/.cache/headrace/binaries").expanduser()


def program(name: str) -> bytes:
    return f"#!/bin/sh\necho {name}\n".encode()


def archive(path: Path, member: str, content: bytes) -> str:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size, info.mode = len(content), 0o755
        tar.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A file server with the releases; the address it has."""
    files = tmp_path / "files"
    (files / "k8s").mkdir(parents=True)
    for name in PROGRAMS:
        (files / "k8s" / name).write_bytes(program(name))
        (files / "k8s" / f"{name}.sha256").write_text(hashlib.sha256(program(name)).hexdigest())
    digest = archive(files / "etcd-v3.7.0-linux-amd64.tar.gz", "etcd-v3.7.0-linux-amd64/etcd", program("etcd"))
    other = hashlib.sha256(b"other").hexdigest()
    (files / "SHA256SUMS").write_text(
        f"{other}  etcd-v3.7.0-darwin-amd64.zip\n{digest}  etcd-v3.7.0-linux-amd64.tar.gz\n"
    )
    digest = archive(files / "coredns_1.14.7_linux_amd64.tgz", "coredns", program("coredns"))
    (files / "coredns_1.14.7_linux_amd64.tgz.sha256").write_text(f"{digest}  coredns_1.14.7_linux_amd64.tgz\n")
    digest = archive(files / "helm-v3.22.0-linux-amd64.tar.gz", "linux-amd64/helm", program("helm"))
    (files / "helm-v3.22.0-linux-amd64.tar.gz.sha256sum").write_text(f"{digest}  helm-v3.22.0-linux-amd64.tar.gz\n")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(files))
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    with serving(listening):
        yield f"http://127.0.0.1:{listening.server_address[1]}"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of its own. What is always built (Envoy Gateway, the load balancer, pause) is taken from the user's."""
    folder = tmp_path / "cache"
    (folder / "binaries").mkdir(parents=True)
    for name in ("load-balancer", "envoy-gateway", "pause"):
        for found in CACHE.glob(f"{name}-????????????"):
            (folder / "binaries" / found.name).symlink_to(found)
    return folder


def binaries(repository: Path, cache: Path, server: str, **more: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "local_cluster_binary_source": "download",
        "local_cluster_cache_dir": str(cache),
        "local_cluster_binary_link": str(cache / "link"),
        "local_cluster_install_packages": False,
        "local_cluster_kubernetes_url": f"{server}/k8s",
        "local_cluster_etcd_url": f"{server}/etcd-v3.7.0-linux-amd64.tar.gz",
        "local_cluster_etcd_sha256": f"{server}/SHA256SUMS",
        "local_cluster_coredns_url": f"{server}/coredns_1.14.7_linux_amd64.tgz",
        "local_cluster_helm_url": f"{server}/helm-v3.22.0-linux-amd64.tar.gz",
        **more,
    }
    playbook = repository / ".venv/bin/ansible-playbook"
    return subprocess.run(
        [playbook, "playbooks/binaries.yml", "-i", "inventories/local", "-e", json.dumps(variables)],
        cwd=repository, env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"}, text=True, timeout=900,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_every_program_is_downloaded_once_and_lies_with_the_others(repository: Path, cache: Path, server: str) -> None:
    done = binaries(repository, cache, server)
    assert done.returncode == 0, done.stdout
    for name in (*PROGRAMS, "etcd", "coredns", "helm"):
        found = cache / "link" / name
        assert found.read_bytes() == program(name)
        assert os.access(found, os.X_OK)
    assert (cache / "link" / "local-load-balancer").exists()
    again = binaries(repository, cache, server)
    assert again.returncode == 0 and "changed=0" in again.stdout, again.stdout


def test_another_digest_is_refused_and_nothing_is_kept(repository: Path, cache: Path, server: str) -> None:
    wrong = hashlib.sha256(b"another").hexdigest()
    done = binaries(repository, cache, server, local_cluster_coredns_sha256=wrong)
    assert done.returncode != 0
    assert "local_cluster_*_sha256" in done.stdout
    assert not list((cache / "binaries").glob("coredns-????????????"))
    assert not (cache / "link").exists()
