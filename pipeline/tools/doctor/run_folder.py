"""Checks of the run folder: what a transaction needs of its file system, room for checkpoints, and what is there."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.files.atomic import sync
from pipeline.checkpoint.manifest import CheckpointError
from pipeline.checkpoint.resume import run_storage
from pipeline.checkpoint.room import measure_room
from pipeline.checkpoint.storage import FolderStorage
from pipeline.checkpoint.verification import verify
from pipeline.config import CheckpointConfig, ConfigError, Recipe, check_record_resumable
from pipeline.run_folder.lease import LOCK_NAME, describe_holder
from pipeline.run_folder.links import check_links
from pipeline.run_folder.locks import lock_file
from pipeline.run_folder.object_lease import ObjectLease
from pipeline.run_folder.place import shown, working_folder
from pipeline.storage.objects import ObjectFolder
from pipeline.tools.doctor.finding import Finding

_SLOW_FSYNC_S = 0.5


def check_file_system(place: str | Path) -> list[Finding]:
    """Try what a checkpoint relies on: durable writes, atomic renames and locks; or conditional writes."""
    if "://" in str(place):
        return check_object_store(str(place))
    run_dir = Path(place)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        check_links(run_dir)
        return [_try_rename(run_dir), _try_lock(run_dir)]
    except ValueError as error:
        return [Finding("run folder", "error", str(error))]
    except OSError as error:
        return [
            Finding(
                "run folder", "error", f"{run_dir} cannot be used: {error.strerror or error}; choose another run_dir"
            )
        ]


def check_object_store(url: str) -> list[Finding]:
    """Try what stands for locks and renames in object storage, and look whether somebody holds the run."""
    working_folder(url)  # raises what every other verb says
    holder = ObjectLease(ObjectFolder(url)).describe_holder()
    if holder is not None:
        return [Finding("lock", "error", holder)]
    return [
        Finding("conditional writes", "ok", f"work at {shown(working_folder(url))}"),
        Finding("lock", "ok", "no process holds the run"),
    ]


def check_checkpoint_folder(run_dir: str | Path, checkpoint: CheckpointConfig) -> list[Finding]:
    """Try the same renames where checkpoints go, if that is another folder."""
    storage = run_storage(run_dir, checkpoint)
    if checkpoint.folder is None or not isinstance(storage, FolderStorage):
        return []
    try:
        storage.folder.mkdir(parents=True, exist_ok=True)
        return [_try_rename(storage.folder)._replace(check="checkpoint folder")]
    except OSError as error:
        detail = f"checkpoint.folder {storage.folder} cannot be written: {error}; choose another one"
        return [Finding("checkpoint folder", "error", detail)]


def check_resume(place: str | Path, checkpoint: CheckpointConfig, record: Mapping[str, Any]) -> Finding:
    """Compare the config with that of the run that the folder holds."""
    from pipeline.launch.adoption import has_begun  # transformers takes seconds to load

    run_dir = working_folder(place)
    saved = run_dir / "config.yaml"
    if not saved.is_file():
        return Finding("config", "ok", "the folder holds no run yet")
    if not has_begun(run_dir, checkpoint):
        return Finding("config", "ok", f"replaces {shown(saved)}; no run has started with it")
    try:
        check_record_resumable(saved, record)
    except ConfigError as error:
        return Finding("config", "error", str(error))
    return Finding("config", "ok", f"continues the run of {shown(saved)}")


def _try_rename(run_dir: Path) -> Finding:
    probe = run_dir / f".doctor-{os.getpid()}"
    new, old = probe / "new", probe / "old"
    started = time.perf_counter()
    try:
        new.mkdir(parents=True)
        (new / "file").write_bytes(b"1" * 65_537)
        sync(new / "file")
        sync(new)
        new.rename(old)
        sync(probe)
        if (old / "file").read_bytes() != b"1" * 65_537 or new.exists():
            return Finding("fsync and rename", "error", f"{run_dir}: a renamed folder is not what was written")
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    took_s = time.perf_counter() - started
    if took_s > _SLOW_FSYNC_S:
        return Finding("fsync and rename", "warning", f"work, but took {took_s:.1f} s: checkpoints will be slow here")
    return Finding("fsync and rename", "ok", f"work, {1000 * took_s:.0f} ms")


def _try_lock(run_dir: Path) -> Finding:
    """Lock a probe twice, which must fail, and look whether somebody holds the run."""
    probe = run_dir / f".doctor-lock-{os.getpid()}"
    try:
        with probe.open("wb") as first, probe.open("wb") as second:
            lock_file(first.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, probe, "choose another run_dir")
            if _can_lock(second.fileno()):
                return Finding("lock", "error", f"{run_dir}: locks do not work here; two runs could mix their files")
    finally:
        probe.unlink(missing_ok=True)
    lock = run_dir / LOCK_NAME
    if lock.exists():
        with lock.open("rb") as file:
            if not _can_lock(file.fileno()):
                return Finding("lock", "error", describe_holder(run_dir))
    return Finding("lock", "ok", "locks work, and no process holds the run")


def _can_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_disk(recipe: Recipe, run_dir: str | Path, checkpoint: CheckpointConfig) -> Finding:
    """Compare free space with what checkpoints take, as measured on the newest one or estimated from the model."""
    storage = run_storage(run_dir, checkpoint)
    room = measure_room(storage, lambda: _estimate_checkpoint(recipe))
    if room is None:
        return Finding("disk space", "ok", f"checkpoints go to {storage.location}, whose room is not checked")
    if room.checkpoint_bytes == 0:
        return Finding("disk space", "warning", f"{room}: unknown, since the model is not on this machine")
    return Finding("disk space", "ok" if room.is_enough else "error", str(room))


def _estimate_checkpoint(recipe: Recipe) -> int:
    """Return the bytes of a checkpoint; 0 if the model's configs cannot be read."""
    from pipeline.assembly.skeleton import build_skeleton
    from pipeline.training.optim import checkpoint_bytes  # torch and transformers take seconds to load

    try:
        return checkpoint_bytes(build_skeleton(recipe), recipe.training)
    except (ValueError, OSError):
        return 0


def check_checkpoints(run_dir: str | Path, checkpoint: CheckpointConfig) -> Finding:
    """Verify what a run would continue from."""
    storage = run_storage(run_dir, checkpoint)
    try:
        generations = storage.generations()
    except OSError as error:
        return Finding("checkpoints", "error", f"{storage.location} cannot be listed: {error}")
    if not generations:
        return Finding("checkpoints", "ok", "none yet: the run starts at step 0")
    defects = []
    for generation in reversed(generations):
        try:
            verify(storage, generation)
        except CheckpointError as error:
            defects.append(str(error))
            continue
        if defects:
            return Finding("checkpoints", "warning", f"the run continues from step {generation.step}; {defects[0]}")
        return Finding("checkpoints", "ok", f"the run continues from step {generation.step}, every byte verified")
    return Finding("checkpoints", "error", f"all failed verification: {defects[0]}; no run would start")
