"""The interpreter that Ansible's modules share in tests runs a program as a Python of its own would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = {
    "streams": "import sys; print('out'); print('err', file=sys.stderr)",
    "status": "raise SystemExit(7)",
    "message": "raise SystemExit('no')",
    "error": "import yaml\n1 / 0",
    "place": "import os; print(os.getcwd(), os.environ['ASKED'], os.umask(0))",
    "after": "import atexit; atexit.register(print, 'last')",
    "packages": "import kubernetes, ansible.module_utils.basic as basic; print(kubernetes.__version__, basic.__name__)",
}
SCRIPT = """
import json, os, subprocess, sys
programs = json.load(sys.stdin)
def run(python, arguments=(), text=""):
    done = subprocess.run(
        [python, *arguments], input=text, capture_output=True, text=True, env={**os.environ, "ASKED": "1"}
    )
    return done.returncode, done.stdout, done.stderr.strip().rpartition("\\n")[2]
warm = os.environ["HEADRACE_WARM_PYTHON"]
found = {name: (run(warm, text=text), run(sys.executable, text=text)) for name, text in programs.items()}
for name, arguments in {"path": ["AnsiballZ_one.py", "a b"], "option": ["-c", "import sys; print(sys.argv)"]}.items():
    found[name] = (run(warm, arguments), run(sys.executable, arguments))
print(json.dumps(found))
"""


def warm(folder: Path, repository: Path, *command: str, text: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.warm", *command],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(repository)}, input=text, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_programs_run_as_in_a_python_of_their_own(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "AnsiballZ_one.py").write_text("import sys; print(sys.argv, __name__)")
    found = json.loads(warm(tmp_path, repository, sys.executable, "-c", SCRIPT, text=json.dumps(PROGRAMS)))
    assert len(found) == len(PROGRAMS) + 2
    for name, (shared, own) in found.items():
        assert shared == own, name


def test_ansible_finds_it(tmp_path: Path, repository: Path) -> None:
    play = [
        {"hosts": "localhost", "gather_facts": False, "tasks": [{"debug": {"msg": "{{ ansible_playbook_python }}"}}]}
    ]
    (tmp_path / "play.yml").write_text(json.dumps(play))
    said = warm(tmp_path, repository, str(Path(sys.executable).parent / "ansible-playbook"), "play.yml")
    assert "/headrace-warm-" in said


@pytest.mark.parametrize("status", [0, 3])
def test_the_commands_status_is_kept(status: int, repository: Path) -> None:
    command = [sys.executable, "-m", "tests.tools.warm", sys.executable, "-c", f"raise SystemExit({status})"]
    assert subprocess.run(command, cwd=repository).returncode == status
