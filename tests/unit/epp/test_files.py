"""Files the picker reads: its configuration and its certificate."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config.decode import InvalidConfig
from headrace.epp.config_file import load_config
from headrace.serving.files import Reloading
from headrace.serving.tls import InvalidCertificate, read_pair, self_signed, server_credentials

CONFIG = """\
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: random-picker
"""


def test_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    assert load_config(path).scheduling.profile.picker.type_name == "random-picker"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("kind: [", "not YAML"),
        ("", "EndpointPickerConfig"),
        ("- a", "EndpointPickerConfig"),
        (CONFIG.replace("random-picker", "nonsense"), "plugins\\[0\\].type"),
        ("!!python/object/apply:os.system [true]", "not YAML"),
        ("x" * 2_000_000, "bytes"),
        ("\x00", "not YAML"),
    ],
)
def test_wrong_config_files_are_named(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(InvalidConfig, match=named) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def write_pair(directory: Path) -> tuple[bytes, bytes]:
    pair = self_signed()
    (directory / "tls.crt").write_bytes(pair[0])
    (directory / "tls.key").write_bytes(pair[1])
    return pair


def test_a_pair_must_belong_together(tmp_path: Path) -> None:
    pair = write_pair(tmp_path)
    assert read_pair(tmp_path) == pair
    server_credentials(tmp_path, reload=True)
    (tmp_path / "tls.key").write_bytes(self_signed()[1])
    with pytest.raises(InvalidCertificate, match="belong together"):
        read_pair(tmp_path)
    (tmp_path / "tls.key").write_bytes(b"nonsense")
    with pytest.raises(InvalidCertificate, match="PEM"):
        server_credentials(tmp_path, reload=False)


def test_a_changed_pair_is_taken_up_and_a_broken_one_is_not(tmp_path: Path) -> None:
    write_pair(tmp_path)
    source = Reloading((tmp_path / "tls.crt", tmp_path / "tls.key"), lambda: read_pair(tmp_path), "the certificate")
    assert source.changed() is None
    new = write_pair(tmp_path)
    assert source.changed() == new
    assert source.changed() is None
    (tmp_path / "tls.crt").write_bytes(b"half a cert")
    assert source.changed() is None
    newest = write_pair(tmp_path)
    assert source.changed() == newest
