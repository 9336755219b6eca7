"""Processes of a local Ray that outlive the process which started it: ended within seconds, whatever ended that one.

Ray's agents notice by themselves that their raylet is gone, but on a busy machine that has taken more than a minute. So
a small process of its own waits for the end of the driver, gives Ray a few seconds, and then ends what is left.
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

def left():
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
    waiting.poll()
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
