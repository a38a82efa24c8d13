"""Every request of the catalogue gets the answer that its page promises, and stores nothing."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from server.problems import kinds
from tests.support.bad_requests import ELSEWHERE, PAGE, Case, cases, page
from tests.support.serving import Serving
from tests.support.webhooks import read_all


def said_by(answer: Any) -> tuple[str, str, str]:
    """Kind, detail and pointer of a problem."""
    document = answer.json()
    errors = document.get("errors", [{}])
    detail = document.get("detail", "") or errors[0].get("detail", "")
    return document["type"].removeprefix("urn:plant:problem:"), detail, errors[0].get("pointer", "")


def disagreement(case: Case, answer: Any) -> str:
    """What is not as the catalogue says; nothing if all is."""
    if answer.status_code != case.status:
        return f"{case.section}: {case.what}: {answer.status_code} instead of {case.status}: {answer.text[:200]}"
    if not case.kind:
        return ""
    kind, detail, pointer = said_by(answer)
    if answer.headers["content-type"] != "application/problem+json":
        return f"{case.section}: {case.what}: no problem document"
    said = (kind, detail if case.detail else "", pointer)
    expected = (case.kind, case.detail, case.pointer)
    return "" if said == expected else f"{case.section}: {case.what}: {said} instead of {expected}"


async def test_every_bad_request_is_answered_as_the_catalogue_says(serving: Serving) -> None:
    """Status, problem, detail and pointer of each; and nothing is on the topic but what was accepted."""
    wrong = []
    for case in cases():
        answer = await serving.client.request(
            case.method, case.path, content=case.body, headers=case.headers(serving.sender)
        )
        wrong.append(disagreement(case, answer))
    assert [each for each in wrong if each] == []
    stored = await read_all(serving.settings, serving.topic)
    assert len(stored) == sum(case.status in (200, 207) for case in cases())


def test_every_kind_of_problem_is_in_the_catalogue() -> None:
    """With a request that is answered so, or with words on when."""
    assert {case.kind for case in cases() if case.kind} | ELSEWHERE.keys() == kinds().keys()


def test_the_catalogues_page_is_up_to_date() -> None:
    """docs/reference/errors.md is what `python -m tests.support.bad_requests` writes."""
    assert PAGE.read_text("utf-8") == page(), "run: python -m tests.support.bad_requests"


@pytest.mark.parametrize("changed", [{"status": 401}, {"kind": "signature"}, {"detail": "x"}, {"pointer": "#/x"}])
def test_the_comparison_can_say_no(changed: dict[str, Any]) -> None:
    """A catalogue that promises something else is found out."""

    class Answer:
        status_code = 422
        headers: ClassVar = {"content-type": "application/problem+json"}
        text = json.dumps(
            {
                "type": "urn:plant:problem:event",
                "errors": [{"detail": "Expected `int` <= 5", "pointer": "#/data/rating"}],
            }
        )

        def json(self) -> Any:
            return json.loads(self.text)

    as_is = {"status": 422, "kind": "event", "detail": "Expected `int` <= 5", "pointer": "#/data/rating"}
    assert disagreement(Case("Fields", "a rating", **as_is), Answer()) == ""  # type: ignore[arg-type]
    assert disagreement(Case("Fields", "a rating", **{**as_is, **changed}), Answer()) != ""  # type: ignore[arg-type]
