"""The files for other platforms: they parse, agree with the package, and pass SIGTERM on to the run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
STUBS = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "scontrol $*" >> "$LOG"; fi',
    "srun": "exec sleep 600",
    "ray-llava": 'trap \'echo saved >> "$LOG"; exit 143\' TERM; touch "$LOG.up"; while :; do sleep 0.1; done',
    "getent": "echo 127.0.0.1 localhost",
}


def test_kuberay_manifest_has_the_ray_that_is_installed_and_a_token_on_every_node() -> None:
    spec = yaml.safe_load((DEPLOY / "kuberay" / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == version("ray")
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert [entry["name"] for entry in container["env"]] == ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"]
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_dockerfile_copies_what_exists_and_does_not_run_as_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((DEPLOY.parent / name).exists() for name in line.split()), line
    assert re.search(r"^USER ray$", text, re.MULTILINE)


def test_slurm_script_passes_sigterm_on_waits_for_the_checkpoint_and_asks_for_a_requeue(tmp_path: Path) -> None:
    script = (DEPLOY / "slurm" / "train.sbatch").read_text().replace("sleep 10 #", "sleep 0 #")
    # the head's port is not opened by the stand-in
    script = re.sub(r"^until .*?^done\n", "", script, flags=re.DOTALL | re.MULTILINE)
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LOG": str(log),
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "2",
    }
    process = subprocess.Popen(["bash", "-c", script, "train", "finetune"], env=environment, start_new_session=True)
    try:
        while not Path(f"{log}.up").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        assert log.read_text() == "saved\nscontrol requeue 41\n"
        assert not list((tmp_path / ".ray").iterdir())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
