"""The chat page is served whole and closed to other sites; prompts and held-out samples are what the model gets."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.serving.answering.local import LocalBackend
from pipeline.serving.answering.opening import open_any
from pipeline.serving.answering.replica import Replica
from pipeline.serving.app import ChatServer
from pipeline.serving.options import ServedModel, ServeOptions
from pipeline.serving.page.examples import held_out_shards, read_examples
from pipeline.serving.page.routes import ChatPage
from pipeline.tools.demo.shards import DemoSizes, write_demo_shards
from tests.pipeline.serving.conftest import image_part, listening


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_demo_shards(tmp_path_factory.mktemp("shards"), DemoSizes(pretrain=2, finetune=2, held_out=5))[
        "held_out"
    ]


@pytest.fixture(scope="module")
def address(replica: Replica, held_out: list[str]) -> Iterator[str]:
    page = ChatPage(replica.describe, read_examples(held_out))
    options = ServeOptions((ServedModel("tiny", "unused"),), api_key="a long key")
    with listening(ChatServer(options, LocalBackend(replica), page)) as address:
        yield address


KEY = {"Authorization": "Bearer a long key"}


def test_page_needs_no_key_and_runs_only_its_own_script(address: str) -> None:
    page = httpx.get(f"{address}/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert name == "data:," or httpx.get(f"{address}/{name}").status_code == 200
    assert not re.search(r"<script>|\son\w+=|style=", page.text), "the policy would block it"
    script = httpx.get(f"{address}/chat.js").text
    assert "innerHTML" not in script
    used = set(re.findall(r'at\("([\w-]+)"\)', script))
    assert used <= set(re.findall(r'id="([\w-]+)"', page.text)), "the script looks for elements that are there"
    for path in ("/chat/example", "/chat/prompt"):
        assert httpx.get(f"{address}{path}").status_code == 401


def test_prompt_is_what_the_model_gets(address: str, model_folder: Path) -> None:
    content: list[Any] = [image_part(1, 53, 37), {"type": "text", "text": "One.\n"}, image_part(2, 31, 61)]
    body = {"messages": [{"role": "user", "content": content}]}
    view = httpx.post(f"{address}/chat/prompt", json=body, headers=KEY).json()
    encoder = open_any(model_folder).opened.encoder
    num_features = encoder.resolution.tile_features
    assert view["images"] == [
        {"width": 53, "height": 37, "num_tiles": 1, "num_tokens": num_features},
        {"width": 31, "height": 61, "num_tiles": 1, "num_tokens": num_features},
    ]
    assert [kind for kind, _ in view["pieces"]] == ["special", "text", "image", "text", "image", "text"]
    assert "".join(text for _, text in view["pieces"]).endswith("One.\n ASSISTANT:")
    answer = httpx.post(f"{address}/v1/chat/completions", json=body | {"max_tokens": 1}, headers=KEY, timeout=60)
    assert answer.json()["usage"]["prompt_tokens"] == view["num_tokens"]
    wrong = httpx.post(f"{address}/chat/prompt", json={"messages": []}, headers=KEY)
    assert wrong.status_code == 400


def test_example_is_a_held_out_sample_with_its_pictures_in_place(address: str, held_out: list[str]) -> None:
    samples = {one.sample.key: one.sample for one in read_examples(held_out)}
    found = [httpx.get(f"{address}/chat/example", headers=KEY).json() for _ in range(20)]
    assert len({one["key"] for one in found}) > 1
    for one in found:
        sample = samples[one["key"]]
        assert one["question"].count("<image>") == len(one["images"])
        images = [base64.b64decode(url.partition(",")[2]) for url in one["images"]]
        assert images == list(sample.images[: len(images)])
        assert one["answer"] == sample.conversation.turns[1].text.strip()


def test_page_without_held_out_samples_says_how_to_get_some(replica: Replica) -> None:
    chat = ChatServer(ServeOptions((ServedModel("tiny", "x"),)), LocalBackend(replica), ChatPage(replica.describe, ()))
    with listening(chat) as address:
        told = httpx.get(f"{address}/chat/example")
    assert told.status_code == 404
    assert "--examples SHARDS" in told.json()["error"]["message"]


def test_held_out_shards_are_those_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text("evaluation: {shards: [a.tar, b.tar]}\n")
    checkpoint = tmp_path / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "MANIFEST.json").write_text('{"state": {"config": {"evaluation": {"shards": ["c.tar"]}}}}')
    assert held_out_shards(tmp_path) == held_out_shards(tmp_path / "model") == ["a.tar", "b.tar"]
    assert held_out_shards(checkpoint) == ["c.tar"]
    (tmp_path / "config.yaml").write_text("evaluation:\n")
    assert held_out_shards(tmp_path) == []
