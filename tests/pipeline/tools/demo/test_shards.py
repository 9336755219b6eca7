"""Samples and shards of the demo: reproducible, valid for the product's own reader, disjoint between splits."""

import json
from collections import Counter
from pathlib import Path

from pipeline.evaluation.questions import read_evaluation_samples
from pipeline.index.build import build_index
from pipeline.tools.demo.samples import caption_sample, conversation_sample, image_preamble
from pipeline.tools.demo.scenes import HELD_OUT_COMBINATIONS
from pipeline.tools.demo.shards import (
    DemoSizes,
    conversation_member_files,
    ensure_demo_shards,
    new_combination_keys,
    write_demo_shards,
)


def test_write_demo_shards_gives_samples_that_the_index_accepts(tmp_path: Path) -> None:
    shards = write_demo_shards(tmp_path / "shards", DemoSizes(pretrain=7, finetune=23, held_out=13))
    indices = {name: build_index(paths, tmp_path / name) for name, paths in shards.items()}
    assert {name: index.num_samples for name, index in indices.items()} == {
        "pretrain": 7,
        "finetune": 23,
        "held_out": 13,
    }
    assert all(index.usable.all() for index in indices.values())


def test_write_demo_shards_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    sizes = DemoSizes(pretrain=3, finetune=5, held_out=2)
    first = write_demo_shards(tmp_path / "a", sizes)
    second = write_demo_shards(tmp_path / "b", sizes)
    for name, paths in first.items():
        assert [Path(path).read_bytes() for path in paths] == [Path(path).read_bytes() for path in second[name]]


def test_ensure_demo_shards_writes_once_and_again_for_other_sizes(tmp_path: Path) -> None:
    sizes = DemoSizes(pretrain=3, finetune=2, held_out=5)
    first = ensure_demo_shards(tmp_path, sizes)
    before = {path: Path(path).stat().st_mtime_ns for paths in first.values() for path in paths}
    assert ensure_demo_shards(tmp_path, sizes) == first
    assert {path: Path(path).stat().st_mtime_ns for path in before} == before
    ensure_demo_shards(tmp_path, sizes._replace(held_out=7))
    assert build_index(first["held_out"], tmp_path / "index").num_samples == 7


def test_held_out_kinds_are_read_back(tmp_path: Path) -> None:
    shards = write_demo_shards(tmp_path / "shards", DemoSizes(pretrain=1, finetune=1, held_out=11))
    entries = read_evaluation_samples(build_index(shards["held_out"], tmp_path / "index"))
    expected = [tuple(q.kind for q in conversation_sample("held_out", idx).questions) for idx in range(11)]
    assert [entry.kinds for entry in entries] == expected


def test_conversations_have_none_to_three_images_in_several_formats() -> None:
    members = [conversation_member_files("finetune", idx) for idx in range(120)]
    extensions = [sorted(name for name in entry if name not in ("__key__", "json")) for entry in members]
    assert set(Counter(map(len, extensions))) == {0, 1, 2, 3}
    assert {name.rpartition(".")[2] for names in extensions for name in names} == {"jpg", "png"}
    records = [json.loads(entry["json"]) for entry in members]
    for names, record in zip(extensions, records, strict=True):
        assert record.get("image", []) == names
        assert sum(turn["value"].count("<image>") for turn in record["conversations"]) == len(names)
        assert len(record["kinds"]) * 2 == len(record["conversations"]) > 0


def test_splits_have_different_scenes_and_only_held_out_has_new_combinations() -> None:
    scenes = {
        split: [scene for idx in range(200) for scene in conversation_sample(split, idx).scenes]
        for split in ("finetune", "held_out", "backbones")
    }
    new = {
        split: any((t.color, t.shape) in HELD_OUT_COMBINATIONS for scene in shown for t in scene.things)
        for split, shown in scenes.items()
    }
    assert new == {"finetune": False, "held_out": True, "backbones": False}
    assert not set(scenes["finetune"]) & set(scenes["held_out"])
    assert caption_sample("pretrain", 3) == caption_sample("pretrain", 3) != caption_sample("pretrain", 5)


def test_new_combination_keys_name_the_samples_that_show_one() -> None:
    keys = new_combination_keys(40)
    for index in range(40):
        shown = {(t.color, t.shape) for scene in conversation_sample("held_out", index).scenes for t in scene.things}
        assert (f"held_out{index:06d}" in keys) == bool(shown & HELD_OUT_COMBINATIONS)
    assert 0 < len(keys) < 40


def test_image_preamble_numbers_several_images() -> None:
    assert image_preamble(1) == "<image>\n"
    assert image_preamble(2) == "First image: <image>\nSecond image: <image>\n"
