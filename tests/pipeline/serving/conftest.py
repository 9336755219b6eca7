"""A small model folder, and a server in this process that answers with it: HTTP over loopback, without Ray."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import openai
import pytest
import torch

from model.hub.weights import build_llava
from pipeline.assembly.folder import save_model_folder
from pipeline.config import DataConfig, ModelConfig
from pipeline.serving.answering.local import LocalBackend
from pipeline.serving.answering.replica import Replica
from pipeline.serving.app import ChatServer
from pipeline.serving.http_server import build_http_server
from pipeline.serving.limits import Limits
from pipeline.serving.options import ServedModel, ServeOptions
from pipeline.tools.demo.backbone_folders import LANGUAGE_MODEL, TOWER
from tests.jobs.conftest import png

DEFAULT_LIMITS = Limits()
Serve = Callable[..., "Running"]


@dataclasses.dataclass
class Running:
    """A server that listens."""

    address: str
    chat: ChatServer
    replica: Replica

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="no key", max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's backbones with a projector that was never trained; talkative."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    torch.manual_seed(7)
    parts = ModelConfig(language_model=str(LANGUAGE_MODEL), vision_tower=str(TOWER))
    model = build_llava(language_model=parts.language_model, vision_tower=str(parts.vision_tower))
    with torch.no_grad():  # it seldom ends an answer by itself, so that answers have a length
        model.get_output_embeddings().weight[2].zero_()
    data = DataConfig(shards=("a.tar",), template="v1", max_length=1024)
    save_model_folder(model, model.state_dict(), parts, data, folder)
    return folder


@pytest.fixture(scope="session")
def replica(model_folder: Path) -> Replica:
    return Replica((ServedModel("tiny", str(model_folder)),), "cpu", batch_rows=5, threads=1)


@contextmanager
def listening(chat: ChatServer) -> Iterator[str]:
    """Serve an application from a thread; yields its address."""
    server = build_http_server(chat.app)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(replica: Replica) -> Iterator[Running]:
    """One server for all tests that need no options of their own."""
    chat = ChatServer(ServeOptions((ServedModel("tiny", "unused"),), limits=Limits(images=7)), LocalBackend(replica))
    with listening(chat) as address:
        yield Running(address, chat, replica)


@pytest.fixture
def serve(replica: Replica) -> Iterator[Serve]:
    """Start a server with options of its own."""
    with ExitStack() as stack:

        def start(limits: Limits = DEFAULT_LIMITS, api_key: str | None = None, **more: object) -> Running:
            options = ServeOptions((ServedModel("tiny", "unused"),), limits=limits, api_key=api_key)
            chat = ChatServer(dataclasses.replace(options, **more), LocalBackend(replica))  # type: ignore[arg-type]
            return Running(stack.enter_context(listening(chat)), chat, replica)

        yield start


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(seed: int, width: int = 53, height: int = 37) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": data_url(png(seed, width, height))}}
