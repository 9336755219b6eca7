"""Train, evaluate, export, verify, serve, ask: one question has one greedy answer wherever it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PilImage
from transformers import AutoModelForImageTextToText, AutoProcessor

from pipeline.config import load_config
from pipeline.generation.requests import Sampling
from pipeline.launch.run import run_training
from pipeline.serving.answering.local import LocalBackend
from pipeline.serving.answering.replica import Replica
from pipeline.serving.app import ChatServer
from pipeline.serving.options import ServedModel, ServeOptions
from pipeline.serving.terminal import TerminalChat
from tests.integration.conftest import WriteConfig
from tests.jobs.conftest import RunCommand, png, run_command
from tests.pipeline.serving.conftest import Running, data_url, listening

__all__ = ["run_command"]

QUESTION = "What colour is the ball?"
NUM_TOKENS = 8


def test_one_question_has_one_answer_from_training_to_serving(
    write_config: WriteConfig, run_command: RunCommand, shards: dict[str, list[str]], tmp_path: Path
) -> None:
    # 1. Train both stages, evaluate, export; export ends with the check of `verify`.
    run_training(load_config(write_config("pre", "pretrain"), ["training.max_steps=2"]))
    projector = f"model.pretrain_mm_mlp_adapter={tmp_path / 'pre'}"
    run_training(load_config(write_config("fine", "finetune"), ["training.max_steps=7", projector]))
    run, exported, picture = tmp_path / "fine", tmp_path / "exported", tmp_path / "a.png"
    report = tmp_path / "report.json"
    assert run_command("evaluate", str(run), *shards["held_out"], "--report", str(report)).exit_code == 0
    assert json.loads(report.read_text())
    assert run_command("export", str(run), str(exported), "--dtype", "float32").exit_code == 0

    # 2. Ask the run, a checkpoint and the exported folder over HTTP with OpenAI's client.
    picture.write_bytes(png(3, 131, 67))
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    models = {"run": run, "checkpoint": checkpoint, "exported": exported}
    served = tuple(ServedModel(name, str(path)) for name, path in models.items())
    replica = Replica(served, "cpu", batch_rows=3, threads=1)
    chat = ChatServer(ServeOptions(served), LocalBackend(replica))
    answers = {}
    with listening(chat) as address:
        client = Running(address, chat, replica).client
        url = {"url": data_url(picture.read_bytes())}
        content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": QUESTION}]
        messages: Any = [{"role": "user", "content": content}]
        for name in models:
            found = client.chat.completions.create(model=name, messages=messages, max_tokens=NUM_TOKENS)
            answers[name] = found.choices[0].message.content

    # 3. Ask with `generate`, at the terminal, and plain transformers.
    generated = run_command("generate", str(run), QUESTION, "-i", str(picture), "--max-new-tokens", str(NUM_TOKENS))
    answers["generate"] = generated.output.strip()
    said: list[str] = []
    lines = iter([f"/image {picture}", QUESTION, "/quit"])
    TerminalChat(replica, "run", Sampling(NUM_TOKENS), said.append).run(lambda: next(lines))
    answers["terminal"] = "".join(said).splitlines()[-1]
    answers["transformers"] = ask_transformers(exported, picture)
    assert set(answers.values()) == {answers["run"]}
    assert answers["run"]
    replica.close()


def ask_transformers(folder: Path, picture: Path) -> str:
    processor: Any = AutoProcessor.from_pretrained(folder, backend="pil")
    content = [{"type": "image", "image": PilImage.open(picture)}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(processor.decode(ids, skip_special_tokens=True)).strip()
