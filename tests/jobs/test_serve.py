"""`ray-llava serve` as a user runs it: its own process, Ray Serve, two adapters on one base, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import psutil
import pytest
import torch

from model.hub.lora import adapter_state, add_lora
from model.hub.weights import pretrained_state
from pipeline.assembly.folder import save_adapter_folder
from pipeline.assembly.parts import join_parts
from pipeline.config import DataConfig, ModelConfig
from pipeline.generation.generator import Generator
from pipeline.generation.requests import Sampling
from pipeline.samples.prompt.conversation import Conversation, Image, Turn
from pipeline.serving.answering.opening import open_any
from pipeline.serving.answering.sharing import share_base
from tests.jobs.conftest import RunCommand, png
from tests.pipeline.serving.conftest import data_url, image_part, model_folder

__all__ = ["model_folder"]


def write_adapters(folder: Path, seed: int, base: Path) -> Path:
    """Adapters that change every answer."""
    torch.manual_seed(seed)
    parts = ModelConfig(language_model=str(base))
    model = join_parts(parts, None, torch.float32)
    add_lora(model, rank=3, alpha=6.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    data = DataConfig(shards=("a.tar",), template="v1", max_length=1024)
    save_adapter_folder(model, adapter_state(model), pretrained_state(model), parts, data, folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: write_adapters(root / name, seed, model_folder) for name, seed in (("cats", 3), ("dogs", 5))}


class Server(NamedTuple):
    process: subprocess.Popen[str]
    address: str
    messages: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.address, api_key="none", max_retries=0, timeout=120)


@pytest.fixture
def server(adapters: dict[str, Path], tmp_path: Path) -> Iterator[Server]:
    messages = tmp_path / "messages"
    command = [sys.executable, "-m", "jobs", "serve", str(adapters["cats"]), "--port", "0"]
    with messages.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--adapter", f"dogs={adapters['dogs']}", "--grace-s", "1"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving cats, dogs: http://127.0.0.1:"), messages.read_text()
    yield Server(process, line.split(": ")[1].strip(), messages)
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.mark.ray
def test_two_adapters_answer_by_name_and_sigterm_ends_a_stream_and_all_processes(
    server: Server, adapters: dict[str, Path]
) -> None:
    # 1. Each name gives the answer of its own folder.
    assert [one.id for one in server.client.models.list()] == ["cats", "dogs"]
    asked: Any = [{"role": "user", "content": [image_part(1), {"type": "text", "text": "What is it?"}]}]
    given = {}
    for name, folder in adapters.items():
        generator = Generator(*open_any(folder))
        prompt = generator.prepare(Conversation((Turn("user", (Image(), "What is it?")),)), [png(1, 53, 37)])
        answer = server.client.chat.completions.create(model=name, messages=asked, max_tokens=9, temperature=0)
        given[name] = answer.choices[0].message.content
        assert given[name] == generator.generate([prompt], [Sampling(9)])[0].text
    assert given["cats"] != given["dogs"]
    # 2. A refusal of the model's side arrives as one.
    url = {"url": data_url(png(1, 131, 97)[:2000])}
    cut: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]
    with pytest.raises(openai.BadRequestError, match="the image ends early"):
        server.client.chat.completions.create(model="dogs", messages=cut)
    # 3. SIGTERM while an answer is streamed: its text so far, an error event, the end.
    started = psutil.Process(server.process.pid).children(recursive=True)
    lines = []
    body = {"model": "cats", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 1900, "stream": True}
    body |= {"temperature": 1.0, "top_p": 0.3, "seed": 1}  # never draws an unlikely end
    with httpx.stream("POST", f"{server.address}/chat/completions", json=body, timeout=120) as response:
        for line in response.iter_lines():
            lines.append(line)
            if len(lines) == 5:
                server.process.send_signal(signal.SIGTERM)
                signalled = time.monotonic()
    assert "the server shut down" in lines[-4]
    assert lines[-2] == "data: [DONE]"
    assert server.process.wait(60) == 0
    assert time.monotonic() - signalled < 60
    # 4. Nothing is left, and nothing was said besides the address.
    gone, alive = psutil.wait_procs(started, timeout=30)
    assert started
    assert not alive, alive
    assert len(gone) == len(started)
    assert server.messages.read_text() == ""


def test_equal_weights_of_two_models_are_kept_once(adapters: dict[str, Path]) -> None:
    first, other = (open_any(folder).opened.model for folder in adapters.values())
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    num_bytes = share_base(first, other, "cats", "dogs")
    own, shared = dict(first.named_parameters()), dict(other.named_parameters())
    same = [name for name, tensor in shared.items() if tensor.data_ptr() == own[name].data_ptr()]
    assert sum(shared[name].nbytes for name in same) <= num_bytes
    assert all("lora_" in name or "mm_projector" in name for name in shared.keys() - set(same))
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_adapters_of_another_base_are_refused(adapters: dict[str, Path]) -> None:
    first, other = (open_any(folder).opened.model for folder in adapters.values())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    with pytest.raises(ValueError, match="its base is another one"):
        share_base(first, other, "cats", "dogs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: no such folder"),
        ((".", "--host", "0.0.0.0"), "set RAY_LLAVA_API_KEY"),
        ((".", "--adapter", "a"), "expected NAME=FOLDER"),
        ((".", "--name", "a b"), "model name 'a b'"),
        ((".", "--name", "a", "--adapter", "a=."), "the same name"),
        ((".", "--replicas", "3", "--max-replicas", "2"), "below --replicas"),
        ((".", "--host", "203.0.113.7", "--port", "8123"), "key"),
    ],
)
def test_wrong_option_is_refused_before_anything_starts(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.delenv("RAY_LLAVA_API_KEY", raising=False)
    ended = run_command("serve", *arguments)
    assert ended.exit_code == 2
    assert message in ended.messages


def test_port_that_is_taken_is_refused_before_the_model_is_opened(run_command: RunCommand) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run_command("serve", ".", "--port", str(taken.getsockname()[1]))
    assert ended.exit_code == 2
    assert "choose another --port" in ended.messages


def test_chat_refuses_what_is_not_a_folder(run_command: RunCommand) -> None:
    ended = run_command("chat", "nowhere", "--terminal")
    assert ended.exit_code == 2
    assert "nowhere: no such folder" in ended.messages
