"""Which cluster a command asks that was not told: what was given goes before what is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.cli.pool.kubeconfig import choose

LOCAL = ".local/state/headrace/{}/kubeconfig/admin.conf"


def made(home: Path, *paths: str) -> Path:
    for path in paths:
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).touch()
    return home


@pytest.mark.parametrize(
    ("given", "context", "environment", "wanted", "is_told"),
    [
        ("mine", "", {"KUBECONFIG": "x"}, "mine", False),
        ("", "", {"KUBECONFIG": "x"}, None, False),
        ("", "", {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, None, False),
        ("", "", {}, LOCAL.format("headrace"), True),
        ("", "prod", {}, ".kube/config", False),
    ],
)
def test_the_order(
    tmp_path: Path, given: str, context: str, environment: dict[str, str], wanted: str | None, is_told: bool
) -> None:
    home = made(tmp_path, LOCAL.format("headrace"), LOCAL.format("a"), ".kube/config")
    path, note = choose(given, context, environment, home)
    assert path == (wanted if wanted in (None, "mine") else str(home / str(wanted)))
    assert bool(note) == is_told
    assert not is_told or str(path) in note


def test_what_is_there_alone_is_taken(tmp_path: Path) -> None:
    assert choose("", "", {}, tmp_path) == (None, "")
    assert choose("", "", {}, made(tmp_path / "k", ".kube/config"))[0] == str(tmp_path / "k/.kube/config")
    other = LOCAL.format("other")
    assert choose("", "", {}, made(tmp_path / "l", other))[0] == str(tmp_path / "l" / other)
