from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from pipeline.run_folder import object_lease
from pipeline.run_folder.held import LeaseLostError, RunHeldError
from pipeline.run_folder.object_lease import ObjectLease
from pipeline.storage.objects import ObjectFolder


def leave(objects: ObjectFolder, **facts: Any) -> None:
    """Leave the lease of attempt 5 behind as a holder elsewhere does that is killed."""
    body = {"host": "elsewhere", "pid": 7, "began": "1", "machine": "another", "released": False, "since": 0, **facts}
    objects.write("lease/00000005", json.dumps(body).encode())


def test_each_holder_has_a_higher_number_than_the_last_and_than_its_workers(objects: ObjectFolder) -> None:
    with ObjectLease(objects).hold(0) as attempt:
        assert attempt == 1
    with ObjectLease(objects).hold(0) as attempt:
        assert attempt == 2
    with ObjectLease(objects).hold(11) as attempt:
        assert attempt == 12
    assert [entry.key for entry in objects.list("lease/")] == ["lease/00000012"]


def test_run_that_a_living_process_of_this_machine_holds_is_refused_at_once(objects: ObjectFolder) -> None:
    with ObjectLease(objects).hold(0), pytest.raises(RunHeldError) as refused, ObjectLease(objects).hold(0):
        pass
    assert f"held by process {os.getpid()} on " in str(refused.value)
    assert ObjectLease(objects).describe_holder() is None


def test_holder_that_was_killed_on_this_machine_is_followed_at_once(objects: ObjectFolder) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    leave(objects, pid=dead.pid, machine=object_lease._machine())
    with ObjectLease(objects).hold(0) as attempt:
        assert attempt == 6


def test_holder_elsewhere_is_followed_when_it_is_silent(objects: ObjectFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lease, "SILENT_S", 1.5)
    monkeypatch.setattr(object_lease, "_LOOK_S", 0.1)
    leave(objects)
    with ObjectLease(objects).hold(0) as attempt:
        assert attempt == 6


def test_holder_elsewhere_that_gives_a_sign_of_life_is_left_alone(
    objects: ObjectFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_lease, "_LOOK_S", 0.1)
    leave(objects)
    threading.Timer(0.3, leave, [objects], {"beat": 1}).start()
    with pytest.raises(RunHeldError, match="held by process 7 on elsewhere"), ObjectLease(objects).hold(0):
        pass


def test_signs_of_life_are_given_and_the_end_is_told(objects: ObjectFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lease, "BEAT_S", 0.05)
    with ObjectLease(objects).hold(0):
        while json.loads(objects.read("lease/00000001").content).get("beat", 0) < 3:
            pass
    assert json.loads(objects.read("lease/00000001").content)["released"]


def test_attempt_that_was_followed_may_not_write(objects: ObjectFolder) -> None:
    lease = ObjectLease(objects)
    with lease.hold(0) as attempt:
        lease.check(attempt)
        assert lease.next_attempt() == 2
        with pytest.raises(LeaseLostError, match="attempt 2 has taken over, this is attempt 1; no checkpoint written"):
            lease.check(attempt)
        lease.check(2)
        objects.write("lease/00000003", b"{}")
        with pytest.raises(LeaseLostError, match="attempt 3 has taken over"):
            lease.next_attempt()
    with pytest.raises(LeaseLostError, match="lease/00000007 is missing: cannot verify"):
        lease.check(7)
