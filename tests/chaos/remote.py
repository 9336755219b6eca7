"""Runs whose folder is in object storage, killed and started again; and launchers that race for one run."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.run_folder.held import RunHeldError
from pipeline.run_folder.log_parts import LogParts
from pipeline.run_folder.object_lease import ObjectLease
from pipeline.storage.objects import ObjectFolder
from tests.chaos.kills import kill_runs
from tests.chaos.ledger import ViolationError, read_witness
from tests.chaos.nursery import Child, Nursery
from tests.chaos.runs import Result, Run
from tests.chaos.world import World
from tests.pipeline.shards.object_store import BUCKET, serve_bucket

_REQUESTS = 240
"""Requests of an undisturbed run, about; kills come within the first third, because each attempt makes its own."""
_SERVICE = {"port": 0}


class RemoteRun(Run):
    """A run folder in object storage, and the processes that work on it."""

    @property
    def url(self) -> str:
        """Of the run folder."""
        options = f"endpoint_override=127.0.0.1:{_SERVICE['port']}&scheme=http&region=us-east-1"
        return f"s3://{BUCKET}/{self.run_dir.name}?{options}"

    def start(self, **environment: str) -> list[Child]:
        """Start an attempt; a moment of a save becomes one of the requests."""
        self.overrides = self.overrides_of_attempt()
        self.environment = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
        if (moment := environment.pop("CHAOS_KILL_AT", None)) is not None:
            environment["CHAOS_KILL_AT_REQUEST"] = moment
        return super().start(**environment)

    def overrides_of_attempt(self) -> tuple[str, ...]:
        """Return what differs from the config."""
        return (f"run_dir={self.url}",)

    def has_written_all(self) -> bool:
        """Whether there is nothing left to do."""
        return ObjectFolder(self.url).find("model/model.safetensors") is not None

    def result(self) -> Result:
        """Read what the finished run left behind."""
        objects = ObjectFolder(self.url)
        content = LogParts("metrics.jsonl").read_new(objects, b"")
        lines = [json.loads(line) for line in content.splitlines()]
        names = [entry.key for entry in objects.list("model/") if not entry.key.endswith("/")]
        return Result(
            [(entry["step"], entry["metrics"]["train/loss"]) for entry in lines],
            {name.rpartition("/")[2]: hashlib.sha256(objects.read(name).content).hexdigest() for name in names},
            read_witness(self.witness, self.world),
            int(lines[-1]["metrics"]["data/samples_trained"]),
        )


@contextmanager
def serving() -> Iterator[tuple[int, Any]]:
    """Serve object storage on this machine; yields port and client."""
    with serve_bucket() as (_SERVICE["port"], client):
        yield _SERVICE["port"], client


def kill_remote_runs(
    world: World, nursery: Nursery, folder: Path, rng: random.Random, num_ranks: int, num_kills: int
) -> dict[str, Any]:
    """Kill runs until there were `num_kills` kills; each ends like the undisturbed run on a disk, bit for bit.

    Raises:
        ViolationError: a killed run can be told from the undisturbed one.
        TimeoutError: a process hangs.
    """
    with serving():
        return kill_runs(
            world, nursery, folder, rng, num_ranks=num_ranks, num_kills=num_kills, kind=RemoteRun, operations=_REQUESTS
        )._asdict()


def race_for_runs(num_races: int) -> dict[str, int]:
    """Let two launchers take a run at the same moment, again and again; half of the runs were held before.

    Raises:
        ViolationError: not exactly one of them got it.
    """
    folder = secrets.token_hex(4)  # the service keeps its objects as long as this process lives
    with serving():
        for number in range(num_races):
            options = f"endpoint_override=127.0.0.1:{_SERVICE['port']}&scheme=http&region=us-east-1"
            url = f"s3://{BUCKET}/races-{folder}/{number}?{options}"
            if number % 2:
                with ObjectLease(ObjectFolder(url)).hold(0):
                    pass
            won = _race(url)
            if won != [1 + number % 2]:
                raise ViolationError(f"race {number}: attempts {won} hold the run")
    return {"races": num_races, "won by one": num_races}


def _race(url: str) -> list[int]:
    """Return the attempts of those that hold the run at the same time."""
    together, decided, won = threading.Barrier(2), threading.Barrier(2), list[int]()

    def launch() -> None:
        lease = ObjectLease(ObjectFolder(url))
        together.wait()
        try:
            with lease.hold(0) as attempt:
                won.append(attempt)
                decided.wait()
        except RunHeldError:
            decided.wait()

    threads = [threading.Thread(target=launch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won
