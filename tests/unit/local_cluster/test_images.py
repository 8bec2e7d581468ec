"""What images are made from: the constraints that matter at run time, and keys that change when they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keys
import pytest
import requirements

CONSTRAINTS = """\
aiohttp==3.14.5 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via
    #   headrace (pyproject.toml)
    #   kubernetes
ansible==12.3.0 \\
    --hash=sha256:cc
    # via headrace (pyproject.toml)
yarl==1.2 ; sys_platform == 'linux' \\
    --hash=sha256:dd
    # via aiohttp
resolvelib==1.0 \\
    --hash=sha256:ee
    # via ansible
"""


def test_only_what_the_dependencies_lead_to_is_taken_with_its_hashes() -> None:
    assert requirements.runtime(["AioHTTP>=3.14,<4"], CONSTRAINTS) == (
        "aiohttp==3.14.5 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "yarl==1.2 ; sys_platform == 'linux' \\\n    --hash=sha256:dd\n"
    )


def test_a_dependency_that_is_not_pinned_is_named() -> None:
    with pytest.raises(KeyError, match="uvloop"):
        requirements.runtime(["uvloop>=0.21"], CONSTRAINTS)


def test_the_projects_own_constraints_hold_no_tool_of_the_tests(repository: Path) -> None:
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    found = requirements.runtime(requirements.of_image(project), (repository / "constraints.txt").read_text())
    names = {line.split("==")[0] for line in found.splitlines() if not line.startswith(" ")}
    assert {"aiohttp", "grpcio", "kubernetes", "opentelemetry-sdk", "opentelemetry-proto", "uvloop"} <= names
    assert not names & {"ansible", "ansible-core", "pytest", "mypy", "ruff", "molecule"}


@pytest.fixture
def request_(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "controller/headrace/__pycache__").mkdir(parents=True)
    for name in ("Containerfile", "pyproject.toml", "constraints.txt", "requirements-envoy.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "controller/headrace/__init__.py").write_text("")
    return {
        "source": str(tmp_path),
        "cache": str(tmp_path / "cache"),
        "components": {"pause": "1", "coredns": "1", "envoy-gateway": "1"},
        "base": "",
        "debian": "bookworm",
        "names": {
            "controller": "localhost/headrace/controller",
            "envoy": "docker.io/envoyproxy/envoy:distroless-v1.39.1",
        },
    }


def changed(request_: dict[str, Any], before: dict[str, str]) -> set[str]:
    return {name for name, key in keys.keys(request_).items() if before[name] != key}


def test_a_change_reaches_exactly_the_images_that_are_made_from_it(request_: dict[str, Any], tmp_path: Path) -> None:
    before = keys.keys(request_)
    (tmp_path / "controller/headrace/__pycache__/x.pyc").write_text("compiled")
    assert changed(request_, before) == set()
    (tmp_path / "controller/headrace/new.py").write_text("")
    assert changed(request_, before) == {"controller"}
    before = keys.keys(request_)
    (tmp_path / "constraints.txt").write_text("other")
    assert changed(request_, before) == {"dependencies", "controller"}
    before = keys.keys(request_)
    (tmp_path / "requirements-envoy.txt").write_text("other")
    assert changed(request_, before) == {"envoy"}
    before = keys.keys(request_)
    assert changed({**request_, "components": {**request_["components"], "envoy-gateway": "2"}}, before) == {
        "envoy-gateway"
    }
    assert changed({**request_, "debian": "trixie"}, before) == {"python", "envoy", "dependencies", "controller"}


def test_references_archives_and_bases(request_: dict[str, Any], tmp_path: Path) -> None:
    found = {image["image"]: image for image in keys.images(request_)}
    key = keys.keys(request_)["controller"]
    assert found["controller"]["name"] == f"localhost/headrace/controller:{key}"
    assert found["controller"]["base"] == found["dependencies"]["name"]
    assert found["envoy"]["name"] == "docker.io/envoyproxy/envoy:distroless-v1.39.1"
    assert found["envoy"]["base_archive"] == found["python"]["archive"]
    assert not found["envoy"]["present"]
    pulled = {
        image["image"]: image for image in keys.images({**request_, "base": "docker.io/library/python:3.11-slim"})
    }
    assert "python" not in pulled
    assert (pulled["envoy"]["base"], pulled["envoy"]["base_archive"]) == ("docker.io/library/python:3.11-slim", "")
