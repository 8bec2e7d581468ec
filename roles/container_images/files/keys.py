"""Say what each image is made from: reads a request, writes the images with content key, reference and archive (JSON).

The request: `source` (the checkout), `cache` (folder of the archives), `components` (the local cluster's programs by
name, each with the key of what it was built from), `base` (reference of a base image to be pulled, or empty), `debian`
(what the base is made of), `python` (the version of its Python), `names` (reference of each image; one without a tag
gets its key as tag).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def digest(root: Path, files: Iterable[Path], *values: str) -> str:
    """12 hex digits of the files' names and contents and the values."""
    seen = hashlib.sha256("\0".join(values).encode())
    for path in sorted(files):
        seen.update(f"\0{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return seen.hexdigest()[:12]


def keys(request: Mapping[str, Any]) -> dict[str, str]:
    """The content key of each image."""
    source = Path(request["source"]).resolve()

    def recipe(name: str, *more: str) -> str:
        return digest(HERE, [HERE / "build.sh", HERE / f"{name}.Containerfile", *(HERE / file for file in more)])

    components = request["components"]
    programs = ("pause", "coredns", "envoy-gateway")
    found = {name: digest(HERE, [], recipe(name), components.get(name, "")) for name in programs}
    base = request["base"] or recipe("python", "configure.py") + request["debian"]
    found["python"] = digest(HERE, [], base)
    python = (found["python"], request["python"])
    found["envoy"] = digest(source, [source / "requirements-envoy.txt"], recipe("envoy", "wheels.py"), *python)
    lists = [source / name for name in ("Containerfile", "pyproject.toml", "constraints.txt")]
    scripts = digest(HERE, [HERE / "build.sh", HERE / "requirements.py", HERE / "wheels.py"])
    found["dependencies"] = digest(source, lists, scripts, *python)
    files = (source / "controller" / "headrace").rglob("*")
    package = [path for path in files if path.is_file() and "__pycache__" not in path.parts]
    found["controller"] = digest(source, package, digest(HERE, [HERE / "metadata.py"]), found["dependencies"])
    return found


# Which image each is built on; the others are built on nothing.
BASES = {"envoy": "python", "dependencies": "python", "controller": "dependencies"}


def images(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images in the order in which they can be built."""
    answer: dict[str, dict[str, Any]] = {}
    for name, key in keys(request).items():
        if name == "python" and request["base"]:
            answer[name] = {"name": request["base"], "archive": ""}
            continue
        reference = request["names"].get(name, f"localhost/headrace/{name}")
        if ":" not in reference.rpartition("/")[2]:
            reference += f":{key}"
        archive = Path(request["cache"], f"{name}-{key}.tar")
        base = answer.get(BASES.get(name, ""), {"name": "", "archive": ""})
        answer[name] = {
            "image": name,
            "name": reference,
            "content": key,
            "archive": str(archive),
            "present": archive.exists(),
            "base": base["name"],
            "base_archive": base["archive"],
        }
    return [image for image in answer.values() if "image" in image]


if __name__ == "__main__":
    json.dump(images(json.load(sys.stdin)), sys.stdout)
