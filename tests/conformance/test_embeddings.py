"""`/v1/embeddings` through the official client, with the real weights of all-MiniLM-L6-v2.

On SQLite: nothing of it is stored.
"""

from __future__ import annotations

import base64
import socket
import sys
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from server_process import running_server
from tiny_models import save_tiny_model
from tunesmith.errors import ModelError
from tunesmith.models.embedded import ENCODERS, embedded_file
from tunesmith.models.encoder import load_embedded_encoder

MODEL = "all-minilm-l6-v2"
TEXTS = [
    "How do I reset my password?",
    "I forgot the password of my account.",
    "The recipe needs two eggs and flour.",
    "Grüße aus Köln, 日本語 \U0001f426 <b>bold</b>",
    "word " * 240,
    "a",
]
#: What the plain computation and the server's may differ by.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with a chat model, the encoder, and an alias of it."""
    folder = tmp_path_factory.mktemp("embeddings")
    model = save_tiny_model("smollm2", folder / "tiny")
    settings = {"models": [str(model), MODEL], "aliases": [f"text-embedding-3-small={MODEL}"]}
    with running_server(folder, folder / "home", dtype="float32", max_body_bytes=8 << 20, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def plain():
    """The computation as the model's card describes it, one text at a time."""
    folder = embedded_file(ENCODERS[MODEL]).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()

    def vector(text):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs).last_hidden_state
        weights = inputs["attention_mask"].unsqueeze(-1).float()
        mean = (states * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)[0].numpy(), inputs["input_ids"][0].tolist()

    return vector


def vectors_of(answer):
    return np.array([one.embedding for one in answer.data])


def refused(call, code, param, status=400):
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    error = caught.value
    assert (error.status_code, error.code, error.param) == (status, code, param), error
    return error.message


def test_vectors_are_those_of_the_plain_computation(client, plain):
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    assert (answer.object, answer.model) == ("list", MODEL)
    assert [(one.object, one.index) for one in answer.data] == [("embedding", i) for i in range(len(TEXTS))]
    found = vectors_of(answer)
    assert found.shape == (len(TEXTS), 384)
    expected = [plain(text) for text in TEXTS]
    assert np.abs(found - np.array([vector for vector, _ in expected])).max() < TOLERANCE
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(ids) for _, ids in expected)
    # What they are for: likeness.
    assert found[0] @ found[1] > 0.6 > 0.2 > found[0] @ found[2]
    # Alone or beside others.
    for text, vector in zip(TEXTS, found, strict=True):
        alone = vectors_of(client.embeddings.create(model=MODEL, input=text))[0]
        assert np.abs(alone - vector).max() < TOLERANCE


def test_both_encodings_hold_the_same_numbers(client):
    plain = client.embeddings.create(model=MODEL, input=TEXTS[:2], encoding_format="float")
    packed = client.embeddings.create(model=MODEL, input=TEXTS[:2], encoding_format="base64")
    for one, other in zip(plain.data, packed.data, strict=True):
        assert isinstance(one.embedding, list) and isinstance(other.embedding, str)
        unpacked = np.frombuffer(base64.b64decode(other.embedding), "<f4")
        assert (unpacked == np.array(one.embedding, np.float32)).all()


def test_tokens_of_its_own_tokenizer_are_taken(client, plain):
    text = TEXTS[0]
    vector, ids = plain(text)
    for tokens in (ids, ids[1:-1], [ids], [ids[1:-1], ids]):
        answer = client.embeddings.create(model=MODEL, input=tokens)
        assert np.abs(vectors_of(answer) - vector).max() < TOLERANCE
        assert answer.usage.prompt_tokens == len(ids) * len(answer.data)
    for wrong in (30_522, 100_000, -1):
        message = refused(
            lambda wrong=wrong: client.embeddings.create(model=MODEL, input=[5, wrong]), "invalid_token", "input"
        )
        assert "30,521" in message


def test_fewer_dimensions_are_the_first_ones_again_of_length_one(client):
    whole = vectors_of(client.embeddings.create(model=MODEL, input=TEXTS[:3]))
    for dimensions in (1, 64, 384):
        cut = vectors_of(client.embeddings.create(model=MODEL, input=TEXTS[:3], dimensions=dimensions))
        assert cut.shape == (3, dimensions)
        first = whole[:, :dimensions]
        assert np.abs(cut - first / np.linalg.norm(first, axis=1, keepdims=True)).max() < TOLERANCE
    for dimensions, code in ((385, "integer_above_max_value"), (0, "integer_below_min_value")):
        refused(
            lambda dimensions=dimensions: client.embeddings.create(model=MODEL, input="x", dimensions=dimensions),
            code,
            "dimensions",
        )


def test_many_inputs_come_back_in_their_order(client):
    texts = [f"number {number} " * (1 + number % 20) for number in range(120)]
    found = vectors_of(client.embeddings.create(model=MODEL, input=texts))
    for place in (0, 19, 60, 119):
        alone = vectors_of(client.embeddings.create(model=MODEL, input=texts[place]))[0]
        assert np.abs(found[place] - alone).max() < TOLERANCE


def test_what_is_too_long_is_refused_and_never_cut(client):
    def ask(text):
        return lambda: client.embeddings.create(model=MODEL, input=text)

    assert client.embeddings.create(model=MODEL, input="word " * 254).usage.prompt_tokens == 256
    message = refused(ask("word " * 255), "context_length_exceeded", "input")
    assert "256 tokens" in message and "257 tokens" in message
    refused(ask(["x", "word " * 300]), "context_length_exceeded", "input[1]")
    refused(ask([5] * 255), "context_length_exceeded", "input")
    refused(ask("x" * 1_000_000), "context_length_exceeded", "input")
    refused(ask(["x"] * 2049), "array_above_max_length", "input")
    refused(ask(["word " * 250] * 1200), "max_tokens_per_request", "input")


@pytest.mark.parametrize(
    ("said", "code", "param"),
    [
        ("", "empty_string", "input"),
        (["x", ""], "empty_string", "input[1]"),
        ([], "empty_array", "input"),
        ([[]], "empty_array", "input"),
        ([["x"]], "invalid_type", "input"),
        ([1, "x"], "invalid_type", "input"),
        (["x", 1], "invalid_type", "input[1]"),
        ([[1], "x"], "invalid_type", "input[1]"),
        ([True], "invalid_type", "input[0]"),
        ([1.5], "invalid_type", "input[0]"),
        ({"text": "x"}, "invalid_type", "input"),
        (None, "invalid_type", "input"),
    ],
)
def test_other_inputs_are_refused(server, said, code, param):
    reply = httpx.post(f"{server.url}/v1/embeddings", json={"model": MODEL, "input": said})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param), error


def test_other_fields_are_refused(client):
    def ask(**more):
        return lambda: client.embeddings.create(**{"model": MODEL, "input": "x"}, extra_body=more)

    refused(ask(encoding_format="int8"), "invalid_value", "encoding_format")
    refused(ask(colour="red"), "unknown_parameter", "colour")
    assert ask(user="u-1")().data


def test_the_encoder_is_a_model_on_offer(client):
    listed = {model.id: model for model in client.models.list()}
    assert listed[MODEL].owned_by == "tunesmith" and listed[MODEL].created > 0
    assert client.models.retrieve(MODEL) == listed[MODEL]
    alias = client.models.retrieve("text-embedding-3-small")
    assert (alias.id, alias.alias_of) == ("text-embedding-3-small", MODEL) and alias == listed[alias.id]
    # Old programs go on under the old name, and are told who answered.
    answer = client.embeddings.create(model="text-embedding-3-small", input="x")
    assert answer.model == MODEL
    refused(lambda: client.embeddings.create(model="nobody", input="x"), "model_not_found", "model", 404)
    message = refused(lambda: client.embeddings.create(model="tiny", input="x"), "unsupported_model", "model")
    assert MODEL in message
    chat = {"messages": [{"role": "user", "content": "x"}]}
    refused(lambda: client.chat.completions.create(model=MODEL, **chat), "model_not_found", "model", 404)


def test_other_weights_than_the_published_ones_are_refused(monkeypatch):
    monkeypatch.setitem(ENCODERS, MODEL, replace(ENCODERS[MODEL], sha256="0" * 64))
    with pytest.raises(ModelError, match="published"):
        load_embedded_encoder(MODEL)


def test_nothing_is_unpickled_and_no_network_asked(monkeypatch):
    """Loading needs neither pickles nor the package's own code."""

    def refuse(*_, **__):
        raise AssertionError("not here")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert load_embedded_encoder(MODEL).dimensions == 384
    assert ENCODERS[MODEL].package not in sys.modules
