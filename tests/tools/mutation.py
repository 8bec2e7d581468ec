#!/usr/bin/env python3
"""Mutation testing: small changes of the code, drawn from a seed, each run against its package's unit tests.

    mutation.py --tree FOLDER --results FILE [--seed N] [--count N] [--minutes N] [--path FOLDER ...]

cosmic-ray makes the mutants. A mutant survives where all tests pass with it; one whose tests use more CPU time than
allowed, or wait for nothing, is killed. The tree is a copy of a checkout: its modules are changed while this runs. What
is known is in the results file, a line each, so that a run that stopped, or whose minutes were up, goes on where it
ended. A path is put in front of Python's, for a tree that needs other packages than this environment has.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
# Where `make build/mutation` puts cosmic-ray: behind what this environment has itself.
MUTATORS = ROOT / "build" / "mutation"
PACKAGES = ("extproc", "scheduling", "flowcontrol", "datalayer")
# CPU time of one mutant's tests: enough for all of them, but no more than the maximum.
MAX_SECONDS, LEAST_SECONDS = 60, 10
# Tests that wait this long without any CPU time wait for something that the mutant has taken away.
IDLE_SECONDS = 30.0
# They change nothing that can be seen: operands that are singletons or small numbers are equal where they are the same.
EQUIVALENT = {"Eq_Is", "Is_Eq", "NotEq_IsNot", "IsNot_NotEq"}
# Those need arguments, and make no code that somebody could have written.
LEFT_OUT = {"VariableReplacer", "VariableInserter"}


@dataclass(frozen=True)
class Mutant:
    """One change: the module's path below the tree, the operator, and which of its places there."""

    module: str
    operator: str
    occurrence: int
    line: int

    @property
    def package(self) -> str:
        """The package whose tests it is run against."""
        return Path(self.module).parts[2]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: survived, killed, or killed because its tests did not end."""

    mutant: Mutant
    result: str
    change: str
    seconds: float


def without_annotations(source: str) -> str:
    """The code without what Python does not look at when it runs: annotations are text."""

    class Strip(ast.NodeTransformer):
        def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
            node.annotation = ast.Constant(None)
            return self.generic_visit(node)

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            node.returns = None
            return self.generic_visit(node)

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
            node.returns = None
            return self.generic_visit(node)

        def visit_arg(self, node: ast.arg) -> ast.AST:
            node.annotation = None
            return node

    return ast.unparse(Strip().visit(ast.parse(source)))


def mutated(source: str, mutant: Mutant) -> str:
    """The module's source with the change."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    changed = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    assert isinstance(changed, str), mutant
    return changed


def places(tree: Path) -> dict[tuple[str, str, tuple[int, int]], list[Mutant]]:
    """Every place where something can be changed, and how: by module, kind of operator, and position."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    found: dict[tuple[str, str, tuple[int, int]], list[Mutant]] = defaultdict(list)
    names = sorted(name for name in operator_names() if name.partition("/")[2] not in LEFT_OUT)
    modules = [
        module
        for package in PACKAGES
        for module in sorted((tree / "controller/headrace" / package).rglob("*.py"))
        if not module.name.endswith("_pb2.py")
    ]
    for module in modules:
        nodes = list(ast_nodes(get_ast(module.read_text())))
        for name in names:
            kind, _, change = name.partition("_")
            if change in EQUIVALENT:
                continue
            operator = get_operator(name)()
            positions = [start for node in nodes for start, _ in operator.mutation_positions(node)]
            family = f"{kind}_{change.rpartition('_')[0]}"
            for occurrence, start in enumerate(positions):
                path = str(module.relative_to(tree))
                found[(path, family, start)].append(Mutant(path, name, occurrence, start[0]))
    return found


def drawn(tree: Path, seed: int) -> Iterator[Mutant]:
    """Mutants in the seed's order, at most one for each place and kind of operator."""
    rng = Random(seed)
    found = sorted(places(tree).items())
    rng.shuffle(found)
    plain: dict[str, str] = {}
    for (module, *_), mutants in found:
        source = (tree / module).read_text()
        mutant = rng.choice(mutants)
        if module not in plain:
            plain[module] = without_annotations(source)
        try:
            changed = without_annotations(mutated(source, mutant))
        except SyntaxError:
            continue
        if changed != plain[module]:
            yield mutant


# Loaded into each run of tests. The first that fails ends it, so the quick ones come first, as the run without a change
# found them; and nobody wants a smaller example.
PLUGIN = """
import json, os
from pathlib import Path
import hypothesis, pytest

TIMES = Path(os.environ["MUTATION_TIMES"])
known = json.loads(TIMES.read_text()) if TIMES.exists() else {}
seen = {}

@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    settings = hypothesis.settings(hypothesis.settings.default, phases=phases, derandomize=True, database=None)
    hypothesis.settings.register_profile("mutation", settings)
    hypothesis.settings.load_profile("mutation")

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: known.get(item.nodeid, 0.0))

def pytest_runtest_logreport(report):
    seen[report.nodeid] = seen.get(report.nodeid, 0.0) + report.duration

def pytest_sessionfinish(session, exitstatus):
    if exitstatus == 0 and not TIMES.exists():
        TIMES.write_text(json.dumps(seen))
"""


def processor_ticks(pid: int) -> tuple[str, int]:
    """A process's state, and the CPU time that it has used, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[11]) + int(fields[12])


def run_tests(tree: Path, package: str, paths: Sequence[str], limit: int) -> tuple[str, float]:
    """Run a package's tests: what became of them, and the seconds of CPU time they took."""
    support = tree / ".mutation"
    times = support / f"{package}.json"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(support), str(tree / "controller"), *paths)),
        "PYTHONDONTWRITEBYTECODE": "1" if times.exists() else "",
        "MUTATION_TIMES": str(times),
    }
    command = (sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "-p", "mutation_order")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        (*command, f"tests/unit/{package}"),
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1)),
    )
    idle, last = time.monotonic(), 0
    while True:
        try:
            code = process.wait(1.0)
            break
        except subprocess.TimeoutExpired:
            state, ticks = processor_ticks(process.pid)
            if ticks != last or state != "S":
                idle, last = time.monotonic(), ticks
            elif time.monotonic() - idle > IDLE_SECONDS:
                os.killpg(process.pid, signal.SIGKILL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return "survived" if code == 0 else "killed" if code > 0 else "killed by time", seconds


def tried(tree: Path, mutant: Mutant, paths: Sequence[str], limit: int) -> Outcome:
    """Run a mutant's tests, and leave the module as it was."""
    module = tree / mutant.module
    source = module.read_text()
    changed = mutated(source, mutant)
    lines = zip(source.splitlines(), changed.splitlines(), strict=False)
    change = next((f"{old.strip()} -> {new.strip()}" for old, new in lines if old != new), "")
    # Compiled code is known by its size and the second of its time, which a mutant may share.
    for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc"):
        compiled.unlink()
    module.write_text(changed)
    try:
        result, seconds = run_tests(tree, mutant.package, paths, limit)
    finally:
        module.write_text(source)
    return Outcome(mutant, result, change, round(seconds, 1))


def known(results: Path) -> dict[Mutant, Outcome]:
    """What a results file says."""
    found = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        values = json.loads(line)
        mutant = Mutant(**values.pop("mutant"))
        found[mutant] = Outcome(mutant, **values)
    return found


def limits(tree: Path, paths: Sequence[str]) -> dict[str, int]:
    """The CPU seconds that each package's mutants may take. Fails where its tests fail without a change."""
    (tree / ".mutation").mkdir(exist_ok=True)
    (tree / ".mutation" / "mutation_order.py").write_text(PLUGIN)
    found = {}
    for package in PACKAGES:
        result, seconds = run_tests(tree, package, paths, 10 * MAX_SECONDS)
        if result != "survived":
            raise SystemExit(f"{package}: its tests fail without a mutant ({result})")
        found[package] = min(MAX_SECONDS, max(LEAST_SECONDS, int(2 * seconds)))
    return found


def run(
    tree: Path, results: Path, seed: int, count: int, minutes: float, paths: Sequence[str]
) -> dict[Mutant, Outcome]:
    """Try mutants until there are as many as wanted or the time is up. Returns what is known of them all."""
    until = time.monotonic() + 60 * minutes
    found = known(results)
    seconds = limits(tree, paths)
    chosen = [mutant for mutant, _ in zip(drawn(tree, seed), range(count), strict=False)]
    for mutant in chosen:
        if time.monotonic() > until:
            break
        if mutant not in found:
            found[mutant] = tried(tree, mutant, paths, seconds[mutant.package])
            with results.open("a") as file:
                file.write(json.dumps(asdict(found[mutant])) + "\n")
    return {mutant: found[mutant] for mutant in chosen if mutant in found}


def report(found: dict[Mutant, Outcome], count: int, seed: int) -> float:
    """Print the score, by package and in all, and the survivors. Returns the share of mutants that were killed."""
    for name in (*PACKAGES, "all"):
        some = [one for mutant, one in found.items() if name in ("all", mutant.package)]
        dead = sum(one.result != "survived" for one in some)
        print(f"{name}: {dead} of {len(some)} killed, {100 * dead / max(1, len(some)):.1f} %")
    print(f"{len(found)} of {count} mutants, seed {seed}")
    survivors = [one for one in found.values() if one.result == "survived"]
    for one in sorted(survivors, key=lambda one: (one.mutant.module, one.mutant.line)):
        print(f"{one.mutant.module}:{one.mutant.line}: {one.mutant.operator}: {one.change}")
    return 1 - len(survivors) / max(1, len(found))


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--path", action="append", default=[])
    flags = parser.parse_args()
    sys.path.append(str(MUTATORS))
    tree = flags.tree.resolve()
    found = run(tree, flags.results, flags.seed, flags.count, flags.minutes, flags.path)
    report(found, flags.count, flags.seed)


if __name__ == "__main__":
    main()
