"""Nothing of a local Ray outlives its driver, even where Ray's own processes do not notice its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

DRIVER = """
import os, time
import ray
from pipeline.config import ClusterConfig
from pipeline.launch.on_ray.cluster import start_local_cluster

start_local_cluster(ClusterConfig(num_workers=1, data_workers=1))

@ray.remote
class Worker:
    def pid(self):
        return os.getpid()

worker = Worker.remote()
ray.get(worker.pid.remote())
print(ray._private.worker.global_worker.node.session_name, flush=True)
time.sleep(600)
"""


@pytest.mark.ray
def test_everything_is_gone_after_sigkill_of_the_driver_even_agents_that_do_not_notice() -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    session = driver.stdout.readline().strip()
    assert session.startswith("session_")
    started = psutil.Process(driver.pid).children(recursive=True)
    names = {process.name() for process in started}
    guard = [process for process in started if session in process.cmdline() and "-I" in process.cmdline()]
    agents = [process for process in started if "Agent" in process.name()]
    assert guard, names
    assert len(agents) >= 2, names
    for process in agents:
        process.send_signal(signal.SIGSTOP)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    for process in started:  # the suite's limit of time ends a wait in vain
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.1)
    left = [path for path in Path("/proc").glob("[0-9]*") if _mentions(path, session)]
    assert left == []


def _mentions(process: Path, session: str) -> bool:
    try:
        return session in (process / "cmdline").read_text() and int(process.name) != os.getpid()
    except OSError:
        return False
