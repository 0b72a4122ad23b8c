"""The server, with OpenAI's own client: a tiny model behind a real socket."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import httpx2 as httpx
import openai
import pydantic
import pytest
from test_chat import folder  # noqa: F401  # the embedded model with a chat template

import systolic as sy
from systolic.runner.server.bodies import Limits
from systolic.runner.server.serve import listen, new_server
from systolic.runner.server.service import Service

PROMPT = "ROMEO:\n"


@contextmanager
def served(service: Service, **options) -> Iterator[str]:
    """The address of a running server."""
    server = new_server(service, host="127.0.0.1", port=0, grace=1, **options)
    at = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{at.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_for(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module")
def exe(folder):  # noqa: F811
    return sy.compile(sy.load(folder), backend="numpy", batch=4, capacity=128, chunk=32)


@pytest.fixture(scope="module")
def service(exe):
    return Service(exe, name="bard", limits=Limits(96, max_choices=8, max_body=20_000), queue=6)


@pytest.fixture(scope="module")
def address(service):
    with served(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def text_of(exe, ids, **settings) -> str:
    return exe.text_behind(ids, exe.generate(ids, **settings))


def complete(client, **settings):
    return client.completions.create(model="bard", **{"prompt": PROMPT, "max_tokens": 12, **settings})


# ---- answers ----


def test_a_completion_is_what_generate_says(client, exe):
    answer = complete(client, temperature=0)
    ids = list(exe.prompt_ids(PROMPT))
    assert answer.choices[0].text == text_of(exe, ids, max_new_tokens=12)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 12)
    assert complete(client, temperature=0, prompt=ids).choices[0].text == answer.choices[0].text
    settings = {"temperature": 1.3, "top_p": 0.9, "seed": 5}
    said = complete(client, **settings, extra_body={"top_k": 20, "repetition_penalty": 1.2}).choices[0].text
    assert said == text_of(exe, ids, max_new_tokens=12, **settings, top_k=20, repetition_penalty=1.2)


def test_the_models_own_sampling_comes_before_openais_defaults(client, exe):
    ids = list(exe.prompt_ids(PROMPT))
    own = {"temperature": 0.7, "top_p": 0.95}  # of its generation_config.json
    assert complete(client, seed=3).choices[0].text == text_of(exe, ids, max_new_tokens=12, seed=3, **own)
    assert complete(client).choices[0].text != complete(client).choices[0].text  # fresh seeds


def test_several_answers_and_prompts(client, exe):
    answer = complete(client, n=2, seed=7, prompt=[PROMPT, "JULIET:"], temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    expected = [
        text_of(exe, exe.prompt_ids(prompt), max_new_tokens=12, temperature=1, top_p=0.95, seed=seed)
        for prompt in (PROMPT, "JULIET:")
        for seed in (7, 8)
    ]
    assert [choice.text for choice in answer.choices] == expected
    assert len(set(expected)) == 4
    assert answer.usage.prompt_tokens == sum(len(exe.prompt_ids(p)) for p in (PROMPT, "JULIET:"))


def test_streams_say_the_same(client):
    settings = {"n": 2, "seed": 7, "temperature": 1.0}
    whole = complete(client, **settings)
    texts, reasons, usage = ["", ""], [None, None], None
    for piece in complete(client, **settings, stream=True, stream_options={"include_usage": True}):
        usage = piece.usage or usage
        for choice in piece.choices:
            assert reasons[choice.index] is None
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == ["length", "length"]
    assert usage.completion_tokens == 24


def test_stop(client, exe):
    whole = complete(client, temperature=0, max_tokens=40).choices[0].text
    stop = whole[30:34]
    answer = complete(client, temperature=0, max_tokens=40, stop=[stop, "never said"])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = complete(client, temperature=0, max_tokens=40, stop=stop, stream=True)
    assert "".join(piece.choices[0].text for piece in streamed) == answer.choices[0].text


def test_chats(client, exe):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "news?"}]},
    ]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What news?"}]
    settings = {"model": "bard", "messages": messages, "temperature": 0, "max_completion_tokens": 20}
    answer = client.chat.completions.create(**settings)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == exe.chat(plain, max_new_tokens=20)
    pieces = list(client.chat.completions.create(**settings, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    said = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert said == answer.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == "length"
    ended = client.chat.completions.create(**settings, logit_bias={"0": 1000})  # the end of a turn
    assert (ended.choices[0].message.content, ended.choices[0].finish_reason) == ("", "stop")


def test_logprobs(client, exe):
    answer = complete(client, temperature=0, logprobs=3)
    steps = list(exe.steps(PROMPT, max_new_tokens=12, logprobs=3))
    found = answer.choices[0].logprobs
    assert "".join(found.tokens) == answer.choices[0].text
    assert found.token_logprobs == pytest.approx([step.logprob for step in steps], abs=1e-4)
    assert found.text_offset == [len("".join(found.tokens[:at])) for at in range(12)]
    assert [max(top, key=top.get) for top in found.top_logprobs] == found.tokens  # greedy
    messages = [{"role": "user", "content": "What news?"}]
    chat = client.chat.completions.create(
        model="bard", messages=messages, temperature=1, seed=4, max_tokens=8, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == chat.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert token.logprob <= token.top_logprobs[0].logprob
    streamed = complete(client, temperature=0, logprobs=0, stream=True)
    tokens = [token for piece in streamed for token in piece.choices[0].logprobs.tokens]
    assert tokens == found.tokens


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_tokens": 97}, "max_tokens must be from 1 to 96 on this server, not 97"),
        ({"max_tokens": 0}, "max_tokens must be from 1"),
        ({"temperature": -1}, "temperature must be a number of at least 0"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"n": 0}, "n must be from 1 to 8"),
        ({"n": 5, "prompt": ["a", "b"]}, "2 prompts of 5 answers are more than 8"),
        ({"stop": [""]}, "stop must be a string or a list of strings"),
        ({"stop": ["x"] * 17}, "stop must be at most 16 strings"),
        ({"prompt": []}, "prompt must be a text, a list of token ids, or a list of these"),
        ({"prompt": [99999]}, "99999"),
        ({"prompt": "word " * 200}, "128"),
        ({"logprobs": 21}, "logprobs must be an integer from 0 to 20"),
        ({"logit_bias": {"x": 1}}, "logit_bias must map token ids to numbers"),
        ({"echo": True}, "echo is not supported"),
        ({"best_of": 3}, "best_of must be n"),
        ({"extra_body": {"colour": "red"}}, "colour is no parameter that this server knows"),
    ],
)
def test_what_cannot_be_asked_for(client, settings, said):
    with pytest.raises(openai.BadRequestError, match=said) as raised:
        complete(client, **settings)
    assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"messages": []}, "messages must be a list of at least one"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] must be an object with a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of text only"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
    ],
)
def test_what_cannot_be_asked_for_in_a_chat(client, settings, said):
    given = {"messages": [{"role": "user", "content": "x"}], **settings}
    with pytest.raises(openai.BadRequestError, match=said):
        client.chat.completions.create(model="bard", **given)


def test_other_models_and_paths(client, address):
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here; 'bard' is"):
        client.completions.create(model="gpt", prompt="x")
    assert [model.id for model in client.models.list()] == ["bard"]
    assert client.models.retrieve("bard").id == "bard"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    assert httpx.get(f"{address}/nothing").json()["error"]["message"] == "there is nothing at /nothing"
    assert httpx.get(f"{address}/v1/completions").status_code == 405
    with pytest.raises(
        openai.BadRequestError, match="has no encoder; embeddings need a model that reads whole"
    ):
        client.embeddings.create(model="bard", input="x")


def test_bodies(address):
    def post(content: bytes, kind: str = "application/json"):
        answer = httpx.post(f"{address}/v1/completions", content=content, headers={"Content-Type": kind})
        return answer.status_code, answer.json()["error"]["message"]

    assert post(b"{") == (400, "the body is no JSON")
    assert post(b"[" * 10_000)[0] == 400
    assert post(b"[]") == (400, "the body must be a JSON object")
    assert post(b"{}", "text/plain")[0] == 415  # what a web page could send without asking
    assert post(b" " * 20_001) == (413, "the body must be at most 20000 bytes")
    chunked = httpx.post(
        f"{address}/v1/completions",
        content=iter([b" " * 9000] * 3),
        headers={"Content-Type": "application/json"},
    )
    assert chunked.status_code == 413


def test_only_localhost_is_answered_to(address):
    assert httpx.get(f"{address}/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert httpx.get(f"{address}/v1/models", headers={"Host": "localhost:1"}).status_code == 200


def test_a_full_queue_is_429(client, service, exe, monkeypatch):
    """Four rows and six that may wait: the next is told to come again, and nothing of it stays."""
    make_slow(service, monkeypatch, 0.2)
    asked = {"max_tokens": 96, "stream": True, "logprobs": 0}
    streams = [complete(client, n=4, **asked)]
    wait_for(lambda: service.scheduler.running == 4)
    streams += [complete(client, **asked) for _ in range(6)]
    with pytest.raises(openai.RateLimitError, match="6 requests wait already") as raised:
        complete(client)
    assert raised.value.response.headers["Retry-After"] == "1"
    assert raised.value.code == "queue_full"
    for stream in streams:
        stream.close()
    wait_for(lambda: busy(service) == 0)
    ids = exe.prompt_ids(PROMPT)
    assert complete(client, temperature=0).choices[0].text == text_of(exe, ids, max_new_tokens=12)


def make_slow(service: Service, monkeypatch, seconds: float) -> None:
    """Answers cannot be over by themselves while a test looks at them."""
    step = service.scheduler._step
    monkeypatch.setattr(service.scheduler, "_step", lambda: (time.sleep(seconds), step())[1])


# ---- clients that leave ----


def busy(service: Service) -> int:
    return service.scheduler.running + service.scheduler.waiting


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows(client, service, stream, monkeypatch):
    make_slow(service, monkeypatch, 0.2)
    cancelled = service.scheduler.statistics.finished.get("cancelled", 0)
    body = {"model": "bard", "prompt": PROMPT, "max_tokens": 96, "n": 6, "stream": stream, "logprobs": 0}
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        content = json.dumps(body).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        connection.sendall(head.encode() + content)
        wait_for(lambda: service.scheduler.running == 4)
        assert busy(service) == 6
    wait_for(lambda: service.scheduler.statistics.finished.get("cancelled", 0) == cancelled + 4)
    wait_for(lambda: busy(service) == 0)


def test_many_clients_at_once(service, address, exe):
    """Nobody's tokens are lost or mixed with another's, while every third client leaves."""
    asked = [
        {"prompt": f"{PROMPT}{number % 5}", "temperature": number % 3 / 2, "seed": number, "max_tokens": 16}
        for number in range(8)
    ]
    expected = [
        text_of(
            exe,
            exe.prompt_ids(one["prompt"]),
            max_new_tokens=16,
            top_p=0.95,
            temperature=one["temperature"],
            seed=one["seed"],
        )
        for one in asked
    ]

    async def answer(client, number: int) -> None:
        for turn in range(3):
            said, leaves = "", (number + turn) % 3 == 0
            stream = await client.completions.create(model="bard", stream=True, **asked[number])
            async for piece in stream:
                said += piece.choices[0].text
                if leaves and len(said) > 8:
                    await stream.close()
                    break
            assert expected[number].startswith(said) if leaves else said == expected[number]

    async def everybody() -> None:
        # The queue may be full of requests whose clients have just left.
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=9) as client:
            await asyncio.gather(*(answer(client, number) for number in range(8)))

    asyncio.run(everybody())
    wait_for(lambda: busy(service) == 0)


def test_health_and_metrics(client, address):
    complete(client)
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    text = httpx.get(f"{address}/metrics").text
    numbers = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }
    assert numbers["systolic_requests_waiting"] == 0
    assert numbers["systolic_tokens_total"] >= 12
    assert numbers['systolic_requests_total{reason="length"}'] >= 1
    assert numbers["systolic_first_token_seconds_count"] >= 1
    assert numbers['systolic_responses_total{path="/v1/completions",status="200"}'] >= 1


def test_nothing_is_compiled_while_serving(client, exe, service):
    before = str(exe.programs)
    complete(client, n=3, temperature=1)
    complete(client, prompt="A long prompt. " * 8, temperature=0)
    assert str(exe.programs) == before


# ---- keys, and the end ----


def test_a_key_is_needed_where_others_can_reach(exe):
    with pytest.raises(sy.SystolicError, match=r"others can reach 0\.0\.0\.0, so clients must need a key"):
        new_server(Service(exe), host="0.0.0.0", port=0)
    with served(Service(exe, name="bard"), api_key="secret") as address:
        assert httpx.get(f"{address}/health").status_code == 200
        for path in ("/v1/models", "/metrics"):
            assert httpx.get(f"{address}{path}").status_code == 401
        with pytest.raises(openai.AuthenticationError, match="an API key is needed"):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong").models.list()
        assert openai.OpenAI(base_url=f"{address}/v1", api_key="secret").models.list().data


def failure_of(stream) -> Iterator[str]:
    """What an unfinished stream says in the end."""
    try:
        list(stream)
    except openai.APIError as error:
        yield error.message


def test_the_end_cancels_what_is_not_over(exe, monkeypatch):
    told: list[str] = []
    service = Service(exe, name="bard")
    make_slow(service, monkeypatch, 0.2)
    with served(service) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = complete(client, max_tokens=96, stream=True, logprobs=0)
        next(iter(stream))
        ends = threading.Thread(target=told.extend, args=(failure_of(stream),))
        ends.start()
    ends.join()
    assert told == ["the server is shutting down"]
    assert busy(service) == 0
    assert not service.scheduler.is_running
    assert service.scheduler.statistics.finished == {"cancelled": 1}


def test_a_failure_of_the_device_is_told_to_everybody(exe, monkeypatch):
    service = Service(exe, name="bard")
    with served(service) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        make_slow(service, monkeypatch, 0.2)
        stream = complete(client, max_tokens=96, stream=True, logprobs=0)
        next(iter(stream))
        monkeypatch.setattr(service.scheduler, "_step", lambda: 1 / 0)
        with pytest.raises(openai.APIError, match="the server failed to answer"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="the scheduler is closed"):
            complete(client)
        assert httpx.get(f"{address}/health").status_code == 503


def test_a_model_without_a_tokenizer_is_only_asked_for_what_it_can(shared):
    exe = sy.compile(sy.load(shared / "oracle" / "t5"), backend="numpy", capacity=64, chunk=16)
    with served(Service(exe, name="t5")) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="t5 has no tokenizer, so it cannot answer in text"):
            client.completions.create(model="t5", prompt=[5, 6])
        assert len(client.embeddings.create(model="t5", input=[5, 6, 7]).data[0].embedding) > 8


def test_an_encoder_embeds(shared):
    exe = sy.compile(sy.load(shared / "oracle" / "bert"), backend="numpy")
    ids = [5, 9, 11, 3]
    with served(Service(exe, name="bert")) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        answer = client.embeddings.create(model="bert", input=[ids, ids[:2]])
        expected = exe.encode(ids).mean(axis=0)
        found = answer.data[0].embedding
        assert found == pytest.approx(list(expected / (expected**2).sum() ** 0.5), abs=1e-5)
        assert answer.usage.prompt_tokens == 6
        floats = client.embeddings.create(model="bert", input=[ids], encoding_format="float")
        assert floats.data[0].embedding == pytest.approx(found, abs=1e-6)
        with pytest.raises(openai.BadRequestError, match="bert continues no texts"):
            client.completions.create(model="bert", prompt="x")
        assert httpx.get(f"{address}/health").status_code == 200


# ---- answers of a form ----


class City(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=6)]
    size: Literal["small", "large"]


def test_answers_of_a_form(client, exe):
    messages = [{"role": "user", "content": "Name a city."}]
    for seed in range(3):
        answer = client.chat.completions.parse(
            model="bard", messages=messages, response_format=City, seed=seed, temperature=1.5, max_tokens=96
        )
        assert isinstance(answer.choices[0].message.parsed, City)
        assert answer.choices[0].finish_reason == "stop"
    said = complete(client, max_tokens=20, temperature=1.5, extra_body={"regex": "[ab]{7}"}).choices[0]
    assert re.fullmatch("[ab]{7}", said.text)
    assert said.finish_reason == "stop"
    form = {"type": "json_object"}
    chat = client.chat.completions.create(model="bard", messages=messages, response_format=form, max_tokens=2)
    assert chat.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"type": "xml"}, "response_format.type must be text, json_object or json_schema, not 'xml'"),
        ({"type": "json_schema"}, "response_format.json_schema.schema must be a JSON schema"),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}, "Invalid type: strin"),
    ],
)
def test_forms_that_are_none(client, form, said):
    with pytest.raises(openai.BadRequestError, match=re.escape(said)):
        complete(client, extra_body={"response_format": form})
