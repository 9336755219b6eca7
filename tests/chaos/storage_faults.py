"""What each fault of object storage does to a run, for each of the things that a run keeps there.

A relay before the service answers requests for one of them with the fault, from the second step on (for the index: from
the start), for a minute or for good. The run ends like an undisturbed one, bit for bit, or with a code and a reason.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

from tests.chaos.ledger import ViolationError
from tests.chaos.nursery import Nursery
from tests.chaos.remote import RemoteRun, serving
from tests.chaos.runs import Result, Run, check_like_calm
from tests.chaos.world import World
from tests.pipeline.shards.object_store import BUCKET, FaultRelay

SUBJECTS = ("shards", "index", "checkpoint", "run_dir")
PASSING = ("SlowDown", "lost connections", "lost answers")
LASTING = ("AccessDenied", "NoSuchBucket", "RequestTimeTooSkewed")
_TIMEOUT_S = 400.0
_STORAGE_FAILED = 6


class Verdict(NamedTuple):
    """How a run took a fault."""

    exit_code: int
    requests: int
    """That were answered with the fault."""
    told: str
    """The last line of the run's log that names storage."""

    def describe(self) -> str:
        """Return a cell of the table."""
        if self.exit_code == 0:
            return f"goes on, bits equal ({self.requests} requests failed)"
        return f"exit {self.exit_code}: {self.told}"


class Bench:
    """A world in object storage, and the undisturbed run that others are compared with."""

    def __init__(self, world: World, nursery: Nursery, folder: Path) -> None:
        """Train undisturbed, on a disk."""
        self._world, self._nursery, self._folder = world, nursery, folder
        self.calm: Result = Run(world, nursery, folder / "calm").finish()

    def play(self, subject: str, fault: str, lasts_s: float) -> Verdict:
        """Train with a fault.

        Args:
            subject: what of the run is in object storage and meets the fault.
            fault: one of `PASSING` or `LASTING`.
            lasts_s: seconds from the first request that meets it on; not for those that last.

        Raises:
            ViolationError: the fault was not met, or the run ended as it must not.
        """
        name = f"{subject}-{fault}".replace(" ", "-").replace("_", "-").lower()
        with serving() as (port, client):
            for shard in self._world.folder.glob("items-*.tar"):
                client.upload_file(str(shard), BUCKET, f"{name}/{shard.name}")
            relay = FaultRelay(port)
            run = _FaultyRun(self._world, self._nursery, self._folder / name)
            run.keep_in_storage(subject, relay.port)
            lasts_s = lasts_s if fault in PASSING else float("inf")
            if subject == "index":  # which is read and written before the first step
                relay.break_down(fault, lasts_s, name)
            (child,) = run.start()
            while run.num_steps_reported() < 2 and child.poll() is None:
                time.sleep(0.01)
            if subject != "index":
                relay.break_down(fault, lasts_s, name)
            code = child.wait(_TIMEOUT_S)
            verdict = Verdict(code, relay.num_answered, _reason(child.output()))
            relay.close()
            self._check(run, subject, fault, verdict)
        return verdict

    def _check(self, run: _FaultyRun, subject: str, fault: str, verdict: Verdict) -> None:
        where = f"{subject}, {fault}: {verdict}; see {run.log}"
        if not verdict.requests:
            raise ViolationError(f"the fault was not met: {where}")
        if fault in PASSING and verdict.exit_code == 0:
            check_like_calm(self.calm, run.result())
        elif fault in PASSING or verdict.exit_code != _STORAGE_FAILED or _plain(fault) not in _plain(verdict.told):
            raise ViolationError(where)


class _FaultyRun(RemoteRun):
    """A run of which one thing is in object storage."""

    def keep_in_storage(self, subject: str, port: int) -> None:
        """Say what is there, and where the service is."""
        options = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        place = f"s3://{BUCKET}/{self.run_dir.name}"
        self._is_remote = subject == "run_dir"
        self._settings = {
            "shards": f'data.shards=["{place}{options}"]',
            "index": f"data.index_dir={place}{options}",
            "checkpoint": f"checkpoint.folder={place}{options}",
            "run_dir": f"run_dir={place}{options}",
        }[subject]

    def overrides_of_attempt(self) -> tuple[str, ...]:
        """Return what differs from the config."""
        own_index = (f"data.index_dir={self.run_dir}-index",) if "index_dir" not in self._settings else ()
        return (self._settings, *own_index)

    def result(self) -> Result:
        """Read what the finished run left behind."""
        return super().result() if self._is_remote else Run.result(self)


def _plain(text: str) -> str:
    """Return a text in which one client's ACCESS_DENIED is the other's AccessDenied."""
    return text.replace("_", "").lower()


def _reason(output: str) -> str:
    lines = [line for line in output.splitlines() if re.search(r"refused|storage failed", line)]
    return lines[-1].strip() if lines else output[-400:]


def fault_table(bench: Bench, lasts_s: float) -> dict[str, dict[str, str]]:
    """Play every fault on every subject; returns the cells by fault and subject."""
    return {
        fault: {subject: bench.play(subject, fault, lasts_s).describe() for subject in SUBJECTS}
        for fault in (*PASSING, *LASTING)
    }
