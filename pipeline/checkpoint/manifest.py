"""The manifest of a checkpoint, written last: digests of every file, and the state of the run besides tensors.

`MANIFEST.json` is `{"body": {"format", "step", "score", "files": {NAME: {"size", "sha256"}}, "state"}, "sha256"}`, the
last over the body as sorted JSON. Needs no torch, so that reading a run's position does not load it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

CHECKPOINT_FOLDER = "checkpoints"
MANIFEST_NAME = "MANIFEST.json"
_FORMAT = 2


class CheckpointError(ValueError):
    """A checkpoint does not hold what its manifest says."""


class FileProof(NamedTuple):
    """What a file must be like."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of a checkpoint's manifest."""

    step: int
    """Optimizer steps done; the next one to run."""
    files: dict[str, FileProof]
    state: dict[str, Any]
    """Facts of the run: fingerprints, counters, config."""
    score: float | None = None
    """What retention compares, lower is better; None when it was not measured."""


def encode_manifest(manifest: Manifest) -> bytes:
    """Serialise a manifest with a digest over itself."""
    body = {
        "format": _FORMAT,
        "step": manifest.step,
        "score": manifest.score,
        "files": {name: proof._asdict() for name, proof in manifest.files.items()},
        "state": manifest.state,
    }
    return json.dumps({"body": body, "sha256": _body_digest(body)}, indent=1).encode()


def decode_manifest(content: bytes, where: str) -> Manifest:
    """Read what `encode_manifest` wrote; `where` names the checkpoint in messages.

    Raises:
        CheckpointError: it is unreadable, changed since it was written, or of another format.
    """
    try:
        tree = json.loads(content)
        body = tree["body"]
        if tree["sha256"] != _body_digest(body):
            raise CheckpointError(f"checkpoint {where}: the manifest changed since it was written")
        if body["format"] != _FORMAT:
            raise CheckpointError(f"checkpoint {where}: format {body['format']!r}, this version reads {_FORMAT}")
        files = {name: FileProof(entry["size"], entry["sha256"]) for name, entry in body["files"].items()}
        return Manifest(int(body["step"]), files, body["state"], body["score"])
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {where}: manifest unreadable ({error!r})") from error


def _body_digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
