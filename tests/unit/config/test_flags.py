"""Flags declared as fields: one reader, and errors that name flag, value and fix."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.config.flags import (
    InvalidFlag,
    add_flags,
    choice,
    file,
    flag,
    folder,
    number,
    optional,
    period,
    port,
    read_flags,
    truth,
    whole,
)
from headrace.config.values import duration


@dataclass(frozen=True, kw_only=True)
class Options:
    grpc_port: int = flag(9002, "a port", port)
    wait: float = flag(2.0, "a time", duration)
    every: float = flag(1.0, "a time over 0", period)
    share: float = flag(0.5, "a share", number(0, 1))
    seed: int = flag(0, "a number", whole(-5, 5))
    level: int = flag(2, "a level", whole(), "-v --v")
    checked: bool = flag(False, "not checked", truth, "--skip-checks", inverted=True)
    kind: str = flag("a", "a kind", choice(("a", "b")))
    config: Path | None = flag("", "a file", file)
    certificates: Path | None = flag("", "a folder", folder("tls.crt"))
    names: tuple[str, ...] = flag("x,y", "names", lambda text: tuple(text.split(",")))
    kubeconfig: str | None = flag("", "a path", optional)
    old: None = flag(argparse.SUPPRESS, "without effect", truth)
    none_of_them: int = 7


def read(*arguments: str) -> Options:
    parser = argparse.ArgumentParser()
    add_flags(parser, Options)
    return read_flags(parser.parse_args(arguments), Options)


def test_without_flags_every_field_has_its_default() -> None:
    assert read() == Options()
    assert (Options().names, Options().checked, Options().config) == (("x", "y"), True, None)


def test_every_flag_reaches_its_field(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").touch()
    found = read(
        "--grpc-port=0", "--wait=1m30s", "--every=1ms", "--share=1", "--seed=-5", "-v", "4", "--skip-checks",
        "--kind=b", f"--config={tmp_path / 'tls.crt'}", f"--certificates={tmp_path}", "--names=z",
        "--kubeconfig=k", "--old",
    )  # fmt: skip
    assert found == Options(
        grpc_port=0, wait=90.0, every=0.001, share=1.0, seed=-5, level=4, checked=False, kind="b",
        config=tmp_path / "tls.crt", certificates=tmp_path, names=("z",), kubeconfig="k", old=True, none_of_them=7,
    )  # fmt: skip
    assert read("--skip-checks=false").checked


@pytest.mark.parametrize(("text", "found"), [("5", 5), ("+5", 5), ("-5", -5), ("005", 5), ("+0", 0)])
def test_whole_numbers(text: str, found: int) -> None:
    assert read(f"--seed={text}").seed == found


@pytest.mark.parametrize(
    ("argument", "fix"),
    [
        ("--grpc-port=70000", "1 to 65535"),
        ("--grpc-port=٣", "1 to 65535"),
        ("--wait=5", "1m30s"),
        ("--every=0s", "over 0"),
        ("--every=x", "1m30s"),
        ("--share=2", "from 0 to 1"),
        ("--share=nan", "from 0 to 1"),
        ("--share=x", "from 0 to 1"),
        ("--seed=6", "from -5 to 5"),
        ("--seed=+-5", "from -5 to 5"),
        ("--seed=+", "from -5 to 5"),
        ("--seed=", "from -5 to 5"),
        ("--v=-1", "from 0"),
        ("--v=" + "9" * 5000, "from 0"),
        ("--skip-checks=maybe", "true or false"),
        ("--kind=c", "a or b"),
        ("--config=/nowhere", "no such file"),
        ("--certificates=/nowhere", "no tls.crt"),
        ("--old=maybe", "true or false"),
    ],
)
def test_what_cannot_be_used_names_flag_value_and_fix(argument: str, fix: str) -> None:
    with pytest.raises(InvalidFlag) as refused:
        read(argument)
    assert str(refused.value).startswith(f"{argument}: ")
    assert fix in str(refused.value)


def test_a_default_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Named:
        namespace: str = flag("", "a namespace", environment="TEST_NAMESPACE")

    assert Named().namespace == ""
    monkeypatch.setenv("TEST_NAMESPACE", "n")
    assert Named().namespace == "n"
    parser = argparse.ArgumentParser()
    add_flags(parser, Named)
    assert read_flags(parser.parse_args([]), Named).namespace == "n"
    assert read_flags(parser.parse_args(["--namespace=m"]), Named).namespace == "m"
