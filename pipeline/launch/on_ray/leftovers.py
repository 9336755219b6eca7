"""Processes of a local Ray that outlive the process which started it: ended within seconds, whatever ended that one.

Ray's agents notice by themselves that their raylet is gone, but on a busy machine that has taken more than a minute. So
a small process of its own waits for the end of the driver, gives Ray a few seconds, and then ends what is left. It
notes the descendants of the raylet while that runs: their titles, which Ray rewrites, need not tell the session.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import ray

GRACE_S: Final = 4.0
"""How long Ray's processes may take to end by themselves."""

# Needs nothing but Python, so that it starts in milliseconds: driver's pid, name of the session, raylet's pid, grace.
_GUARD = """
import os, select, signal, sys, time

driver, session, raylet, grace_s = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3].encode(), float(sys.argv[4])
mark = b"RAY_RAYLET_PID=" + raylet + b"\\0"
known = {}

def facts(pid):
    try:  # after the name, which may contain anything: state, parent, ..., start
        fields = open(f"/proc/{pid}/stat", "rb").read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else (int(fields[1]), fields[19])

def note():
    found = {int(name): facts(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    inside = {int(raylet)}
    while more := {pid for pid, its in found.items() if its and its[0] in inside} - inside:
        inside |= more
    known.update((pid, found[pid][1]) for pid in inside if found.get(pid))

def left():
    yield from (pid for pid, start in known.items() if (its := facts(pid)) and its[1] == start)
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            command = open(f"/proc/{name}/cmdline", "rb").read()
            environment = open(f"/proc/{name}/environ", "rb").read() + b"\\0"
        except OSError:
            continue  # ended meanwhile, or somebody else's
        if session in command or mark in environment:
            yield int(name)

try:
    ended = os.pidfd_open(driver)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    note()
    while not waiting.poll(1000):
        note()
    note()
except ProcessLookupError:
    pass
deadline = time.monotonic() + grace_s
while any(left()) and time.monotonic() < deadline:
    time.sleep(0.2)
for _ in range(25):
    found = list(left())
    if not found:
        break
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    time.sleep(0.2)
"""


def end_with_this_process() -> None:
    """Start what ends the local cluster's processes once this process is over. Linux only; elsewhere nothing."""
    if not hasattr(os, "pidfd_open"):
        return
    node = ray._private.worker.global_worker.node
    raylet = next(iter(node.all_processes.get("raylet", [])), None)
    if raylet is None:  # nothing was started here
        return
    arguments = [str(os.getpid()), node.session_name, str(raylet.process.pid), str(GRACE_S)]
    subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the driver's group must not end it
        cwd="/",
    )
