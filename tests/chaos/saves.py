"""SIGKILLs while checkpoints are written, and damage to their files: the newest whole one is always found."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from pipeline.checkpoint.store import Checkpoint, CheckpointStore
from tests.chaos.ledger import ViolationError
from tests.chaos.nursery import Nursery

_KEEP_LAST = 2
_OPERATIONS_TO_REACH = 40
"""More file operations than one save has, so that kills spread over all of one save and the start of the next."""
_LONGEST_DELAY_S = 0.05


class SaveKills(NamedTuple):
    """What 1,000 interrupted saves came to."""

    kills: int
    at_file_operations: int
    """Of the kills: right before a chosen file operation; the others came at random times."""
    generations_lost: int
    """Saves that had returned and were not the newest whole checkpoint afterwards, nor older than it."""
    in_flight_found: int
    """Saves that had not returned yet and were whole nevertheless."""


def kill_savers(nursery: Nursery, folder: Path, rng: random.Random, num_kills: int, **environment: str) -> SaveKills:
    """Kill a process that saves checkpoint after checkpoint, again and again in the same folder.

    Raises:
        ViolationError: the newest checkpoint is unreadable, mixes two saves, or more than one generation is gone.
    """
    environment = {"CHAOS_RUN_DIR": str(folder), **environment}
    acknowledged = at_operations = lost = in_flight = 0
    for kill in range(num_kills):
        log = folder / f"saver-{kill:04d}.log"
        at_operation = bool(rng.getrandbits(1))
        chosen = {"CHAOS_KILL_AT": str(rng.randint(1, _OPERATIONS_TO_REACH))} if at_operation else {}
        child = nursery.start("save_for_ever", [str(folder), str(acknowledged + 1)], log, environment | chosen)
        if not at_operation:
            time.sleep(rng.uniform(0.005, _LONGEST_DELAY_S))
            child.kill()
        code = child.wait(30.0)
        if code != -9:
            raise RuntimeError(f"kill {kill}: the saver ended with {code}:\n{child.output()}")
        printed = [int(line) for line in child.output().splitlines() if line.isdigit()]
        acknowledged = max([acknowledged, *printed])
        newest = _read_in_child(nursery, folder, environment)
        lost += max(0, acknowledged - newest)
        if acknowledged - newest > 1:
            raise ViolationError(f"kill {kill}: step {acknowledged} was saved, the newest whole checkpoint is {newest}")
        in_flight += newest > acknowledged
        at_operations += at_operation
        acknowledged = newest
        log.unlink(missing_ok=True)  # a child killed at once has none
    return SaveKills(num_kills, at_operations, lost, in_flight)


def read_newest(folder: Path) -> int:
    """Read the newest checkpoint to the last number; returns its step, 0 without one.

    Raises:
        ViolationError: it cannot be read, or holds numbers of more than one save.
    """
    checkpoints = folder / "checkpoints"
    try:
        newest = CheckpointStore(checkpoints, _KEEP_LAST).latest()
        if newest is None:
            return 0
        for name in ("model", "optimizer", "random"):
            for tensor in newest.tensors(name).values():
                if tensor.unique().tolist() != [float(newest.step)]:
                    raise ViolationError(f"checkpoint {newest.step} holds numbers of another save")
    except (OSError, ValueError, SafetensorError) as error:
        raise ViolationError(f"the newest checkpoint in {checkpoints} cannot be read: {error}") from error
    return newest.step


def _read_in_child(nursery: Nursery, folder: Path, environment: dict[str, str]) -> int:
    """Read as the next attempt would: in a fresh process, with the defect that the attempt has."""
    log = folder / "reader.log"
    log.unlink(missing_ok=True)
    child = nursery.start("read_newest", [str(folder)], log, environment)
    if child.wait(30.0):
        raise ViolationError(child.output().strip().splitlines()[-1])
    return int(child.output().splitlines()[-1])


class Damage(NamedTuple):
    """What damaged files came to."""

    flips: int
    truncations: int
    detected: int
    files: dict[str, int]
    """Damages by file name."""


def damage_files(checkpoints: Path, rng: random.Random, num_damages: int) -> Damage:
    """Damage one file of the newest checkpoint at a time, and put it right again.

    Args:
        checkpoints: folder with at least two checkpoints of a real run.
        rng: decides file, kind and place.
        num_damages: how often.

    Raises:
        ViolationError: a damage went unnoticed, was not reported, or cost more than the newest checkpoint.
    """
    newest, previous = _newest_two(checkpoints)
    files = sorted(path for path in newest.folder.rglob("*") if path.is_file())
    count = {path.name: 0 for path in files}
    flips = 0
    for _ in range(num_damages):
        path = rng.choice(files)
        intact = path.read_bytes()
        position, flip = rng.randrange(len(intact)), bool(rng.getrandbits(1))
        if flip:
            flipped = intact[position] ^ (1 << rng.randrange(8))
            path.write_bytes(intact[:position] + bytes([flipped]) + intact[position + 1 :])
        else:
            path.write_bytes(intact[:position])
        what = f"{path.name} {'flipped' if flip else 'cut'} at byte {position}"
        with _messages() as said:
            found = CheckpointStore(checkpoints, _KEEP_LAST).latest()
        path.write_bytes(intact)
        if found is None or found.step != previous.step:
            raise ViolationError(f"{what}: took checkpoint {found and found.step}, expected {previous.step}")
        if not any(newest.folder.name in message for message in said):
            raise ViolationError(f"{what}: nothing was said about {newest.folder.name}: {said}")
        count[path.name] += 1
        flips += flip
    return Damage(flips, num_damages - flips, num_damages, count)


def damage_newest(checkpoints: Path, rng: random.Random) -> str:
    """Flip one bit in the weights of the newest checkpoint, for good; returns the folder's name."""
    newest, _ = _newest_two(checkpoints)
    path = rng.choice(sorted(newest.folder.glob("*.safetensors")))
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return newest.folder.name


def _newest_two(checkpoints: Path) -> tuple[Checkpoint, Checkpoint]:
    store = CheckpointStore(checkpoints, _KEEP_LAST)
    newest = store.latest()
    assert newest is not None
    aside = newest.folder.rename(newest.folder.with_name("aside"))
    previous = store.latest()
    aside.rename(newest.folder)
    if previous is None:
        raise ViolationError(f"{checkpoints}: only one whole checkpoint, expected two generations")
    return newest, previous


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Collect what the product logs as warnings."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pipeline").addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger("pipeline").removeHandler(handler)
