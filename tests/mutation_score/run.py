"""Choosing changes by a fixed seed, and trying them, several modules at a time."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import NamedTuple

from tests.mutation_score.alterations import Alteration, alterations_of
from tests.mutation_score.import_graph import Graph, module_path, read_graph
from tests.mutation_score.targets import is_left_out
from tests.mutation_score.trial import Bench, Trial, import_libraries

Changes = Mapping[str, Sequence[Alteration]]
"""By module."""


class Result(NamedTuple):
    """A change and what became of it."""

    change: Alteration
    trial: Trial


def list_changes(modules: Sequence[str]) -> dict[str, list[Alteration]]:
    """Return every change of the modules, without what is left out of them."""
    found = {module: _every(module) for module in modules}
    return {
        module: [change for change in changes if not is_left_out(module, change.function)]
        for module, changes in found.items()
    }


def choose(changes: Changes, seed: int, per_module: int | None = None, in_all: int | None = None) -> Changes:
    """Choose some changes at random, but the same ones again as long as their own text stays as it is.

    Args:
        changes: of each module.
        seed: another one gives another choice.
        per_module: most changes of a module; None takes all.
        in_all: most changes of all modules together; None takes all.
    """
    by_chance = {module: sorted(found, key=lambda one: _chance(one, seed)) for module, found in changes.items()}
    chosen = [one for found in by_chance.values() for one in found[:per_module]]
    taken = set(sorted(chosen, key=lambda one: _chance(one, seed))[:in_all])
    kept = {module: [one for one in found if one in taken] for module, found in changes.items()}
    return {module: found for module, found in kept.items() if found}


def run_changes(chosen: Changes, num_processes: int) -> Iterator[Result]:
    """Try changes and yield the results as they come; modules with the most changes begin.

    Raises:
        RuntimeError: the tests of a module fail without a change, or a process ended before its work did.
    """
    import_libraries()
    graph = read_graph()
    context = multiprocessing.get_context("fork")
    pending = sorted(chosen, key=lambda module: len(chosen[module]))
    running: dict[Connection, tuple[str, ForkProcess]] = {}
    failed: list[str] = []
    while pending or running:
        while pending and len(running) < num_processes:
            module = pending.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_try_module, args=(module, chosen[module], graph, sender))
            process.start()
            sender.close()
            running[receiver] = module, process
        for connection in wait(list(running)):
            assert isinstance(connection, Connection)
            try:
                yield connection.recv()
            except EOFError:
                module, process = running.pop(connection)
                process.join()
                if process.exitcode:
                    failed.append(module)
    if failed:
        raise RuntimeError(f"not measured, see the errors above: {', '.join(failed)}")


def _chance(change: Alteration, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {change.identity}".encode()).digest()


def _every(module: str) -> list[Alteration]:
    return alterations_of(module, module_path(module).read_text(encoding="utf-8"))


def _try_module(module: str, chosen: Sequence[Alteration], graph: Graph, results: Connection) -> None:
    bench = Bench(module, graph)
    every = _every(module)
    for change in chosen:
        results.send(Result(change, bench.try_change(every.index(change))))
