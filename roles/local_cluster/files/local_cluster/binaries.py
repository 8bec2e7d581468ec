"""The cache of programs: what each component is made of decides where it lies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parents[1]


def key(component: Mapping[str, Any], toolchain: str) -> str:
    """What a component is made from, as 12 hex digits: its sources, its values, the toolchain if it is built."""
    seen = hashlib.sha256(json.dumps(component["values"], sort_keys=True).encode())
    if component["files"]:
        seen.update(toolchain.encode())
    for name in component["files"]:
        start = SOURCES / name
        for path in sorted(path for path in (start, *start.rglob("*")) if path.is_file()):
            seen.update(f"\0{path.relative_to(SOURCES)}\0".encode() + path.read_bytes())
    return seen.hexdigest()[:12]


def located(components: Sequence[Mapping[str, Any]], cache: Path, toolchain: str) -> list[dict[str, Any]]:
    """The components with their key, their folder in the cache, and whether they lie there."""
    answer = []
    for component in components:
        found = key(component, toolchain)
        folder = cache / "binaries" / f"{component['name']}-{found}"
        answer.append({**component, "key": found, "folder": str(folder), "present": folder.is_dir()})
    return answer


def joined_folder(components: Sequence[Mapping[str, Any]], cache: Path) -> Path:
    """The folder with all components' programs side by side."""
    keys = " ".join(f"{component['name']}-{component['key']}" for component in components)
    return cache / "bin" / hashlib.sha256(keys.encode()).hexdigest()[:12]


def join(components: Sequence[Mapping[str, Any]], cache: Path, check: bool) -> list[str]:
    """Make that folder, of links; answer with what was done."""
    folder = joined_folder(components, cache)
    if folder.is_dir():
        return []
    if not check:
        new = folder.with_name(f"{folder.name}.new.{os.getpid()}")
        new.mkdir(parents=True)
        for component in components:
            for entry in sorted(Path(component["folder"]).iterdir()):
                (new / entry.name).symlink_to(os.path.relpath(entry, folder))
        try:
            new.rename(folder)
        except OSError:  # another run was faster
            shutil.rmtree(new)
    return [f"make {folder}"]
