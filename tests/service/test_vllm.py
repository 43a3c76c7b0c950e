# SPDX-License-Identifier: Apache-2.0
"""`VllmEngine` against a stand-in for vLLM on loopback: which weights it takes, what it sends, what it passes on."""

import asyncio
import json
import time

import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from moored.service.vllm import VllmEngine
from moored.serving import Serving
from service.tuned import Home, app_of, serving, write_adapter

CHAT = [{"role": "user", "content": "What colour is the lamp?"}]


class Vllm:
    """What vLLM does, as far as it is asked to."""

    def __init__(self, root):
        self.root, self.adapters, self.asked, self.cut = str(root), {}, [], 0
        self.lora, self.breaks, self.slow, self.app = True, "", False, FastAPI()
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/load_lora_adapter")(self.load)
        self.app.post("/v1/unload_lora_adapter")(self.unload)
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.post("/v1/completions")(self.complete)

    def models(self):
        cards = [{"id": "served-base", "object": "model", "root": self.root, "parent": None}]
        cards += [{"id": name, "root": path, "parent": "served-base"} for name, path in self.adapters.items()]
        return {"object": "list", "data": cards}

    async def load(self, request: Request):
        body = await request.json()
        if not self.lora:
            return JSONResponse({"detail": "Not Found"}, 404)
        self.adapters[body["lora_name"]] = body["lora_path"]
        return "Success"

    async def unload(self, request: Request):
        return "Success" if self.adapters.pop((await request.json())["lora_name"], None) else JSONResponse({}, 404)

    async def chat(self, request: Request):
        return await self.answer(request, lambda text: {"delta": {"content": text}})

    async def complete(self, request: Request):
        return await self.answer(request, lambda text: {"text": text})

    async def answer(self, request, shape):
        body = await request.json()
        self.asked.append(body | {"authorization": request.headers.get("authorization")})
        if self.breaks == "refuse":
            message = "This model's maximum context length is 10 tokens."
            return JSONResponse({"error": {"message": message, "code": 400}}, 400)
        return StreamingResponse(self.events(body, shape), media_type="text/event-stream")

    async def events(self, body, shape):
        try:
            for text in ("It ", "is red."):
                for index in range(body["n"]):
                    token = {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}
                    logprobs = {"content": [token]} if body.get("logprobs") else None
                    choice = {"index": index, **shape(text), "logprobs": logprobs, "finish_reason": None}
                    yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                while self.slow:
                    await asyncio.sleep(0.01)
                if self.breaks == "stop":
                    return
            for index in range(body["n"]):
                choice = {"index": index, **shape(""), "finish_reason": "length" if index else "stop"}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            yield f"data: {json.dumps({'choices': [], 'usage': {'prompt_tokens': 9, 'completion_tokens': 4}})}\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.cut += 1
            raise


@pytest.fixture
def live(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    home = Home(tmp_path)
    vllm = Vllm(home.start)
    with serving(vllm.app) as url:
        engine = VllmEngine(url)
        with (
            serving(app_of(home, engine)) as own,
            openai.OpenAI(base_url=own, api_key=home.keys["one"], max_retries=0) as client,
        ):
            yield home, vllm, client
        engine.close()
    home.database.close()


def ask(client, model, messages=CHAT, **options):
    return client.chat.completions.create(model=model, messages=messages, **options)


def test_a_base_is_asked_by_the_name_that_vllm_has_for_its_folder(live):
    _, vllm, client = live
    answer = ask(client, "small", n=2, temperature=0.5, seed=3, stop="end", max_tokens=7, logprobs=True)
    assert [choice.message.content for choice in answer.choices] == ["It is red."] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]
    assert answer.choices[0].logprobs.content[1].bytes == list(b"is red.")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 4)
    (sent,) = vllm.asked
    assert sent["model"] == "served-base"
    assert sent["authorization"] == "Bearer secret"
    wanted = {"n": 2, "temperature": 0.5, "seed": 3, "stop": ["end"], "max_tokens": 7, "messages": CHAT}
    assert {name: sent[name] for name in wanted} == wanted


def test_an_adapter_is_loaded_from_its_checked_folder_and_streams(live):
    home, vllm, client = live
    model = home.tuned()
    vllm.adapters[model.id] = "/somewhere/else"
    bits = [chunk.choices[0].delta.content or "" for chunk in ask(client, model.id, stream=True) if chunk.choices]
    assert "".join(bits) == "It is red."
    assert vllm.adapters == {model.id: str((home.settings.home / model.folder).resolve())}
    assert vllm.asked[-1]["model"] == model.id
    client.models.delete(model.id)
    deadline = time.monotonic() + 10
    while vllm.adapters:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_it_must_be_served_with_is_sent(live):
    home, vllm, client = live
    source = write_adapter(home.folder / "guarded", home.start)
    Serving(system="Be kind.").save(source)
    ask(client, home.tuned(source=source).id)
    assert vllm.asked[-1]["messages"] == [{"role": "system", "content": "Be kind."}, *CHAT]


def test_other_weights_under_the_same_name_are_refused(live):
    home, vllm, client = live
    vllm.root = "/other/model"
    with pytest.raises(openai.InternalServerError, match="cannot be loaded"):
        ask(client, "small")
    with pytest.raises(openai.InternalServerError, match="cannot be loaded"):
        ask(client, home.tuned().id)
    assert vllm.asked == []


def test_a_vllm_that_does_not_load_adapters_is_refused(live):
    home, vllm, client = live
    vllm.lora = False
    model = home.tuned()
    vllm.adapters[model.id] = "/preloaded"
    with pytest.raises(openai.InternalServerError, match="cannot be loaded"):
        ask(client, model.id)
    assert vllm.asked == []


def test_changed_bytes_are_refused_although_vllm_has_the_old_ones(live):
    home, vllm, client = live
    model = home.tuned()
    ask(client, model.id)
    (home.settings.home / model.folder / "adapter_config.json").write_text("{}")
    with pytest.raises(openai.InternalServerError, match="safety gate"):
        ask(client, model.id)
    assert len(vllm.asked) == 1


def test_its_refusals_and_failures_are_told(live):
    _, vllm, client = live
    vllm.breaks = "refuse"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "small")
    assert caught.value.code == "context_length_exceeded"
    vllm.breaks = "stop"
    with pytest.raises(openai.InternalServerError, match="failed while answering"):
        ask(client, "small")
    with pytest.raises(openai.APIError, match="failed while answering"):
        list(ask(client, "small", stream=True))


def test_a_client_that_goes_away_is_not_answered_further(live):
    _, vllm, client = live
    vllm.slow = True
    stream = ask(client, "small", stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while not vllm.cut:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    vllm.slow = False


def test_completions(live):
    _, vllm, client = live
    assert client.completions.create(model="small", prompt="The lamp").choices[0].text == "It is red."
    assert vllm.asked[-1]["prompt"] == "The lamp"
