"""The flags of `headrace simulate`, and the server they describe. vLLM's names where vLLM has the flag."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headrace.config.flags import add_flags, flag, number, port, read_flags
from headrace.core.version import version
from headrace.simulator.adapters import Models
from headrace.simulator.engine import EngineSettings
from headrace.simulator.faults import FaultSettings
from headrace.simulator.generation import ModelBehaviour
from headrace.simulator.server import ModelServer
from headrace.simulator.settings import ServerSettings
from headrace.simulator.timing import StepCost

DEFAULT_MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """Where the server listens, and how it starts and ends."""

    host: str = flag("0.0.0.0", "address to listen on")
    # The port that is taken for 0 is in the log line "serving".
    port: int = flag(8000, "port to listen on; 0: any free one", port)
    # Nothing listens before: a real server loads its weights.
    startup_seconds: float = flag(0.0, "time before the server listens", number(0), metavar="SECONDS")
    shutdown_timeout: float = flag(
        0.0,
        "time after SIGTERM in which running requests may end, while new ones are answered 500; what runs then is"
        " aborted, as with vLLM",
        number(0),
        metavar="SECONDS",
    )
    # Kinder than vLLM is: for what is not about the end of a server.
    drain_delay_seconds: float | None = flag(
        None,
        "end otherwise than vLLM: so long after SIGTERM new requests are still taken, while /health fails",
        number(0),
        metavar="SECONDS",
    )
    drain_timeout_seconds: float = flag(
        600.0, "with it: longest wait for running requests after that", number(0), metavar="SECONDS"
    )


@dataclass(frozen=True, kw_only=True)
class _Served:
    model: str = flag(DEFAULT_MODEL, "the model to simulate")
    served_model_name: Sequence[str] = flag(
        [],
        "names of the base model in requests; metrics use the first (default: the model's own)",
        nargs="+",
        action="extend",
        metavar="NAME",
    )
    lora_adapter: Sequence[str] = flag(
        [],
        "adapters that are loaded from the start",
        names="--lora-adapter --lora-modules",
        nargs="+",
        action="extend",
        metavar="NAME[=PATH]",
    )
    check_lora_paths: bool = flag(
        False, "refuse with 404 to load an adapter from a path that is not here", action="store_true"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags, in groups."""
    for title, declared in (
        ("server", Lifetime), ("models", _Served), ("engine", EngineSettings), ("behaviour", ServerSettings),
        ("answers", ModelBehaviour), ("faults", FaultSettings),
    ):  # fmt: skip
        add_flags(parser.add_argument_group(title), declared)
    add_flags(
        parser.add_argument_group("timing", "the defaults are an 8B model in 16 bits on one A100 of 80 GB"), StepCost
    )


def model_server(args: argparse.Namespace, environment: Mapping[str, str]) -> ModelServer:
    """The server that the flags describe. Raises ValueError, naming the flag, for a combination that cannot work."""
    served, cost = read_flags(args, _Served), read_flags(args, StepCost)
    settings = replace(
        read_flags(args, ServerSettings),
        # Kubernetes gives a Pod's containers the Pod's name as host name; POD_NAME (downward API) is for other cases.
        pod_name=environment.get("POD_NAME") or socket.gethostname(),
        engine=replace(read_flags(args, EngineSettings), cost=cost),
        behaviour=read_flags(args, ModelBehaviour),
        faults=read_flags(args, FaultSettings),
        # The real server needs this to be set; the simulator, which is for trying things, only minds a "no".
        runtime_lora=environment.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1").lower() not in ("0", "false", ""),
    )
    models = Models(
        model=served.model,
        served_names=tuple(served.served_model_name),
        adapters=_adapters(served, settings.enable_lora),
        check_paths=served.check_lora_paths,
    )
    return ModelServer(settings, models, version())


def _adapters(served: _Served, enabled: bool) -> dict[str, str]:
    adapters: dict[str, str] = {}
    for given in served.lora_adapter:
        name, _, path = given.partition("=")
        if not name:
            raise ValueError(f"--lora-adapter {given}: give NAME or NAME=PATH")
        if name in adapters or name in (served.served_model_name or [served.model]):
            raise ValueError(f"--lora-adapter {name}: the name is taken; give each adapter a name of its own")
        adapters[name] = path or f"/adapters/{name}"
    if adapters and not enabled:
        raise ValueError(f"--lora-adapter {next(iter(adapters))}: adapters need --enable-lora")
    return adapters
