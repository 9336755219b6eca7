"""The manifest's bytes: what is written is read back, and anything else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.checkpoint.manifest import (
    CHECKPOINT_FOLDER,
    MANIFEST_NAME,
    CheckpointError,
    FileProof,
    Manifest,
    decode_manifest,
    encode_manifest,
)

MANIFEST = Manifest(
    step=7,
    files={"model.safetensors": FileProof(13, "ab" * 32)},
    state={"seed": 3, "name": "d\u00e9j\u00e0"},
    score=0.5,
)
BODY: dict[str, Any] = {
    "format": 2,
    "step": 7,
    "score": 0.5,
    "files": {"model.safetensors": {"size": 13, "sha256": "ab" * 32}},
    "state": {"seed": 3, "name": "d\u00e9j\u00e0"},
}
DIGEST = "1b126ab2f89f817ae30e7d9e93a313cd1cef4a9dcae15ad7ad1ba3596128e36a"


def test_encode_manifest_keeps_its_golden_form() -> None:
    # Checkpoints on disk have this form: a change here would make all of them unreadable.
    tree = json.loads(encode_manifest(MANIFEST))
    assert tree == {"body": BODY, "sha256": DIGEST}


@pytest.mark.parametrize("score", [None, 0.0, -1.5])
def test_decode_manifest_reads_what_was_encoded(score: float | None) -> None:
    manifest = Manifest(MANIFEST.step, MANIFEST.files, MANIFEST.state, score)
    assert decode_manifest(encode_manifest(manifest), "here") == manifest
    assert Manifest(7, {}, {}) == Manifest(7, {}, {}, None)


@pytest.mark.parametrize(
    "change", [{"step": 8}, {"score": None}, {"state": {}}, {"files": {}}, {"format": 3}, {"more": 1}]
)
def test_decode_manifest_whose_body_changed_is_refused(change: dict[str, Any]) -> None:
    tree = {"body": BODY | change, "sha256": DIGEST}
    with pytest.raises(CheckpointError, match="checkpoint here: the manifest changed since it was written"):
        decode_manifest(json.dumps(tree).encode(), "here")


def test_decode_manifest_of_another_format_says_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.checkpoint.manifest._FORMAT", 9)
    content = encode_manifest(MANIFEST)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="checkpoint here: format 9, this version reads 2"):
        decode_manifest(content, "here")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b"null", b"{}", b'{"body": {}}', b"\xff\xfe", b'{"sha256": ""}', b'"text"']
)
def test_decode_manifest_that_is_none_is_refused_as_unreadable(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="checkpoint here: manifest unreadable"):
        decode_manifest(content, "here")


def test_manifest_is_looked_for_under_its_documented_name() -> None:
    assert (CHECKPOINT_FOLDER, MANIFEST_NAME) == ("checkpoints", "MANIFEST.json")


def test_decode_manifest_does_not_depend_on_the_order_of_keys() -> None:
    turned = {key: BODY[key] for key in reversed(BODY)}
    assert decode_manifest(json.dumps({"body": turned, "sha256": DIGEST}).encode(), "here") == MANIFEST
