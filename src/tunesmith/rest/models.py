"""`/v1/models`: what a caller may ask, and deletion of what its project made."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from tunesmith.rest.model_lookup import find_model, pool_of, usable_by_caller
from tunesmith.serve.catalogue import ServedEncoder, ServedModel

router = APIRouter(prefix="/v1/models")


class WireModel(BaseModel):
    """A model on offer."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    alias_of: str | None = Field(None, description="Where the id is an alias: the model that answers.")

    @model_serializer(mode="wrap")
    def _without_no_alias(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        model: dict[str, Any] = serialize(self)
        if self.alias_of is None:
            del model["alias_of"]
        return model


class WireModels(BaseModel):
    """All models on offer."""

    object: Literal["list"] = "list"
    data: list[WireModel]


def wire_model(model: ServedModel | ServedEncoder, alias: str | None = None) -> WireModel:
    """Return a model as it goes out, under an alias if it is asked for by one."""
    owner = "local" if isinstance(model, ServedModel) and model.is_tuned else "tunesmith"
    if alias is None:
        return WireModel(id=model.name, created=model.created, owned_by=owner)
    return WireModel(id=alias, created=model.created, owned_by=owner, alias_of=model.name)


@router.get("")
async def list_models(http: Request) -> WireModels:
    """List what the caller may ask: bases, sentence encoders, aliases, tuned models; always all at once."""
    catalogue = pool_of(http).catalogue
    models = await usable_by_caller(http)
    encoders = await asyncio.to_thread(catalogue.encoders)
    named: dict[str, ServedModel | ServedEncoder] = {encoder.name: encoder for encoder in encoders}
    named |= {model.name: model for model in models}
    aliases = [(alias, named[name]) for alias, name in catalogue.aliases.items() if name in named]
    bases = [*(wire_model(model) for model in models if not model.is_tuned), *map(wire_model, encoders)]
    tuned = [wire_model(model) for model in models if model.is_tuned]
    return WireModels(data=[*bases, *(wire_model(model, alias) for alias, model in aliases), *tuned])


@router.get("/{name:path}")
async def retrieve_model(name: str, http: Request) -> WireModel:
    """Show one model."""
    catalogue = pool_of(http).catalogue
    model = await asyncio.to_thread(catalogue.find_encoder, name) or await find_model(http, name)
    return wire_model(model, name if name in catalogue.aliases else None)
