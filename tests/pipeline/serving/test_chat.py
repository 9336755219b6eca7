"""The `openai` client gets from the server what `generate` gets from the model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pipeline.generation.generator import Generator
from pipeline.generation.requests import Sampling
from pipeline.samples.prompt.conversation import Conversation, Image, Turn
from pipeline.serving.answering.opening import open_any
from pipeline.serving.limits import Limits
from tests.jobs.conftest import png
from tests.pipeline.serving.conftest import Running, Serve, image_part

TEXT = {"type": "text", "text": "What differs?"}


@pytest.fixture(scope="module")
def generator(model_folder: Path) -> Generator:
    return Generator(*open_any(model_folder))


def ask(server: Running, content: Any, **options: Any) -> Any:
    return server.client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], temperature=0, **options
    )


def expected(generator: Generator, parts: tuple[Any, ...], images: list[bytes], **sampling: Any) -> Any:
    prompt = generator.prepare(Conversation((Turn("user", parts),)), images)
    return generator.generate([prompt], [Sampling(**sampling)])[0]


def test_answer_is_that_of_generate(server: Running, generator: Generator) -> None:
    found = ask(server, [image_part(1), image_part(2, 31, 61), TEXT], max_tokens=11)
    parts = (Image(), Image(), "What differs?")
    reply = expected(generator, parts, [png(1, 53, 37), png(2, 31, 61)], max_new_tokens=11)
    assert reply.text
    assert found.choices[0].message.content == reply.text
    assert found.choices[0].finish_reason == ("stop" if reply.finish_reason == "stop" else "length")
    assert found.usage.prompt_tokens == reply.num_prompt_tokens
    assert found.usage.completion_tokens == len(reply.token_ids)
    assert found.model == "tiny"


def test_streamed_text_is_the_whole_answer_and_usage_comes_last(server: Running) -> None:
    content = [image_part(3), TEXT]
    whole = ask(server, content, max_tokens=17)
    chunks = list(ask(server, content, max_tokens=17, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 4, "it came in pieces"
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason


def test_second_turn_sees_the_first(server: Running, generator: Generator) -> None:
    turns: Any = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [image_part(5), {"type": "text", "text": "First?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [image_part(7), {"type": "text", "text": "And now?"}]},
    ]
    found = server.client.chat.completions.create(model="tiny", messages=turns, temperature=0, max_tokens=7)
    conversation = Conversation(
        (
            Turn("system", ("Be short.",)),
            Turn("user", (Image(), "First?")),
            Turn("assistant", ("yes",)),
            Turn("user", (Image(), "And now?")),
        )
    )
    prompt = generator.prepare(conversation, [png(5, 53, 37), png(7, 53, 37)])
    assert found.choices[0].message.content == generator.generate([prompt], [Sampling(7)])[0].text


def test_seed_decides_what_is_drawn(server: Running, generator: Generator) -> None:
    def draw(seed: int) -> str:
        message: Any = [{"role": "user", "content": "Tell me something."}]
        found = server.client.chat.completions.create(
            model="tiny", messages=message, temperature=1.7, top_p=0.9, seed=seed, max_tokens=13
        )
        return str(found.choices[0].message.content)

    sampled = {"max_new_tokens": 13, "temperature": 1.7, "top_p": 0.9}
    assert draw(3) == expected(generator, ("Tell me something.",), [], seed=3, **sampled).text
    assert len({draw(seed) for seed in range(5)}) > 1


def test_stop_text_ends_the_answer(server: Running) -> None:
    full = ask(server, "Tell me something.", max_tokens=13).choices[0].message.content
    stop = full[len(full) // 2 :][:2]
    found = ask(server, "Tell me something.", max_tokens=13, stop=[stop]).choices[0]
    assert found.message.content == full[: full.index(stop)].rstrip()
    assert found.finish_reason == "stop"


def test_many_mixed_requests_at_once_get_the_answers_they_get_alone(server: Running) -> None:
    contents: list[Any] = [[*(image_part(n, 17 + n, 23) for n in range(num % 4)), TEXT] for num in range(11)]
    alone = [ask(server, one, max_tokens=3 + num).choices[0] for num, one in enumerate(contents)]
    with ThreadPoolExecutor(len(contents)) as pool:
        futures = [pool.submit(ask, server, one, max_tokens=3 + num) for num, one in enumerate(contents)]
        together = [future.result().choices[0] for future in futures]
    assert [one.message.content for one in together] == [one.message.content for one in alone]


def test_client_that_goes_away_frees_its_place(serve: Serve) -> None:
    server = serve(Limits(requests=1))
    stream = ask(server, "Tell me something.", max_tokens=900, stream=True)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError, match="1 requests are under way"):
        ask(server, "Me too.", max_tokens=2)
    stream.close()
    for _ in range(300):
        if server.chat.admission.num_requests == 0:
            break
        threading.Event().wait(0.1)
    assert ask(server, "Me too.", max_tokens=2).choices


def test_answers_under_way_end_with_an_error_when_the_server_ends(serve: Serve) -> None:
    server = serve()
    events: list[bytes] = []
    body = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 900, "stream": True}
    with httpx.stream("POST", f"{server.address}/v1/chat/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            events.append(line.encode())
            if len(events) == 3:
                server.chat.admission.is_closed = True
                server.chat.ending._loop.call_soon_threadsafe(server.chat.ending.set)  # type: ignore[attr-defined]
    assert events[-2] == b"data: [DONE]"
    assert b"the server shut down" in events[-4]
    assert httpx.get(f"{server.address}/health").status_code == 503


def test_key_is_needed_everywhere_but_for_health(serve: Serve) -> None:
    server = serve(api_key="correct horse")
    assert httpx.get(f"{server.address}/health").status_code == 200
    for path in ("/v1/models", "/metrics", "/v1/chat/completions"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic correct horse"}):
            refused = httpx.get(f"{server.address}{path}", headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="correct horse")
    assert [one.id for one in client.models.list()] == ["tiny"]


def test_models_health_and_metrics(server: Running) -> None:
    assert [one.id for one in server.client.models.list()] == ["tiny"]
    assert server.client.models.retrieve("tiny").owned_by == "ray-llava"
    with pytest.raises(openai.NotFoundError, match="no such model"):
        server.client.models.retrieve("other")
    assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}
    before = _counter(server, 'ray_llava_requests_total{status="200"}')
    ask(server, "Hello", max_tokens=2)
    assert _counter(server, 'ray_llava_requests_total{status="200"}') == before + 1
    assert _counter(server, "ray_llava_requests_under_way") == 0


def _counter(server: Running, name: str) -> float:
    lines = httpx.get(f"{server.address}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
