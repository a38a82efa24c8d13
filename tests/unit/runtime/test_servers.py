"""Lists of servers in settings: what can be used, and what is said of what can't."""

from __future__ import annotations

import doctest

import pytest

from runtime import servers as module
from runtime.errors import ConfigurationError
from runtime.servers import parse_servers
from runtime.settings import load_settings


def test_its_examples_are_right() -> None:
    """What the docstrings show is what the functions return."""
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("a:1,b:2", "a:1,b:2"),
        (" a:1 , b:2, ", "a:1,b:2"),
        ("a", "a:9092"),
        ("[fe80::1%eth0]:7,10.0.0.1:9", "[fe80::1%eth0]:7,10.0.0.1:9"),
        ("kafka_1.local:1", "kafka_1.local:1"),
    ],
)
def test_servers_that_can_be_used(text: str, servers: str) -> None:
    """White space and an empty end are dropped, and a port may be left out."""
    assert ",".join(map(str, parse_servers(text, 9092))) == servers


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('"127.0.0.1:9092"', "quotation marks"),
        ("'127.0.0.1:9092'", "quotation marks"),
        ("127.0.0.1:", "A port is missing"),
        ("127.0.0.1:99999", "99999 is no port"),
        ("127.0.0.1:0", "0 is no port"),
        ("127.0.0.1:-1", "-1 is no port"),
        ("127.0.0.1:9o92", "9o92 is no port"),
        ("127.0.0.1:" + "9" * 5000, "is no port"),
        ("PLAINTEXT://127.0.0.1:9092", "begins with PLAINTEXT://"),
        (":9092", "The host before :9092 is missing"),
        ("::1", "stands in brackets"),
        ("a b:1", "no host's name"),
        (" , ", "names no server"),
    ],
)
def test_servers_that_can_not_be_used(text: str, why: str) -> None:
    """The error says what is wrong, and the setting's error names the setting; exit code 2."""
    with pytest.raises(ValueError, match=why):
        parse_servers(text, 9092)
    if text.strip():
        settings = load_settings({"PLANT_HOME": "/nonexistent", "PLANT_KAFKA_BOOTSTRAP_SERVERS": text})
        with pytest.raises(ConfigurationError, match="PLANT_KAFKA_BOOTSTRAP_SERVERS") as error:
            settings.kafka_address()
        assert why in error.value.why
