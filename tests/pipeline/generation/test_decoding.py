"""A batch that rows join and leave answers, token for token, what transformers' `generate` answers to each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.fusion.resolution import ImageView
from model.hub.weights import LlavaModel, build_llava
from model.vision.pixels import normalize_pixels, pixel_stats_of
from pipeline.generation.decoding import Decoder
from pipeline.generation.requests import Prompt, Reply, Sampling
from pipeline.samples.encode import EncodedImage
from pipeline.samples.prompt.ending import Ending
from tests.model.conftest import tokenizer as word_tokenizer
from tests.model.tiny import KINDS, save_tiny_backbone, save_tiny_tower

X = IMAGE_TOKEN_INDEX
NUM_PATCHES = 9
NEW = 13

tokenizer = word_tokenizer


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_tower("clip_vision_model", tmp_path_factory.mktemp("tower"))


def build(kind: str, folder: Path, tower: str) -> LlavaModel:
    torch.manual_seed(3)
    model = build_llava(save_tiny_backbone(kind, folder), tower)
    model.train(False)
    return model


@pytest.fixture(scope="module")
def llama(tower: str, tmp_path_factory: pytest.TempPathFactory) -> LlavaModel:
    return build("llama", tmp_path_factory.mktemp("llama"), tower)


def prompt(ids: list[int], seed: int = 0) -> Prompt:
    """A prompt whose images are noise of the tower's size."""
    generator = np.random.default_rng(seed)
    images = tuple(
        EncodedImage(ImageView(21, 21), generator.integers(0, 256, (1, 21, 21, 3), np.uint8))
        for _ in range(ids.count(X))
    )
    return Prompt(np.array(ids, np.int64), images, len(ids) + len(images) * (NUM_PATCHES - 1))


PROMPTS = [
    prompt([1, X, 5, 6, X], 1),
    prompt([4, 5]),
    prompt([7, X, 8], 2),
    prompt([1, 9, 11, 3, 8, 41]),
    prompt([X], 3),
]


def by_transformers(model: LlavaModel, one: Prompt, stop_ids: list[int]) -> list[int]:
    """Ask one prompt through transformers' own loop."""
    stats = pixel_stats_of(model.config)
    images = [normalize_pixels(torch.from_numpy(image.pixels), stats, torch.float32) for image in one.images]
    ids = torch.from_numpy(one.input_ids)[None]
    options: dict[str, Any] = {"eos_token_id": stop_ids or None, "pad_token_id": 0, "do_sample": False}
    return [int(i) for i in model.generate(ids, images=images or None, max_new_tokens=NEW, **options)[0]]


def run(decoder: Decoder, replies: dict[int, Reply], texts: dict[int, str], num_steps: int = 99) -> None:
    for _ in range(num_steps):
        for progress in decoder.step():
            texts[progress.row] = texts.get(progress.row, "") + progress.text
            if progress.reply is not None:
                assert progress.row not in replies
                replies[progress.row] = progress.reply


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_join_and_leave_answer_as_alone(
    kind: str, tower: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build(kind, tmp_path, tower)
    unstopped = [by_transformers(model, one, []) for one in PROMPTS]
    stop_ids = [unstopped[0][3], unstopped[2][8]]  # the first row ends early, and others where they happen to
    wanted = [by_transformers(model, one, stop_ids) for one in PROMPTS]
    assert len({len(ids) for ids in wanted}) > 1

    decoder = Decoder(model, tokenizer, Ending(tuple(stop_ids), ""))
    replies: dict[int, Reply] = {}
    texts: dict[int, str] = {}
    sampling = Sampling(NEW)
    order = [1, 0, 3, 2, 4]  # a short row first, so that longer ones join it, and the other way round
    for place in order[:2]:
        decoder.add(PROMPTS[place], sampling)
    run(decoder, replies, texts, num_steps=3)
    for place in order[2:]:
        decoder.add(PROMPTS[place], sampling)
        run(decoder, replies, texts, num_steps=2)
    run(decoder, replies, texts)
    assert decoder.num_rows == 0
    assert [list(replies[row].token_ids) for row in range(5)] == [wanted[place] for place in order]
    for row, place in enumerate(order):
        ended = wanted[place][-1] in stop_ids
        assert replies[row].finish_reason == ("stop" if ended else "length")
        spelled = tokenizer.decode(wanted[place][: -1 if ended else None], skip_special_tokens=True)
        assert replies[row].text == texts[row] == spelled
        assert replies[row].num_prompt_tokens == PROMPTS[place].num_tokens


def test_cancelled_rows_report_what_they_have_and_leave_the_others_alone(
    llama: LlavaModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    wanted = [by_transformers(llama, one, []) for one in PROMPTS]
    decoder = Decoder(llama, tokenizer, Ending((), ""))
    replies: dict[int, Reply] = {}
    texts: dict[int, str] = {}
    for one in PROMPTS[:3]:
        decoder.add(one, Sampling(NEW))
    run(decoder, replies, texts, num_steps=5)
    late = decoder.add(PROMPTS[3], Sampling(NEW))
    decoder.cancel(0)
    decoder.cancel(late)
    run(decoder, replies, texts)
    assert [replies[row].finish_reason for row in range(4)] == ["cancelled", "length", "length", "cancelled"]
    assert list(replies[0].token_ids) == wanted[0][:5]
    assert [list(replies[row].token_ids) for row in (1, 2)] == wanted[1:3]
    assert replies[late].token_ids == ()
    assert all(replies[row].text == texts[row] for row in replies)
    decoder.cancel(1)
    assert decoder.step() == []


def test_a_sampled_row_draws_the_same_in_any_company(llama: LlavaModel, tokenizer: PreTrainedTokenizerBase) -> None:
    samplings = [Sampling(NEW, temperature=1.3, top_p=0.9, seed=seed) for seed in (0, 1, 0, 2, 3)]
    same = [PROMPTS[0]] * 5

    def answers(prompts: list[Prompt], chosen: list[Sampling]) -> list[tuple[int, ...]]:
        decoder, replies = Decoder(llama, tokenizer, Ending((), "")), dict[int, Reply]()
        for one, sampling in zip(prompts, chosen, strict=True):
            decoder.add(one, sampling)
        run(decoder, replies, {})
        return [replies[row].token_ids for row in range(len(prompts))]

    alone = [answers([one], [sampling])[0] for one, sampling in zip(same, samplings, strict=True)]
    assert alone[0] == alone[2]
    assert len({alone[0], alone[1], alone[3], alone[4]}) == 4
    assert answers(same, samplings) == alone
    mixed = answers([PROMPTS[0], PROMPTS[1], PROMPTS[3]], [samplings[1], Sampling(NEW), samplings[3]])
    assert mixed[0] == alone[1]
    assert list(mixed[1]) == by_transformers(llama, PROMPTS[1], [])


def test_stop_texts_end_their_own_row_only(llama: LlavaModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = by_transformers(llama, PROMPTS[1], [])
    words = [str(tokenizer.decode(token)) for token in ids]
    stop = " ".join(words[3:5])[1:-1]  # begins and ends inside of tokens
    decoder, replies, texts = Decoder(llama, tokenizer, Ending((), "")), dict[int, Reply](), dict[int, str]()
    decoder.add(PROMPTS[1], Sampling(NEW, stop=("never said", stop)))
    decoder.add(PROMPTS[1], Sampling(NEW))
    run(decoder, replies, texts)
    whole = " ".join(words)
    assert replies[0].text == texts[0] == whole[: whole.index(stop)].rstrip()
    assert (replies[0].finish_reason, list(replies[0].token_ids)) == ("stop", ids[:5])
    assert (replies[1].finish_reason, replies[1].text) == ("length", whole)


def test_a_stop_text_that_is_a_control_token_ends_the_row(
    llama: LlavaModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = by_transformers(llama, PROMPTS[1], [])
    tokenizer.add_special_tokens({"additional_special_tokens": [str(tokenizer.decode(ids[2]))]})
    decoder, replies = Decoder(llama, tokenizer, Ending((), "")), dict[int, Reply]()
    decoder.add(PROMPTS[1], Sampling(NEW, stop=(str(tokenizer.decode(ids[2])),)))
    run(decoder, replies, {})
    assert (list(replies[0].token_ids), replies[0].finish_reason) == (ids[:3], "stop")
