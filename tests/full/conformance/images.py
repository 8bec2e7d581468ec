"""Images that stand in for the suite's remote ones, put together without a build: docker-archives are tar files."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def program_image(program: Path, reference: str, archive: Path) -> None:
    """An image that holds one static program and runs it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo(program.name)
        entry.mode, entry.size = 0o755, program.stat().st_size
        with program.open("rb") as content:
            tar.addfile(entry, content)
    content = layer.getvalue()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
    }
    with tarfile.open(archive, "w") as target:
        _add(target, "layer.tar", content)
        _finish(target, config, reference, ["layer.tar"])


def image_with_entrypoint(source: Path, entrypoint: Sequence[str], reference: str, archive: Path) -> None:
    """The image of a docker-archive under another name and with another entrypoint; its layers stay as they are."""
    with tarfile.open(source) as old, tarfile.open(archive, "w") as target:
        manifest = json.loads(_read(old, "manifest.json"))[0]
        config = json.loads(_read(old, manifest["Config"]))
        config["config"] = {**config["config"], "Entrypoint": list(entrypoint)}
        config["config"].pop("Cmd", None)
        for layer in dict.fromkeys(manifest["Layers"]):
            # Links between layers of one archive are resolved: each name holds its own content.
            _add(target, layer, _read(old, layer))
        _finish(target, config, reference, manifest["Layers"])


def content_key(archive: Path) -> str:
    """What the nodes tell builds of one image name apart by."""
    with archive.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:12]


def _finish(target: tarfile.TarFile, config: Mapping[str, Any], reference: str, layers: Sequence[str]) -> None:
    written = json.dumps(config).encode()
    name = f"{hashlib.sha256(written).hexdigest()}.json"
    _add(target, name, written)
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": list(layers)}]
    _add(target, "manifest.json", json.dumps(manifest).encode())


def _add(target: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    target.addfile(entry, io.BytesIO(content))


def _read(source: tarfile.TarFile, name: str) -> bytes:
    found = source.extractfile(name)
    if found is None:
        raise ValueError(f"{source.name}: there is no file {name} in it: it is no docker-archive")
    return found.read()
