"""The application in this process, where faults can be put into the model."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import openai
import pytest

from serving_models import register_tuned
from tunesmith.rest.app import create_app
from tunesmith.rest.guard import OPEN_PATHS
from tunesmith.serve.catalogue import Catalogue
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.serving import ServeSpec

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def pool(tiny_folder, home):
    pool = ModelPool(Catalogue(home, [str(tiny_folder("smollm2"))]), home, dtype="float32")
    yield pool
    pool.close()


@contextlib.asynccontextmanager
async def connected(app):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http, openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="x", max_retries=0, http_client=http)


@contextlib.contextmanager
def fault_at_step(pool, number):
    """Let the model fail at its forward pass `number`, counted from 0."""
    lease = pool.lease(pool.catalogue.find("tiny-smollm2"))
    steps = iter(range(10_000))

    def fail(*_):
        if next(steps) == number:
            raise RuntimeError("CUDA error at /secret/kernel.cu")

    opened = lease.ready.result(60).opened
    assert opened.engine  # a fresh one tries the model out, which isn't meant here
    hook = opened.loaded.model.get_decoder().register_forward_pre_hook(fail)
    yield
    hook.remove()
    lease.release()


def test_every_route_needs_the_key(pool):
    app = create_app(pool, ServeSpec.parse({"api_keys": ["secret"]}))
    paths = set(app.openapi()["paths"]) | {route.path for route in app.routes if hasattr(route, "path")}
    assert {"/v1/models", "/v1/chat/completions", "/openapi.json", "/healthz"} <= paths

    async def call_all():
        async with connected(app) as (http, _):
            for path in sorted(paths):
                for method in ("GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD"):
                    reply = await http.request(method, path)
                    assert reply.status_code == 401 or path in OPEN_PATHS, (method, path)

    asyncio.run(call_all())


@pytest.mark.parametrize("number", [0, 3])
def test_item_63_a_fault_while_answering_is_told_and_the_next_request_answered(pool, number):
    async def ask_all():
        async with connected(create_app(pool, ServeSpec())) as (_, client):
            ask = client.chat.completions.create
            settings = {"model": "tiny-smollm2", "messages": HELLO, "max_tokens": 8, "seed": 1}
            with fault_at_step(pool, number), pytest.raises(openai.InternalServerError) as whole:
                await ask(**settings)
            with fault_at_step(pool, number), pytest.raises(openai.APIError) as streamed:
                async for _ in await ask(**settings, stream=True):
                    pass
            for failed in (whole.value, streamed.value):
                assert (failed.code, failed.type) == ("answer_failed", "server_error")
                assert "secret" not in str(failed.body)
            answer = await ask(**settings)
            assert answer.usage.completion_tokens == 8

    asyncio.run(ask_all())


def test_a_model_that_cannot_be_loaded_is_not_the_callers_fault(tiny_folder, home, caplog):
    version = register_tuned(tiny_folder("smollm2"), home)
    (version.folder / "adapter_model.safetensors").write_bytes(b"broken")
    pool = ModelPool(Catalogue(home), home)

    async def ask():
        async with connected(create_app(pool, ServeSpec())) as (_, client):
            with pytest.raises(openai.InternalServerError) as failed:
                await client.chat.completions.create(model=version.id, messages=HELLO)
            return failed.value

    failed = asyncio.run(ask())
    pool.close()
    assert (failed.code, failed.param) == ("model_unavailable", "model")
    assert failed.response.headers["x-should-retry"] == "false"
    assert str(home.root) not in failed.response.text
    assert "isn't the file that was registered" in caplog.text


def test_a_fault_of_our_own_shows_no_trace(pool):
    app = create_app(pool, ServeSpec())

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("/secret/path")

    async def call():
        async with connected(app) as (http, _):
            return await http.get("/broken")

    reply = asyncio.run(call())
    assert reply.status_code == 500 and reply.headers["x-request-id"]
    assert reply.json()["error"]["code"] == "internal_error" and "secret" not in reply.text


def test_callers_share_a_model_that_is_still_loading(pool):
    async def ask_all():
        async with connected(create_app(pool, ServeSpec())) as (_, client):
            asked = [
                client.chat.completions.create(model="tiny-smollm2", messages=HELLO, max_tokens=4, temperature=0)
                for _ in range(12)
            ]
            answers = await asyncio.gather(*asked)
            assert len({answer.choices[0].message.content for answer in answers}) == 1

    asyncio.run(ask_all())
    assert pool.loaded == ["tiny-smollm2"]
