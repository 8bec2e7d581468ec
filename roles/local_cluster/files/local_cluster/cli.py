"""The commands. Settings come as JSON on standard input or from the state folder; answers are JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import binaries, host, images, node, nodes, ready
from .network import CommandError, Network, stranger
from .processes import node_processes
from .settings import Settings, parse


def _settings(arguments: argparse.Namespace) -> tuple[dict[str, Any], Settings]:
    text = Path(arguments.state_dir, "cluster.json").read_text() if arguments.state_dir else sys.stdin.read()
    raw = json.loads(text)
    settings, problems = parse(raw)
    if settings is None:
        raise SystemExit("\n".join(map(str, problems)))
    return raw, settings


def inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    """What follows from the settings, what keeps the cluster from being built, what is there of it."""
    raw = json.loads(sys.stdin.read())
    settings, problems = parse(raw["cluster"])
    missing = host.missing_packages(raw["packages"], Path(raw["cni_bin_dir"]))
    cache = Path(raw["cache_dir"])
    components = binaries.located(raw["components"], cache, host.go_version())
    build = any(not component["present"] and component["files"] for component in components)
    answer: dict[str, Any] = {
        "components": components,
        "bin": str(binaries.joined_folder(components, cache)),
        "missing_packages": missing,
        "debian": host.is_debian(),
        "exists": False,
        "running": [],
        "plan": {},
    }
    if settings:
        answer["plan"] = settings.plan()
        answer["exists"] = (settings.state_dir / "cluster.json").exists()
        answer["running"] = sorted(node_processes(settings.state_dir))
        if raw["preflight"] == "namespaces":
            lacking = [] if host.is_debian() and raw["install_packages"] else missing
            problems = host.problems(settings, host.Needs(cache, build, lacking))
        elif raw["preflight"] == "kind":
            problems = host.problems_of_kind(host.Needs(cache, build, missing))
    return {**answer, "problems": [str(problem) for problem in problems]}


def join(arguments: argparse.Namespace) -> dict[str, Any]:
    """Put the components' programs side by side; standard input: {components: as inspect answers, cache_dir}."""
    raw = json.load(sys.stdin)
    return {"changes": binaries.join(raw["components"], Path(raw["cache_dir"]), arguments.check)}


def keys(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keys, certificates and kubeconfigs."""
    from .pki import Keys  # the only part that needs a package

    _, settings = _settings(arguments)
    return {"changes": Keys(settings, arguments.check).up()}


def files(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run scripts and configuration of the nodes; standard input: {cluster, files: [{path, content, mode}]}."""
    raw = json.load(sys.stdin)
    settings, problems = parse(raw["cluster"])
    if settings is None:
        raise SystemExit("\n".join(map(str, problems)))
    changes, difference = nodes.write_files(settings, raw["files"], arguments.check)
    return {"changes": changes, "diff": difference}


def up(arguments: argparse.Namespace) -> dict[str, Any]:
    """Network and nodes: create what is missing, start what does not run."""
    raw, settings = _settings(arguments)
    saved = settings.state_dir / "cluster.json"
    if not saved.exists() and (strangers := Network(settings, check=True).strangers()):
        raise nodes.NodeError("\n".join(str(stranger(found)) for found in strangers))
    changes = [f"stop node {name}" for name in nodes.superfluous(settings)]
    if changes and not arguments.check:
        nodes.stop(settings, nodes.superfluous(settings))
    # Written before anything is made: `down` must find it if we are cut off.
    if not arguments.check and (not saved.exists() or json.loads(saved.read_text()) != raw):
        saved.write_text(json.dumps(raw, indent=2) + "\n")
    changes += Network(settings, arguments.check).up()
    for member, why in nodes.to_start(settings):
        changes.append(f"{why} node {member.name}".replace(", node", " node"))
        if not arguments.check:
            nodes.start(settings, member)
    return {"changes": changes}


def wait(arguments: argparse.Namespace) -> dict[str, Any]:
    """Wait until API server and nodes are ready; then drop the Node objects of nodes that are gone."""
    settings = _settings(arguments)[1]
    ready.wait(settings, arguments.timeout)
    return {"changes": ready.forget(settings)}


def load_images(arguments: argparse.Namespace) -> dict[str, Any]:
    """Import images into the nodes that lack them; standard input: a list of {name, content, archive}."""
    return {"changes": images.load(_settings(arguments)[1], json.load(sys.stdin), arguments.check)}


def down(arguments: argparse.Namespace) -> dict[str, Any]:
    """Remove the cluster and everything it left. Works on what is there, whatever happened to the rest."""
    _, settings = _settings(arguments)
    saved = settings.state_dir / "cluster.json"
    if saved.exists() and (name := json.loads(saved.read_text())["name"]) != settings.name:
        fix = f"set local_cluster_name to {name}, or local_cluster_state_dir to another folder"
        raise nodes.NodeError(f"{settings.state_dir} is the cluster {name}, not {settings.name}. Fix: {fix}")
    running = sorted(node_processes(settings.state_dir))
    changes = [f"stop node {name}" for name in running]
    if not arguments.check:
        nodes.stop(settings, running)
    # Cgroups carry no mark: they go with the state folder, or with the network namespaces that were theirs.
    if saved.exists() or Network(settings, check=True).marked():
        changes += nodes.remove_cgroups(settings, arguments.check)
    changes += Network(settings, arguments.check).down()
    if settings.state_dir.exists():
        changes.append(f"remove {settings.state_dir}")
        if not arguments.check:
            _remove_state(settings.state_dir)
    return {"changes": changes}


def _remove_state(folder: Path) -> None:
    """Remove the state folder; only what is known to be a cluster's, and nothing that something is mounted on."""
    known = {"cluster.json", "nodes", "pki", "kubeconfig", "bin", "manifests", "exec"}
    unknown = {path.name for path in folder.iterdir()} - known
    if unknown:
        raise nodes.NodeError(
            f"{folder} holds what is no cluster's: {', '.join(sorted(unknown))}. Fix: move it away, then run again"
        )
    mounted = [
        line.split()[1]
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if line.split()[1].startswith(f"{folder}/")
    ]
    if mounted:
        raise nodes.NodeError(f"something is mounted below {folder}: {mounted[0]}. Fix: unmount it, then run again")
    shutil.rmtree(folder)


def execute(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a command inside a node. Does not return."""
    command = [*nodes.enter(_settings(arguments)[1], arguments.node), *arguments.command]
    os.execvp(command[0], command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster.py", description=__doc__)
    commands = parser.add_subparsers(required=True)
    functions = {
        "inspect": inspect,
        "join": join,
        "keys": keys,
        "files": files,
        "up": up,
        "wait": wait,
        "load-images": load_images,
        "down": down,
        "exec": execute,
    }
    for name, function in functions.items():
        command = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        command.set_defaults(function=function)
        if name not in ("inspect", "join", "files"):
            command.add_argument(
                "--state-dir", help="the cluster's state folder; without it, settings are read from standard input"
            )
        if name in ("join", "keys", "files", "up", "load-images", "down"):
            command.add_argument("--check", action="store_true", help="only say what would be done")
        if name == "wait":
            command.add_argument("--timeout", type=float, default=120, help="seconds")
        if name == "exec":
            command.add_argument("node")
            command.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run a command; its answer goes to standard output as JSON. 1 and a message without a traceback when it fails."""
    if argv[:2] == ["init", "--node"]:
        node.main(os.environ["LOCAL_CLUSTER"], Path(argv[2]))
        return 0
    arguments = _parser().parse_args(argv)
    try:
        answer = arguments.function(arguments)
    except (CommandError, nodes.NodeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0
