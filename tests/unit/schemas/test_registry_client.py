"""The client of an external registry, against one whose every answer the test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest

from schemas.errors import RegistryUnreachable, SchemaCheckFailed
from schemas.events import AgentRated
from schemas.registry import bundled
from schemas.registry_client import ExternalRegistryClient

VERSION = bundled().current(AgentRated)
SUBJECT = f"/subjects/{VERSION.subject}/versions"
TEXT = json.dumps(VERSION.schema)
OTHER = json.dumps({"type": "fixed", "name": "Other", "size": 4})

Answers = dict[tuple[str, str], tuple[int, Any]]
"""Status and JSON by method and path; any other request is answered 404 with the registry's own error code."""


@contextmanager
def registry(answers: Answers) -> Iterator[ExternalRegistryClient]:
    """A client of an HTTP server that gives these answers."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, document = answers.get((self.command, unquote(self.path)), (404, {"error_code": 40401}))
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815 (http.server's own names)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with ExternalRegistryClient(f"http://127.0.0.1:{server.server_port}") as client:
                yield client
        finally:
            server.shutdown()
            thread.join()


def listed(*schemas: tuple[int, str]) -> Answers:
    """A subject with these ids and schemas, oldest first."""
    answers: Answers = {("GET", SUBJECT): (200, list(range(1, len(schemas) + 1)))}
    for number, (external_id, schema) in enumerate(schemas, 1):
        answers["GET", f"{SUBJECT}/{number}"] = (200, {"id": external_id, "schema": schema})
    return answers


@pytest.mark.parametrize(
    ("schemas", "wanted"),
    [
        ([], None),
        ([(140, TEXT)], 140),
        ([(140, OTHER)], None),
        ([(140, TEXT), (150, TEXT)], 150),
        ([(140, TEXT), (5, TEXT)], 140 if VERSION.id != 5 else 5),
        ([(VERSION.id, TEXT), (5, TEXT)], VERSION.id),
        ([(98, TEXT)], 98),
    ],
    ids=["none", "one", "another schema", "the newest", "a usable one", "the bundled id", "none usable"],
)
def test_the_id_of_a_schema_is_looked_up_under_its_subject(schemas: list[tuple[int, str]], wanted: int | None) -> None:
    """Of several ids the newest that can be used counts; one that can't be used is named rather than none."""
    with registry(listed(*schemas)) as client:
        assert client.find(VERSION) == wanted


def test_a_subject_that_does_not_exist_holds_no_id() -> None:
    """The registry's own 404 is no error; a 404 without its code comes from something else."""
    with registry({}) as client:
        assert client.find(VERSION) is None
    with registry({("GET", SUBJECT): (404, {"error_code": 404})}) as client, pytest.raises(RegistryUnreachable):
        client.find(VERSION)


def test_a_registered_schema_is_read_back() -> None:
    """An id counts once the registry answers it with this very schema."""
    answers: Answers = {
        ("POST", SUBJECT): (200, {"id": 140}),
        ("GET", "/schemas/ids/140"): (200, {"schema": TEXT}),
    }
    with registry(answers) as client:
        assert client.register(VERSION) == 140


@pytest.mark.parametrize(
    "read_back", [(200, {"schema": OTHER}), (200, {"schema": "["}), (200, {}), (200, []), (404, {"schema": TEXT})]
)
def test_an_id_that_gives_another_schema_is_refused(read_back: tuple[int, Any]) -> None:
    """A registry that mixes its ids up would mislead every reader."""
    answers: Answers = {("POST", SUBJECT): (200, {"id": 140}), ("GET", "/schemas/ids/140"): read_back}
    with registry(answers) as client, pytest.raises(SchemaCheckFailed, match="another schema for the id 140"):
        client.register(VERSION)


@pytest.mark.parametrize("status", [409, 422])
def test_a_refused_schema_is_named_with_the_registrys_reason(status: int) -> None:
    """The registry's message reaches the operator."""
    answers: Answers = {("POST", SUBJECT): (status, {"message": "incompatible with 3"})}
    with registry(answers) as client, pytest.raises(SchemaCheckFailed, match="refuses") as refused:
        client.register(VERSION)
    assert f"answered {status}: incompatible with 3" in refused.value.why


def test_an_answer_without_an_id_is_no_registry() -> None:
    """There is no id to write into records."""
    answers: Answers = {("POST", SUBJECT): (200, {"id": "140"})}
    with registry(answers) as client, pytest.raises(RegistryUnreachable, match="no id"):
        client.register(VERSION)
