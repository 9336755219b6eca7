"""Checkpoints as transactions: one counts only once its manifest, written last, proves every byte of it.

Tensors in safetensors, all else in the manifest, never pickle. A checkpoint is `GROUP.safetensors` per group of tensors
(model, optimizer, random), or, when every rank writes its own share, `GROUP-RANK.safetensors` in the Hugging Face
format of torch.distributed.checkpoint, which any number of ranks can read. Ranks prove their shares by
`part-RANK.json`, `{NAME: [size, sha256]}`; rank 0 gathers these into the manifest. A process killed anywhere leaves the
previous one.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict

from pipeline.training.checkpoint_cache import local_folder
from pipeline.training.checkpoint_storage import CheckpointStorage, open_storage
from pipeline.training.fault_points import reached
from pipeline.training.manifest import MANIFEST_NAME, FileProof, Manifest, encode_manifest
from pipeline.training.retention import superseded
from pipeline.training.tensor_file import Piece, whole, write_tensors
from pipeline.training.verification import Position, newest_verified, readable_manifests

_PARTS_TIMEOUT_S = 600.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, on this machine's disk."""

    folder: Path
    step: int
    """Optimizer steps done; the next one to run."""
    state: dict[str, Any]
    """Everything that is no tensor: fingerprints, counters, config."""

    def specs(self, group: str) -> dict[str, TensorStorageMetadata]:
        """Return shape and type of every whole tensor of a group."""
        names: set[str] = set()
        for path in [self.folder / f"{group}.safetensors", *self.folder.glob(f"{group}-*.safetensors")]:
            if path.is_file():
                with safe_open(path, framework="pt") as file:
                    names.update(file.keys())
        found = HuggingFaceStorageReader(str(self.folder)).read_metadata().state_dict_metadata
        return {name: spec for name, spec in found.items() if name in names and isinstance(spec, TensorStorageMetadata)}

    def tensors(self, group: str) -> dict[str, Tensor]:
        """Load a group of tensors, whole, on the CPU."""
        specs = self.specs(group)
        targets = {name: torch.empty(spec.size, dtype=spec.properties.dtype) for name, spec in specs.items()}
        self.load_into(targets)
        return targets

    def load_into(self, targets: dict[str, Tensor]) -> None:
        """Fill tensors, sharded or whole, by name; this rank reads its own shards only."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # meant: every rank for itself
            load_state_dict(dict(targets), storage_reader=HuggingFaceStorageReader(str(self.folder)), no_dist=True)


@dataclass(frozen=True)
class SaveJob:
    """One rank's share of a checkpoint, complete in host memory."""

    step: int
    """Optimizer steps done."""
    groups: Mapping[str, Mapping[str, Piece]]
    """Groups of tensors, a file each."""
    state: Mapping[str, Any]
    """JSON-serialisable facts; used on rank 0."""
    score: float | None = None
    """For retention, lower is better."""
    token: str = field(default_factory=lambda: new_token(0))
    """The same on all ranks, another for every save."""
    rank: int = 0
    num_writers: int = 1
    """Ranks that write; 1 when rank 0 has everything."""


def new_token(attempt: int) -> str:
    """Return a name part that no other save has; those of later attempts sort after it."""
    return f"{attempt:04d}-{secrets.token_hex(4)}"


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(
        self,
        folder: str | Path | CheckpointStorage,
        keep_last: int,
        may_commit: Callable[[], None] = lambda: None,
        keep_best: int = 0,
        start_step: int | None = None,
    ) -> None:
        """Use a folder or an object store.

        Args:
            folder: where the checkpoints lie, as a path, a URL, or opened.
            keep_last: newest checkpoints kept.
            may_commit: called right before a checkpoint becomes visible; raises to prevent it.
            keep_best: checkpoints with the lowest score kept besides.
            start_step: where the run continued. Checkpoints of later steps are there because they are damaged:
                retention neither counts nor removes them.
        """
        self.storage = open_storage(folder) if isinstance(folder, str | Path) else folder
        self._keep_last, self._keep_best, self._may_commit = keep_last, keep_best, may_commit
        self._hurried = threading.Event()
        self._damaged: set[str] = set()
        if start_step is not None:
            self._damaged = {one.name for one in self.storage.generations() if one.step > start_step}

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        score: float | None = None,
    ) -> str:
        """Write a checkpoint of whole tensors; returns its name once it is durable.

        Args:
            step: optimizer steps done.
            tensors: groups of tensors, one safetensors file each.
            state: JSON-serialisable facts.
            score: what retention compares, lower is better.

        Raises:
            OSError: the storage refused (full, read-only); earlier checkpoints are untouched.
        """
        pieces = {name: {key: whole(tensor) for key, tensor in group.items()} for name, group in tensors.items()}
        return self.write(SaveJob(step, pieces, state, score))

    def write(self, job: SaveJob) -> str:
        """Write one rank's share; on rank 0, also wait for the others and commit. Returns the checkpoint's name.

        Raises:
            OSError: the storage refused, or another rank's share did not come; earlier checkpoints are untouched.
        """
        place = self.storage.begin(job.step, job.token)
        try:
            files = self._write_files(place, job)
            if job.rank != 0:
                return place
            files |= self._gather_parts(place, range(1, job.num_writers))
            manifest = Manifest(job.step, files, {**job.state, "step": job.step}, job.score)
            name = self._commit(place, manifest)
        except BaseException:
            if job.rank == 0:
                self.storage.discard(place)
            raise
        self._prune()
        return name

    def hurry(self) -> None:
        """Stop waiting for the shares of ranks that may be gone."""
        self._hurried.set()

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose every byte verifies; None when there is none."""
        position = newest_verified(self.storage)
        return None if position is None else self.open(position)

    def open(self, position: Position) -> Checkpoint:
        """Return a checkpoint that was verified before, brought to this machine if it lies in an object store.

        Raises:
            CheckpointError: it arrived damaged.
        """
        folder, manifest = local_folder(self.storage, position)
        return Checkpoint(folder, manifest.step, manifest.state)

    def _write_files(self, place: str, job: SaveJob) -> dict[str, FileProof]:
        files = {}
        for group, pieces in job.groups.items():
            if pieces:
                name = f"{group}.safetensors" if job.num_writers == 1 else f"{group}-{job.rank:05d}.safetensors"
                with self.storage.create(place, name) as stream:
                    files[name] = write_tensors(stream, pieces)
                reached("checkpoint.file_written")
        if job.rank != 0:
            with self.storage.create(place, _part_name(job.rank)) as stream:
                stream.write(json.dumps(files).encode())
            reached("checkpoint.part_written")
        return files

    def _gather_parts(self, place: str, ranks: Iterable[int]) -> dict[str, FileProof]:
        files: dict[str, FileProof] = {}
        deadline = time.monotonic() + _PARTS_TIMEOUT_S
        for rank in ranks:
            while not self.storage.exists(place, _part_name(rank)):
                if self._hurried.is_set() or time.monotonic() > deadline:
                    raise OSError(
                        f"checkpoint {self.storage.location}/{place}: rank {rank} did not write its share; the "
                        "checkpoint before it stays. All ranks must see this folder: use a shared one, or s3://"
                    )
                time.sleep(_POLL_S)
            with self.storage.open(place, _part_name(rank)) as file:
                content = file.read()
            files |= {name: FileProof(*proof) for name, proof in json.loads(content).items()}
            files[_part_name(rank)] = FileProof(len(content), hashlib.sha256(content).hexdigest())
        return files

    def _commit(self, place: str, manifest: Manifest) -> str:
        self._may_commit()
        with self.storage.create(place, MANIFEST_NAME) as stream:
            stream.write(encode_manifest(manifest))
        reached("checkpoint.manifest_written")
        self._may_commit()  # writing may have taken minutes
        name = self.storage.commit(place, manifest.step)
        self._damaged.discard(name)
        reached("checkpoint.committed")
        return name

    def _prune(self) -> None:
        manifests = readable_manifests(self.storage)
        scores = {name: manifest.score for name, manifest in manifests.items() if name not in self._damaged}
        for name in superseded(scores, self._keep_last, self._keep_best):
            self.storage.remove(name)
        reached("checkpoint.pruned")


def _part_name(rank: int) -> str:
    return f"part-{rank:05d}.json"
