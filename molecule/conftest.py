"""Makes molecule/support.py importable, and keeps what failing tests say where molecule shows nothing of it.

With `--workers`, molecule shows the output of a playbook that fails, and not that of failing tests."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def pytest_terminal_summary(terminalreporter):
    folder, scenario = os.environ.get("HEADRACE_MOLECULE_FAILURES"), os.environ.get("MOLECULE_SCENARIO_NAME")
    failures = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
    if folder and failures:
        text = "\n\n".join(f"{scenario}: {report.nodeid}\n{report.longreprtext}" for report in failures)
        (Path(folder) / f"{scenario}.txt").write_text(f"{text}\n")
