"""The files for other platforms: they parse, agree with the package, and pass SIGTERM on to the run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.crd import FIELDS, check_known

DEPLOY = Path(__file__).parents[2] / "deploy"
STUBS = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "scontrol $*" >> "$LOG"; fi',
    "srun": "exec sleep 600",
    "ray-llava": 'trap \'echo saved >> "$LOG"; exit 143\' TERM; touch "$LOG.up"; while :; do sleep 0.1; done',
    "getent": "echo 127.0.0.1 localhost",
}


MANIFESTS = sorted((DEPLOY / "kuberay").glob("*.yaml"))


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    cluster: dict[str, Any] = spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]
    return cluster


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kuberay_manifest_has_the_ray_that_is_installed_and_a_token_on_every_node(path: Path) -> None:
    cluster = cluster_of(yaml.safe_load(path.read_text()))
    assert cluster["rayVersion"] == version("ray")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert [entry["name"] for entry in container["env"]] == ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"]
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
        assert container["resources"]["limits"] == container["resources"]["requests"]
        claimed = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == claimed


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_field_of_a_kuberay_manifest_is_in_the_definition_and_of_its_type(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    fields = json.loads(FIELDS.read_text())[manifest["kind"]]
    check_known(manifest["spec"], fields)
    head = cluster_of(manifest)["headGroupSpec"]
    head["rayStartParams"]["num-cpus"] = 2  # as YAML reads it without quotes
    with pytest.raises(ValueError, match=r"headGroupSpec.rayStartParams.\*: expected string, found 2"):
        check_known(manifest["spec"], fields)
    head["rayStartParams"] = {}
    head["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(ValueError, match=r"containers\[\].volumeMount: not checked"):
        check_known(manifest["spec"], fields)


def test_end_of_a_head_pod_lets_the_driver_write_its_checkpoint_first(tmp_path: Path) -> None:
    """Run the hook of the manifest against a process that has the driver's command line and takes a while to end."""
    driver = tmp_path / "jobs"
    driver.write_text("trap 'sleep 1; touch saved; exit 143' TERM; touch up; while :; do sleep 0.1; done\n")
    process = subprocess.Popen(["bash", "-c", "exec -a jobs bash jobs finetune"], cwd=tmp_path)
    cluster = cluster_of(yaml.safe_load((DEPLOY / "kuberay" / "raycluster.yaml").read_text()))
    (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    own = f"-f '[b]ash {driver.name} finetune|[j]obs jobs finetune'"
    command[-1] = re.sub(r"-f '[^']*'", own, command[-1])  # of this test only, not of other runs on the machine
    try:
        while not (tmp_path / "up").exists():
            assert process.poll() is None
            time.sleep(0.05)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
        assert (tmp_path / "saved").exists()
    finally:
        process.kill()
    assert process.wait() in (143, -9)


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
