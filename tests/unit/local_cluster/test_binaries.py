"""The cache of programs: a component lies where its recipe says, and all lie side by side in one folder of links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from local_cluster import binaries


@pytest.fixture
def component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "sources" / "kubeall").mkdir(parents=True)
    (tmp_path / "sources" / "kubeall" / "main.go").write_text("package main")
    (tmp_path / "sources" / "build.sh").write_text("go build")
    monkeypatch.setattr(binaries, "SOURCES", tmp_path / "sources")
    return {"name": "kubernetes", "values": ["v1"], "files": ["build.sh", "kubeall"]}


def test_every_part_of_the_recipe_is_in_the_key(component: dict[str, Any], tmp_path: Path) -> None:
    keys = {binaries.key(component, "go1")}
    keys.add(binaries.key(component, "go2"))
    keys.add(binaries.key({**component, "values": ["v2"]}, "go1"))
    (tmp_path / "sources" / "kubeall" / "main.go").write_text("package main // changed")
    keys.add(binaries.key(component, "go1"))
    (tmp_path / "sources" / "kubeall" / "main.go").rename(tmp_path / "sources" / "kubeall" / "other.go")
    keys.add(binaries.key(component, "go1"))
    assert len(keys) == 5
    assert all(len(key) == 12 for key in keys)


def test_what_is_downloaded_does_not_depend_on_the_toolchain(component: dict[str, Any]) -> None:
    downloaded = {**component, "files": []}
    assert binaries.key(downloaded, "go1") == binaries.key(downloaded, "")


def test_components_are_joined_once(component: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    located = binaries.located([component], cache, "go1")
    assert not located[0]["present"]
    folder = Path(located[0]["folder"])
    folder.mkdir(parents=True)
    (folder / "kubelet").write_text("program")
    assert binaries.located([component], cache, "go1")[0]["present"]
    assert binaries.join(located, cache, check=True) and not (cache / "bin").exists()
    assert binaries.join(located, cache, check=False)
    assert (binaries.joined_folder(located, cache) / "kubelet").read_text() == "program"
    assert binaries.join(located, cache, check=False) == []
