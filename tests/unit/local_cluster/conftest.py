"""The roles' own Python is no installed package: it is imported from the folders that Ansible runs it from."""

from __future__ import annotations

import sys
from pathlib import Path

ROLES = Path(__file__).resolve().parents[3] / "roles"
for folder in (ROLES / "local_cluster/files", ROLES / "container_images/files"):
    sys.path.insert(0, str(folder))
