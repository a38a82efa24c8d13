"""Problems: their form, and their reference page."""

from __future__ import annotations

from pathlib import Path

import msgspec

from server import problems
from server.problems import FieldError, Problem, retry_after


def test_a_problem_is_rfc_9457() -> None:
    """A problem has type, title, status, and names its fields."""
    problem = Problem("event", "d", errors=(FieldError("Expected `int`", "#/data/x"),), headers=(retry_after(0),))
    document = msgspec.json.decode(problem.body())
    assert document["type"] == "urn:plant:problem:event"
    assert (document["status"], document["detail"]) == (422, "d")
    assert document["errors"] == [{"detail": "Expected `int`", "pointer": "#/data/x"}]
    assert (b"retry-after", b"1") in problem.header_list()
    assert problem.on_the_wire().startswith(b"HTTP/1.1 422 ")


def test_every_problem_is_in_the_reference() -> None:
    """docs/reference/http.md lists every kind of problem with its status."""
    page = (Path(problems.__file__).parent.parent / "docs" / "reference" / "http.md").read_text()
    for kind, (status, _) in problems.kinds().items():
        assert f"| {status} | `{problems.URN}{kind}` |" in page


def test_every_problem_of_readers_is_on_their_page() -> None:
    """docs/how-to/read.md lists every kind of problem with its status."""
    page = (Path(problems.__file__).parent.parent / "docs" / "how-to" / "read.md").read_text()
    for kind, (status, _) in problems.reader_kinds().items():
        assert f"| {status} | `{problems.URN}{kind}` |" in page


def test_every_kind_about_endpoints_is_on_the_page() -> None:
    """docs/how-to/endpoints.md lists every kind of problem with its status."""
    page = (Path(problems.__file__).parent.parent / "docs" / "how-to" / "endpoints.md").read_text()
    for kind, (status, _) in problems.endpoint_kinds().items():
        assert f"| {status} | `urn:plant:problem:{kind}` |" in page
