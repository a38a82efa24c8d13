"""The framing of requests: heads that two servers on the way could read in two ways are refused."""

from __future__ import annotations

import pytest

from server.framing import framing_fault

HOST = (b"host", b"plant.example")


@pytest.mark.parametrize("version", ["0.9", "2.0", "1.2", ""])
def test_a_version_that_is_not_spoken_here_is_refused(version: str) -> None:
    """httptools takes `HTTP/2.0` and `HTTP/0.9` in a request line; they have no Host to ask for and frame otherwise."""
    assert framing_fault(version, [HOST]) == "This is neither HTTP/1.1 nor HTTP/1.0."


@pytest.mark.parametrize("value", [b"gzip, chunked", b"chunked, chunked", b"identity", b"deflate,chunked", b""])
def test_a_transfer_encoding_that_nobody_undoes_is_refused(value: bytes) -> None:
    """The chunks alone would be undone, and compressed bytes read as the body that was signed."""
    assert framing_fault("1.1", [HOST, (b"transfer-encoding", value)]) == "The only Transfer-Encoding is chunked."


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b" CHUNKED "])
def test_chunks_are_taken_however_they_are_spelled(value: bytes) -> None:
    """Names of codings have no case (RFC 9112, section 7)."""
    assert framing_fault("1.1", [HOST, (b"transfer-encoding", value)]) is None
    assert framing_fault("1.0", [HOST, (b"transfer-encoding", value)]) == "HTTP/1.0 has no Transfer-Encoding."


def test_each_version_has_its_own_rule_for_host() -> None:
    """HTTP/1.0 needs none, HTTP/1.1 exactly one."""
    assert framing_fault("1.0", []) is None
    assert framing_fault("1.1", []) == framing_fault("1.1", [HOST, HOST]) == "A request has one Host."
