"""What the conformance runner makes of archives and of the suite's output."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.full.conformance.images import content_key, image_with_entrypoint, program_image
from tests.full.conformance.suite import Result, read_results

LOG = """\
=== RUN   TestConformance
    conformance.go:163: Running Inference Extension conformance tests with GatewayClass headrace
=== RUN   TestConformance/InferencePoolAccepted
--- FAIL: TestConformance (181.10s)
    --- PASS: TestConformance/InferencePoolAccepted (1.05s)
        --- PASS: TestConformance/InferencePoolAccepted/InferencePool_should_have_Accepted (0.02s)
    --- SKIP: TestConformance/InferencePoolAppProtocol (0.00s)
    --- FAIL: TestConformance/EppUnAvailableFailOpen (100.00s)
        --- PASS: TestConformance/EppUnAvailableFailOpen/Phase_1 (0.02s)
FAIL
"""


def read(archive: Path) -> tuple[list[str], dict[str, Any], list[bytes]]:
    """Names, configuration and layers of a docker-archive, as containerd would follow them."""
    with tarfile.open(archive) as tar:

        def content(name: str) -> bytes:
            found = tar.extractfile(name)
            assert found is not None
            return found.read()

        (manifest,) = json.loads(content("manifest.json"))
        return manifest["RepoTags"], json.loads(content(manifest["Config"])), [content(n) for n in manifest["Layers"]]


def test_a_program_becomes_an_image(tmp_path: Path) -> None:
    program = tmp_path / "echo"
    program.write_bytes(b"\x7fELF...")
    program_image(program, "example.com/echo:v1", tmp_path / "echo.tar")
    names, config, (layer,) = read(tmp_path / "echo.tar")
    assert names == ["example.com/echo:v1"]
    assert config["config"]["Entrypoint"] == ["/echo"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        (entry,) = tar.getmembers()
        found = tar.extractfile(entry)
        assert found is not None
        assert (entry.name, entry.mode, found.read()) == ("echo", 0o755, b"\x7fELF...")


def test_another_entrypoint_leaves_the_rest_of_an_image(tmp_path: Path) -> None:
    program = tmp_path / "headrace"
    program.write_bytes(b"program")
    program_image(program, "localhost/controller:1", tmp_path / "old.tar")
    image_with_entrypoint(tmp_path / "old.tar", ["/headrace", "epp"], "example.com/epp:v1", tmp_path / "new.tar")
    _, old, layers = read(tmp_path / "old.tar")
    names, new, same_layers = read(tmp_path / "new.tar")
    assert names == ["example.com/epp:v1"]
    assert same_layers == layers
    assert new == {**old, "config": {**old["config"], "Entrypoint": ["/headrace", "epp"]}}
    assert content_key(tmp_path / "new.tar") != content_key(tmp_path / "old.tar")


def test_the_key_follows_the_content(tmp_path: Path) -> None:
    program = tmp_path / "echo"
    program.write_bytes(b"1")
    program_image(program, "e:1", tmp_path / "a.tar")
    program_image(program, "e:1", tmp_path / "b.tar")
    assert content_key(tmp_path / "a.tar") == content_key(tmp_path / "b.tar")


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w"):
        pass
    with pytest.raises(KeyError, match=r"manifest\.json"):
        image_with_entrypoint(tmp_path / "other.tar", ["/x"], "e:1", tmp_path / "new.tar")


def test_results_are_those_of_the_suites_tests_and_not_of_their_parts() -> None:
    assert read_results(LOG) == {
        "InferencePoolAccepted": Result("InferencePoolAccepted", "PASS", 1.05),
        "InferencePoolAppProtocol": Result("InferencePoolAppProtocol", "SKIP", 0.0),
        "EppUnAvailableFailOpen": Result("EppUnAvailableFailOpen", "FAIL", 100.0),
    }
    assert read_results("panic: test timed out") == {}
