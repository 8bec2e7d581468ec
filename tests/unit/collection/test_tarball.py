"""The tarball holds what users need and nothing else, and what is installed of it works by its full names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from .conftest import Run

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))


def test_what_users_need_is_in_it(members: set[str]) -> None:
    for name in (
        "crds/inference.networking.k8s.io-v1/inferencepools.yaml",
        "crds/inference.networking.x-k8s.io-v1alpha2/inferencepools.yaml",
        "meta/runtime.yml",
        "meta/inventory_variables.yml",
        "requirements.txt",
        "bindep.txt",
        "LICENSE",
        "README.md",
        # What role container_images builds the controller's image from.
        "Containerfile",
        "pyproject.toml",
        "constraints.txt",
        "requirements-envoy.txt",
        "controller/headrace/cli/main.py",
        *(f"playbooks/{name}.yml" for name in PLAYBOOKS),
        *(f"roles/{name}/meta/argument_specs.yml" for name in ROLES),
        *(f"roles/{name}/README.md" for name in ROLES),
        *(f"docs/roles/{name}.md" for name in ROLES),
    ):
        assert name in members


def test_every_file_of_the_roles_and_plugins_is_in_it(members: set[str]) -> None:
    for folder in ("roles", "plugins", "crds", "playbooks", "controller/headrace"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in members


def test_what_is_for_working_on_it_is_not(members: set[str]) -> None:
    outside = {"tests", "inventories", "molecule", "benchmarks", "build", "ansible.cfg", "Makefile"}
    for name in members:
        top = name.split("/")[0]
        assert top not in outside, name
        assert not top.startswith("."), name
        assert not name.endswith((".tar.gz", ".pyc")), name
        assert "_cache/" not in name, name


def test_every_role_is_documented_by_ansible_doc(installed: Run) -> None:
    done = installed("ansible-doc", "-t", "role", "--json", *(f"headrace.inference.{name}" for name in ROLES))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for name in ROLES:
        spec = yaml.safe_load((ROOT / "roles" / name / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]
        entry = told[f"headrace.inference.{name}"]["entry_points"]["main"]
        assert entry["short_description"] == spec["short_description"]
        assert set(entry.get("options", {})) == set(spec.get("options", {}))


def test_every_role_is_rendered_as_text(installed: Run) -> None:
    done = installed("ansible-doc", "-t", "role", *(f"headrace.inference.{name}" for name in ROLES))
    assert done.returncode == 0, done.stderr
    for name in ROLES:
        assert f"headrace.inference.{name}" in done.stdout


def test_the_plugins_are_documented_by_ansible_doc(installed: Run) -> None:
    names = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py") if not path.stem.startswith("_"))
    done = installed("ansible-doc", "-t", "module", "--json", *(f"headrace.inference.{name}" for name in names))
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {f"headrace.inference.{name}" for name in names}


def test_the_preflight_runs_in_an_empty_folder_without_an_inventory(installed: Run) -> None:
    done = installed("ansible-playbook", "headrace.inference.preflight")
    assert done.returncode != 0, "nothing says where to, and nothing was refused"
    assert "headrace_context: empty" in done.stdout
    assert "headrace_controller_image: empty" in done.stdout


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_every_playbook_has_its_parts(installed: Run, name: str) -> None:
    done = installed("ansible-playbook", "--syntax-check", f"headrace.inference.{name}")
    assert done.returncode == 0, done.stdout + done.stderr
