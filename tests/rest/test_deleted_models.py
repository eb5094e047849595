"""A model that goes between being found and being loaded isn't there: no fault of the server's."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest

from serving_models import register_tuned
from tunesmith.models.versions import delete_version
from tunesmith.rest.app import create_app
from tunesmith.serve.catalogue import Catalogue
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.serving import ServeSpec


def test_a_model_that_is_deleted_before_it_is_loaded_is_not_found(tiny_folder, home, monkeypatch):
    version = register_tuned(tiny_folder("smollm2"), home)
    pool = ModelPool(Catalogue(home), home, dtype="float32")
    lease = pool.lease

    def lease_late(model):
        delete_version(version)
        return lease(model)

    monkeypatch.setattr(pool, "lease", lease_late)

    async def ask():
        transport = httpx.ASGITransport(create_app(pool, ServeSpec()), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            client = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="x", max_retries=0, http_client=http)
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(
                    model=version.name, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
                )
            return missing.value

    missing = asyncio.run(ask())
    pool.close()
    assert (missing.code, missing.param) == ("model_not_found", "model")
