"""Which addresses are open to the world, and which keys can be sent. The server's start goes by it."""

from __future__ import annotations

import pytest

from tunesmith.errors import SpecError
from tunesmith.specs.serving import ServeSpec, keys_from


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "127.0.0.1.example.com", "*"])
def test_an_open_address_is_known_as_one(host):
    assert not ServeSpec.parse({"host": host}).is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "::1", "[::1]", "127.1.2.3"])
def test_this_machine_alone_needs_none(host):
    assert ServeSpec.parse({"host": host}).is_loopback


@pytest.mark.parametrize("key", ["", " ", "a b", "ключ", "a\n"])
def test_a_key_that_cannot_be_sent_is_refused(key):
    with pytest.raises(SpecError):
        ServeSpec.parse({"api_keys": [key]})


def test_keys_come_from_the_environment_and_are_not_shown():
    assert keys_from({}) == keys_from({"TUNESMITH_API_KEY": " , "}) == ()
    assert keys_from({"TUNESMITH_API_KEY": "one, two"}) == ("one", "two")
    assert "secret" not in repr(ServeSpec.parse({"api_keys": ["secret"]}))
