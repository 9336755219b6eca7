"""The inspect command on data that attacks the page: what it shows, that nothing in it can run, its exit codes."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from webdataset import TarWriter

from tests.jobs.conftest import RunCommand, png

SCRIPT = '<script>alert("x")</script>'
IMAGE = "<img src=http://evil.example/x onerror=alert(1)>"
KEY = "k</article></style>" + SCRIPT.replace("/", "_")


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def conversation(question: str, answer: str) -> bytes:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({"conversations": turns}).encode()


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A shard with two good samples and two rejected ones, all of them hostile."""
    shard = tmp_path / "train-000.tar"
    with TarWriter(str(shard)) as writer:
        writer.write(
            {"__key__": KEY, "png": png(3, 37, 41), "json": conversation(f"<image>\n{SCRIPT} \u202e", f"{IMAGE} yes")}
        )
        writer.write({"__key__": "broken" + IMAGE.replace(".", "").replace("/", ""), "png": b"\x89PNG" + b"x" * 40})
        writer.write(
            {"__key__": "role", "json": conversation("q", "a").replace(b"human", b"<script>alert(2)</script>")}
        )
        writer.write({"__key__": "text", "json": conversation("Two\nlines?", "Yes.")})
    overrides = [f"data.shards=[{shard}]", f"run_dir={tmp_path / 'run'}", "model.pretrain_mm_mlp_adapter=null"]
    return ["-c", "nlvr_finetune", *overrides, "training.global_batch_size=3", "training.num_epochs=2"]


def assert_harmless(page: Page) -> None:
    """Only our elements, nothing that runs, nothing that is fetched."""
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "object", "link", "form", "base"})
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/webp;base64,")), (tag, attributes)


def test_inspect_overview_shows_samples_and_reasons_and_lets_nothing_run(
    run_command: RunCommand, tmp_path: Path, arguments: list[str]
) -> None:
    ended = run_command("inspect", *arguments, "--num-samples", "2")
    assert ended.exit_code in (None, 0)
    page = Page((tmp_path / "run" / "inspect.html").read_text())
    assert_harmless(page)
    for shown in ("missing_annotation", "role_unknown"):
        assert shown in page.text
        assert shown in ended.output
    assert KEY in page.text
    assert "\\u202e" in page.text
    assert sum(tag == "rect" for tag, _ in page.elements) > 3
    assert sum(tag == "img" for tag, _ in page.elements) == 2  # contact sheet and sample; the broken one cannot show


def test_inspect_sample_shows_its_tokens_or_why_it_was_rejected(
    run_command: RunCommand, tmp_path: Path, arguments: list[str]
) -> None:
    assert run_command("inspect", *arguments, "--sample", "train-000.tar:0").exit_code in (None, 0)
    page = Page((tmp_path / "run" / "inspect-sample-0.html").read_text())
    assert_harmless(page)
    trained = [
        attributes for tag, attributes in page.elements if tag == "bdi" and "trained" in str(attributes["class"])
    ]
    assert len(trained) > 3
    ended = run_command("inspect", *arguments, "--sample", "0:role", "--out", str(tmp_path / "role.html"))
    assert "role_unknown" in ended.output
    assert "<script>alert(2)</script>" in Page((tmp_path / "role.html").read_text()).text
    assert_harmless(Page((tmp_path / "role.html").read_text()))


def test_inspect_step_shows_ranks_micro_batches_and_what_was_logged(
    run_command: RunCommand, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "run"
    (run / "quarantine").mkdir(parents=True)
    (run / "metrics.jsonl").write_text(
        '{"step": 0, "metrics": {"train/loss": 3.0}}\n{"step": 1, "metrics": {"train/loss": 17.25}}\n'
    )
    rejected = {"step": 1, "sample_id": 3, "reason": "content_hash_mismatch", "detail": "x"}
    (run / "quarantine" / "rank-00000.jsonl").write_text(json.dumps(rejected) + "\n")
    ended = run_command("inspect", *arguments, "--step", "1", "--workers", "2")
    assert ended.exit_code in (None, 0)
    assert "train/loss: 17.25" in ended.output
    assert "content_hash_mismatch" in ended.output
    page = Page((run / "inspect-step-1.html").read_text())
    assert_harmless(page)
    for shown in ("Rank 0", "Rank 1", "Micro-batch 0", "17.25", "content_hash_mismatch"):
        assert shown in page.text
    assert sum(tag == "article" for tag, _ in page.elements) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--step", "99"), "step 99 is outside the run's 2 steps"),
        (("--sample", "9:0"), "not among the 1 shards"),
        (("--sample", "0:0", "--step", "0"), "give one of them"),
        (("--step", "0", "--workers", "-2"), "greater than or equal to 1"),
        (("--step", "0", "--workers", "0"), "greater than or equal to 1"),
    ],
)
def test_inspect_of_what_does_not_exist_ends_with_two(
    run_command: RunCommand, arguments: list[str], options: tuple[str, ...], message: str
) -> None:
    ended = run_command("inspect", *arguments, *options)
    assert ended.exit_code == 2
    assert message in " ".join(ended.messages.split())


def test_mix_that_cannot_be_planned_is_still_shown_with_the_reason(
    run_command: RunCommand, tmp_path: Path, arguments: list[str]
) -> None:
    good, bad = arguments[2].removeprefix("data.shards="), tmp_path / "bad.tar"
    with TarWriter(str(bad)) as writer:
        writer.write({"__key__": "k", "txt": b"no image"})
    sources = f"data.sources={{good: {{shards: {good}, weight: 1}}, bad: {{shards: [{bad}], weight: 1}}}}"
    mix = [*arguments[:2], sources, *arguments[3:]]
    ended = run_command("inspect", *mix, "--num-samples", "0")
    assert ended.exit_code in (None, 0)
    assert "missing_image" in ended.output
    assert "a run on these data would be refused: source 'bad' has no usable sample" in " ".join(ended.output.split())
    assert "missing_image" in run_command("inspect", *mix, "--sample", "bad.tar:0").output
    ended = run_command("inspect", *mix, "--step", "0")
    assert (ended.exit_code, "there are no steps: source 'bad'" in " ".join(ended.messages.split())) == (2, True)


def test_inspect_step_of_a_run_started_on_another_seed_is_refused(
    run_command: RunCommand, tmp_path: Path, arguments: list[str]
) -> None:
    assert run_command("finetune", *arguments, "--dry-run").exit_code in (None, 0)
    from jobs.config_source import read_config

    config = read_config("nlvr_finetune", [*arguments[2:], "seed=11"]).with_absolute_paths()
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    ended = run_command("inspect", *arguments, "--step", "0")
    assert ended.exit_code == 2
    assert "seed: the run was started with 11" in ended.messages


def test_inspect_hygiene_shows_copies_and_outliers(run_command: RunCommand, arguments: list[str]) -> None:
    folder = Path(next(one for one in arguments if one.startswith("run_dir=")).partition("=")[2]).parent
    shard = folder / "more.tar"
    with TarWriter(str(shard)) as writer:
        for key, question in (("one", "<image>\nWhat is it?"), ("two", "<image>\nWhat  is it")):
            writer.write({"__key__": key, "png": png(7, 37, 41), "json": conversation(question, f"{IMAGE} A ball.")})
    arguments = [*arguments, f"data.shards=[{folder / 'train-000.tar'},{shard}]"]
    ended = run_command("inspect", *arguments, "--hygiene")
    assert ended.exit_code == 0, ended.output
    text = (folder / "run" / "inspect-hygiene.html").read_text(encoding="utf-8")
    page = Page(text)
    assert_harmless(page)
    assert "Copies of an earlier sample, each after it: 1" in page.text
    assert "not is_duplicate" in page.text
    assert [tag for tag, _ in page.elements].count("img") >= 2
    assert run_command("inspect", *arguments, "--hygiene", "--step", "0").exit_code == 2
