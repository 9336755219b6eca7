"""What a user sees when the data or the config is wrong: one message that says what, where and what to do."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.cli import run as run_command_line
from tests.integration.conftest import WriteConfig

Members = Mapping[str, bytes]
RunCommand = Callable[..., tuple[int, str]]


def picture(side: int = 40) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def conversation(text: str, image: object = "0.jpg") -> bytes:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "two"}]
    return json.dumps({"id": "x", "conversations": turns, **({"image": image} if image else {})}).encode()


GOOD = {"good.0.jpg": picture(), "good.json": conversation("<image>\nHow many?")}
DEFECTS: dict[str, tuple[Members, str]] = {
    "missing image": ({"bad.json": conversation("<image>\nHow many?")}, "missing_image"),
    "too many placeholders": (
        {"bad.0.jpg": picture(), "bad.json": conversation("<image><image>\nHow many?")},
        "image_token_mismatch",
    ),
    "too few placeholders": ({"bad.0.jpg": picture(), "bad.json": conversation("How many?")}, "image_token_mismatch"),
    "broken JPEG": (
        {"bad.0.jpg": picture()[:400], "bad.json": conversation("<image>\nHow many?")},
        "image_truncated",
    ),
    "not an image": (
        {"bad.0.jpg": b"<html>404</html>", "bad.json": conversation("<image>\nHow many?")},
        "image_unsupported_format",
    ),
    "broken JSON": ({"bad.0.jpg": picture(), "bad.json": b'{"id": '}, "json_invalid"),
}


def write_shard(path: Path, *samples: Members) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (member for sample in samples for member in sample.items()):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RunCommand:
    """Run `ray-llava` in this process; returns its exit code and everything it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ray-llava", *arguments])
        with pytest.raises(SystemExit) as end:
            run_command_line()
        output = capfd.readouterr()
        return int(end.value.code or 0), output.out + output.err

    return run


@pytest.mark.parametrize("defect", DEFECTS)
def test_defective_sample_is_listed_with_shard_key_and_reason_and_the_rest_is_trained(
    defect: str, write_config: WriteConfig, tmp_path: Path, run_command: RunCommand
) -> None:
    members, reason = DEFECTS[defect]
    shard = write_shard(tmp_path / "mixed.tar", members, GOOD)
    config = str(write_config("run", "finetune"))
    code, output = run_command("index", "-c", config, f"data.shards=[{shard}]")
    assert code == 0, output
    assert reason in output
    assert "mixed.tar" in output
    assert "bad" in output
    code, output = run_command("finetune", "-c", config, f"data.shards=[{shard}]")
    assert code == 0, output
    assert "1 of 2 samples" in output


def test_rejected_sample_is_written_to_the_run_folder_once_and_counted_in_mlflow(
    write_config: WriteConfig, tmp_path: Path, run_command: RunCommand
) -> None:
    members, reason = DEFECTS["missing image"]
    shard = write_shard(tmp_path / "mixed.tar", GOOD, members)
    arguments = ["-c", str(write_config("run", "finetune")), f"data.shards=[{shard}]", "tracking.enabled=true"]
    for _ in range(2):  # a run, and the same command again
        code, output = run_command("finetune", *arguments)
        assert code == 0, output
    [line] = (tmp_path / "run" / "quarantine" / "index.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry.pop("detail")
    assert entry == {"sample_id": 1, "shard": str(shard), "key": "bad", "reason": reason}
    journal = [json.loads(line) for line in (tmp_path / "run" / "tracking.jsonl").read_text().splitlines()]
    logged = [operation["metrics"] for operation in journal if operation["kind"] == "metrics"]
    assert logged[0] == {f"data/rejected/{reason}": 1}


def test_cut_shard_stops_the_run_before_training_and_says_where(
    write_config: WriteConfig, tmp_path: Path, run_command: RunCommand
) -> None:
    shard = write_shard(tmp_path / "cut.tar", GOOD, {name.replace("good", "late"): data for name, data in GOOD.items()})
    shard.write_bytes(shard.read_bytes()[:2600])
    code, output = run_command("finetune", "-c", str(write_config("run", "finetune")), f"data.shards=[{shard}]")
    assert code == 3, output
    assert "cut.tar" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_nothing_usable_stops_the_run_with_the_reasons(
    write_config: WriteConfig, tmp_path: Path, run_command: RunCommand
) -> None:
    shard = write_shard(tmp_path / "bad.tar", {"bad.json": conversation("<image>\nHow many?")})
    code, output = run_command("finetune", "-c", str(write_config("run", "finetune")), f"data.shards=[{shard}]")
    assert code != 0
    assert "none of the 1 indexed samples is usable" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.shard=[x.tar]", "unknown key data.shard; did you mean 'shards'?"),
        ("data.shards=[/nowhere/a.tar]", "/nowhere/a.tar"),
        ("data.shards=[/nowhere/]", "/nowhere"),
        ("data.shards=['pipe:cat x']", "pipe"),
        ("model.language_model=/nowhere/lm", "/nowhere/lm"),
        ("model.vision_tower=/nowhere/tower", "/nowhere/tower"),
        ("model.pretrain_mm_mlp_adapter=/nowhere/run", "/nowhere/run"),
        ("model.mm_projector_type=mlp2x_gel", "mlp2x_gel"),
    ],
)
def test_wrong_config_ends_with_exit_code_2_and_one_message(
    override: str, message: str, write_config: WriteConfig, run_command: RunCommand
) -> None:
    code, output = run_command("pretrain", "-c", str(write_config("run")), override)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
