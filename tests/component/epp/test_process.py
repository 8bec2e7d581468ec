"""The process as a Pod runs it: health, TLS and its reload, status pages, start-up errors."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from headrace.serving.tls import self_signed

from ...hang import HANG_SECONDS
from .conftest import BOTH_TRANSPORTS
from .picker import start_picker

pytestmark = BOTH_TRANSPORTS

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
PROCESS = f"/{EXT_PROC}/Process"
SERVING, NOT_SERVING, UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"


def named(service: str) -> bytes:
    return b"\x0a" + bytes([len(service)]) + service.encode() if service else b""


async def test_health_on_both_ports(tmp_path: Path) -> None:
    async with start_picker(["127.0.0.1:1"], tmp_path) as picker:
        for port in (picker.grpc_port, picker.health_port):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                check = channel.unary_unary(CHECK)
                for service in ("", "liveness", "readiness", EXT_PROC, "inference-extension"):
                    assert await check(named(service)) == SERVING
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await check(named("other"))
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
                watching = channel.unary_stream(WATCH)(named("other"))
                assert await watching.read() == UNKNOWN


async def test_readiness_is_watched_through_the_drain(tmp_path: Path) -> None:
    async with start_picker(["127.0.0.1:1"], tmp_path, "--drain-delay=1h") as picker:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.health_port}") as channel:
            watching = channel.unary_stream(WATCH)(named("readiness"))
            assert await watching.read() == SERVING
            picker.kill(signal.SIGTERM)
            assert await watching.read() == NOT_SERVING
            # A gateway that checks our health has time to learn of the successor.
            assert await channel.unary_unary(CHECK)(named(EXT_PROC)) == SERVING
            assert await channel.unary_unary(CHECK)(named("liveness")) == SERVING
        assert (await picker.get("/readyz"))[0] == 503
        assert (await picker.get("/healthz"))[0] == 200
        picker.kill(signal.SIGTERM)
        assert await picker.process.wait() == 0


async def test_a_gateway_is_told_of_the_end_after_everybody_else(tmp_path: Path) -> None:
    async with start_picker(["127.0.0.1:1"], tmp_path, "--drain-delay=1s", "--drain-timeout=100ms") as picker:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.health_port}") as channel:
            watches = {name: channel.unary_stream(WATCH)(named(name)) for name in (EXT_PROC, "readiness")}
            assert [await watch.read() for watch in watches.values()] == [SERVING, SERVING]
            told: list[str] = []

            async def hear(name: str) -> None:
                assert await watches[name].read() == NOT_SERVING
                told.append(name)

            picker.kill(signal.SIGTERM)
            await asyncio.gather(*(hear(name) for name in watches))
            assert told == ["readiness", EXT_PROC]
        assert await picker.process.wait() == 0


@pytest.mark.parametrize("raw", [b"\xff\xff", b"\x12\x05ab", b"", b"\x0a\x00", b"\x2a\x02\x0a\x09"])
async def test_a_stream_of_nonsense_ends_alone(tmp_path: Path, raw: bytes) -> None:
    async with start_picker(["127.0.0.1:1"], tmp_path) as picker:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.grpc_port}") as channel:
            process = channel.stream_stream(PROCESS)
            call = process()
            await call.write(raw)
            await call.done_writing()
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    assert await call.read() is grpc.aio.EOF
                code = await call.code()
            except grpc.aio.AioRpcError as error:
                code = error.code()
            assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
        assert (await picker.get("/readyz"))[0] == 200


async def test_status_pages(tmp_path: Path) -> None:
    async with start_picker(["127.0.0.1:1", "[::1]:2"], tmp_path) as picker:
        endpoints = await picker.endpoints()
        assert set(endpoints) == {"127.0.0.1:1", "[::1]:2"}
        assert await picker.decisions() == []
        assert (await picker.get("/debug/decisions?limit=0"))[0] == 400
        status, text = await picker.get("/metrics")
        assert status == 200
        assert 'inference_pool_ready_pods{name="static"} 2.0' in text


def write_pair(directory: Path) -> bytes:
    certificate, key = self_signed()
    (directory / "tls.crt").write_bytes(certificate)
    (directory / "tls.key").write_bytes(key)
    return certificate


async def served_certificate(port: int) -> bytes:
    """The PEM certificate a TLS port shows."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    connection = writer.get_extra_info("ssl_object")
    assert connection.selected_alpn_protocol() == "h2"
    der = connection.getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


async def test_a_new_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    first = write_pair(certificates)
    flags = ("--secure-serving=true", f"--cert-path={certificates}")
    async with start_picker(["127.0.0.1:1"], tmp_path, *flags) as picker:
        assert await served_certificate(picker.grpc_port) == first
        second = write_pair(certificates)
        assert await served_certificate(picker.grpc_port) == second
        (certificates / "tls.crt").write_bytes(b"broken")
        assert await served_certificate(picker.grpc_port) == second


@pytest.mark.parametrize(
    ("flags", "message", "code"),
    [
        ([], "--pool-name", 2),
        (["--endpoints=x"], "--endpoints=x", 2),
        (["--pool-name=p", "--kubeconfig=/nowhere"], "/nowhere", 1),
        (["--endpoints=127.0.0.1:1", "--config-file={config}"], "plugins[0].type", 2),
        (["--endpoints=127.0.0.1:1", "--cert-path={certs}"], "tls.crt", 2),
    ],
)
async def test_what_cannot_start_says_why(tmp_path: Path, flags: list[str], message: str, code: int) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "llm-d.ai/v1alpha1",
                "kind": "EndpointPickerConfig",
                "plugins": [{"type": "nonsense"}],
            }
        )
    )
    (tmp_path / "tls.crt").write_text("x")
    (tmp_path / "tls.key").write_text("x")
    filled = [flag.format(config=config, certs=tmp_path) for flag in flags]
    ports = ["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--bind-address=127.0.0.1"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace.cli.main", "epp", *filled, *ports), stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(HANG_SECONDS):
        _, stderr = await process.communicate()
    text = stderr.decode()
    assert process.returncode == code, text
    assert message in text
    assert "Traceback" not in text


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async with start_picker(["127.0.0.1:1"], tmp_path) as picker:
        for flag, port in (
            ("grpc-port", picker.grpc_port),
            ("grpc-health-port", picker.health_port),
            ("metrics-port", picker.metrics_port),
        ):
            with pytest.raises(RuntimeError, match=f"--{flag}={port}: the port is taken"):
                async with start_picker(["127.0.0.1:1"], tmp_path, f"--{flag}={port}", name=f"second-{flag}"):
                    pass
