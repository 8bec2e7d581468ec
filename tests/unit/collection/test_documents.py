"""Pages and changelog are made of what they tell of: a change of one without the other fails here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

BIN = Path(sys.executable).parent


def test_the_roles_pages_are_what_the_argument_specs_say(repository: Path) -> None:
    command = [sys.executable, str(repository / "docs/role_pages.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_plugins_page_is_what_the_registry_says(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "docs", tmp_path / "docs")
    command = [sys.executable, str(tmp_path / "docs/plugin_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "docs/plugins.md"
    page.write_text(page.read_text().replace("queueSlack` `8`", "queueSlack` `9`"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "make docs" in done.stderr) == (1, True)


def test_a_page_that_says_something_else_is_named(repository: Path, tmp_path: Path) -> None:
    for name in ("docs", "roles"):
        shutil.copytree(repository / name, tmp_path / name)
    page = tmp_path / "docs/roles/inference_pool.md"
    page.write_text(page.read_text().replace("default", "defalt"))
    (tmp_path / "docs/roles/gone.md").touch()
    command = [sys.executable, str(tmp_path / "docs/role_pages.py")]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "docs/roles/inference_pool.md" in done.stderr
    assert "docs/roles/gone.md" in done.stderr
    assert "make docs" in done.stderr
    subprocess.run(command, check=True)
    assert subprocess.run([*command, "--check"]).returncode == 0


def changelog(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # It calls ansible-doc by that name.
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [str(BIN / "antsibull-changelog"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_changelog_is_what_the_fragments_say(repository: Path, tmp_path: Path) -> None:
    for name in ("galaxy.yml", "CHANGELOG.md"):
        shutil.copy(repository / name, tmp_path)
    for name in ("changelogs", "plugins", "roles", "meta"):
        shutil.copytree(repository / name, tmp_path / name)
    assert changelog(tmp_path, "lint").returncode == 0
    done = changelog(tmp_path, "release", "--update-existing", "--reload-plugins")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "CHANGELOG.md").read_text() == (repository / "CHANGELOG.md").read_text(), "Fix: make changelog"


def test_a_fragment_that_is_none_is_refused(repository: Path, tmp_path: Path) -> None:
    shutil.copy(repository / "galaxy.yml", tmp_path)
    shutil.copytree(repository / "changelogs", tmp_path / "changelogs")
    (tmp_path / "changelogs/fragments/wrong.yml").write_text("---\nbug_fixes: [x]\n")
    assert changelog(tmp_path, "lint").returncode != 0


def test_the_execution_environment_is_one(repository: Path, tmp_path: Path) -> None:
    """ansible-builder reads it, and writes a context that holds the collection, its requirements and Helm."""
    for name in ("execution-environment.yml", "requirements.txt", "bindep.txt"):
        shutil.copy(repository / name, tmp_path)
    version = yaml.safe_load((repository / "galaxy.yml").read_text())["version"]
    tarball = f"headrace-inference-{version}.tar.gz"
    (tmp_path / tarball).write_text("built by ansible-galaxy")
    done = subprocess.run(
        [str(BIN / "ansible-builder"), "create", "--output-filename", "Containerfile"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    context = tmp_path / "context"
    assert (context / "_build" / tarball).exists()
    assert "helm" in (context / "Containerfile").read_text()
    collections = yaml.safe_load((context / "_build/requirements.yml").read_text())["collections"]
    assert {"kubernetes.core", "community.crypto", tarball} == {one["name"] for one in collections}


def test_the_three_lists_of_required_collections_agree(repository: Path) -> None:
    """galaxy.yml, collections/requirements.yml and the execution environment ask for the same."""
    galaxy = yaml.safe_load((repository / "galaxy.yml").read_text())["dependencies"]
    listed = yaml.safe_load((repository / "collections/requirements.yml").read_text())["collections"]
    environment = yaml.safe_load((repository / "execution-environment.yml").read_text())
    built = [one for one in environment["dependencies"]["galaxy"]["collections"] if one.get("type") != "file"]
    assert galaxy == {one["name"]: one["version"] for one in listed} == {one["name"]: one["version"] for one in built}


def test_requirements_are_those_of_the_package(repository: Path) -> None:
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = [line for line in (repository / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert set(lines) <= set(project)


def test_no_rule_of_ansible_lint_is_skipped_without_a_reason(repository: Path) -> None:
    """A rule for all files has its reason in the line above; for one line there is no exception."""
    lines = (repository / ".config/ansible-lint.yml").read_text().splitlines()
    at = lines.index("skip_list:")
    skipped = [number for number, line in enumerate(lines) if number > at and line.strip().startswith("- ")]
    assert skipped
    assert all(lines[number - 1].strip().startswith("# ") for number in skipped)
    for folder in ("roles", "playbooks", "molecule", "inventories"):
        for path in (repository / folder).rglob("*.yml"):
            assert "# noqa" not in path.read_text(), path
