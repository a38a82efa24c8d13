"""What readers get: rows of the read models, pages, entity tags, waits, and problems."""

from __future__ import annotations

import asyncio
import base64
from urllib.parse import quote, urlencode
from uuid import UUID

import asyncpg
import httpx
import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from api.cursors import encode_cursor
from api.read_queries import ReadQuery, ReadRows
from operations.services.api import build_api
from runtime.settings import Settings
from schemas.events import AgentAvailable, AgentRated, Event, SkillRegistered, SkillValidated
from tests.support.batches import TOPIC
from tests.support.reading import NOW, SKILL, Reading, add_token, onboarded, problem, reading_of
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

OTHER_SKILL, RATER = UUID(int=901), UUID(int=902)


def available(number: int, *, available: bool = True) -> AgentAvailable:
    return AgentAvailable(
        event_id=UUID(int=20_000 + number), agent_id=UUID(int=number), occurred_at=NOW, available=available
    )


def everything() -> list[Event]:
    """Events that all resources show."""
    return [
        *map(onboarded, range(1, 6)),
        *(available(number, available=number % 2 == 1) for number in range(1, 5)),
        SkillRegistered(
            event_id=UUID(int=1), skill_id=SKILL, occurred_at=NOW, name="Soldering", description="With solder.",
            category="technical",
        ),
        SkillValidated(event_id=UUID(int=2), skill_id=SKILL, occurred_at=NOW, validator_id=RATER, score=80),
        AgentRated(event_id=UUID(int=3), agent_id=UUID(int=1), occurred_at=NOW, rater_id=RATER, rating=5),
    ]  # fmt: skip


async def test_a_row_is_read_by_its_id(reading: Reading) -> None:
    """Each column is there; ids and times are texts, and what is not known is null."""
    reading.project([onboarded(1), available(1)])
    answer = await reading.get(f"/agents/{UUID(int=1)}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {
        "agent_id": str(UUID(int=1)),
        "name": "Agent 1",
        "industry_id": None,
        "job_role_id": None,
        "team_id": None,
        "skill_ids": [str(SKILL)],
        "status": "onboarded",
        "profile_changed_at": "2026-11-23T08:30:00Z",
        "available": True,
        "available_from": None,
        "availability_changed_at": "2026-11-23T08:30:00Z",
    }


async def test_a_row_that_is_not_there_is_a_problem(reading: Reading) -> None:
    """It is 404, and not the same as a path that is not there."""
    assert problem(await reading.get(f"/agents/{UUID(int=1)}")) == (404, "no-row")
    assert problem(await reading.get("/agents/1/2")) == (404, "not-found")
    assert problem(await reading.get("/agents/")) == (400, "parameter")
    assert problem(await reading.get(f"/activity/{UUID(int=1)}")) == (404, "not-found")
    assert problem(await reading.get("/nothing")) == (404, "not-found")


async def test_all_resources_answer(reading: Reading) -> None:
    """Skills with their validation now, ratings with their means, activity by hour."""
    reading.project(everything())
    (skill,) = (await reading.get("/skills")).json()["items"]
    assert (skill["name"], skill["score"], skill["validated_at"]) == ("Soldering", 80, "2026-11-23T08:30:00Z")
    expired = await reading.get(f"/skills/{SKILL}?validation-days=1")
    assert expired.json()["expires_at"] == "2026-11-24T08:30:00Z"
    overall, whole = (await reading.get(f"/ratings/{UUID(int=1)}")).json()["items"]
    assert (overall["overall"], overall["ratings"], overall["mean"]) == (True, 1, 5.0)
    assert (whole["skill_id"], whole["histogram"]) == (None, [0, 0, 0, 0, 1])
    assert (await reading.get(f"/ratings/{UUID(int=99)}")).json() == {"items": [], "next": None}
    hours = (await reading.get("/activity?from=2026-11-23T00:00:00Z&to=2026-11-24T00:00:00Z")).json()["items"]
    assert {each["event_type"]: each["events"] for each in hours} == {
        "genesis.agent.available": 4,
        "genesis.agent.onboarded": 5,
        "genesis.agent.rated": 1,
        "genesis.skill.registered": 1,
        "genesis.skill.validated": 1,
    }
    assert {each["hour"] for each in hours} == {"2026-11-23T08:00:00Z"}


async def test_filters_choose_rows(reading: Reading) -> None:
    """Several filters hold together; one that nothing fits gives an empty page."""
    reading.project([*everything(), onboarded(6, skill=OTHER_SKILL)])

    async def ids(query: str) -> list[int]:
        return [UUID(each["agent_id"]).int for each in (await reading.get(f"/agents?{query}")).json()["items"]]

    assert await ids("available=true") == [1, 3]
    assert await ids(f"available=false&skill={SKILL}&status=onboarded") == [2, 4]
    assert await ids(f"skill={OTHER_SKILL}") == [6]
    assert await ids("status=retired") == []
    assert len((await reading.get("/skills?validation=validated&category=technical")).json()["items"]) == 1
    assert (await reading.get("/skills?validation=unvalidated")).json()["items"] == []


async def test_the_marketplace_is_searched(reading: Reading) -> None:
    """By all conditions together, in either order, page by page; a cursor belongs to its search."""
    reading.project([*everything(), onboarded(6, skill=OTHER_SKILL)])

    async def ids(query: str) -> list[int]:
        return [UUID(each["agent_id"]).int for each in (await reading.get(f"/marketplace?{query}")).json()["items"]]

    assert await ids("") == [1, 2, 3, 4, 5, 6]
    assert await ids(f"skill={OTHER_SKILL}") == [6]
    assert await ids(f"any-skill={OTHER_SKILL}&any-skill={SKILL}") == [1, 2, 3, 4, 5, 6]
    assert await ids(f"skill={OTHER_SKILL}&skill={SKILL}") == []
    assert await ids("available-at=2026-11-24T00:00:00Z") == [1, 3]
    assert await ids("sort=rating&limit=1") == [1]
    assert await ids("text=soldering") == [1, 2, 3, 4, 5]
    first = (await reading.get("/marketplace?limit=4")).json()
    assert await ids(f"limit=4&cursor={first['next']}") == [5, 6]
    for query in ("sort=rating", f"skill={SKILL}"):
        assert problem(await reading.get(f"/marketplace?{query}&cursor={first['next']}")) == (400, "cursor")
    assert first["items"][0]["skills"] == ["Soldering"]
    assert problem(await reading.get(f"/marketplace/{UUID(int=1)}")) == (404, "not-found")


async def test_pages_follow_each_other(reading: Reading) -> None:
    """Each row is on one page, in the order of the key, though rows come before and behind while pages are read."""
    reading.project([onboarded(number) for number in range(10, 20)])
    seen: list[int] = []
    cursor = ""
    pages = 0
    while cursor is not None:
        page = (await reading.get(f"/agents?limit=3{cursor and f'&cursor={cursor}'}")).json()
        seen += [UUID(each["agent_id"]).int for each in page["items"]]
        pages += 1
        cursor = page["next"]
        if pages == 2:
            reading.project([onboarded(1), onboarded(30)], start=10)
    assert seen == [*range(10, 20), 30]
    assert pages == 4


async def test_pages_of_activity_follow_each_other(reading: Reading) -> None:
    """A key of two columns, one of them a time."""
    reading.project(everything())
    query = "/activity?from=2026-11-23T00:00:00Z&to=2026-11-24T00:00:00Z&limit=2"
    first = (await reading.get(query)).json()
    second = (await reading.get(f"{query}&cursor={first['next']}")).json()
    types = [each["event_type"] for each in first["items"] + second["items"]]
    assert types == sorted(types)
    assert len(set(types)) == 4


async def test_a_cursor_belongs_to_its_listing(reading: Reading) -> None:
    """With other filters, of another listing, changed, cut or made up: each is refused by name."""
    reading.project(everything())
    cursor = (await reading.get("/agents?limit=1&status=onboarded")).json()["next"]
    assert (await reading.get(f"/agents?status=onboarded&cursor={cursor}")).status_code == 200
    wrong = [
        f"/agents?cursor={cursor}",
        f"/agents?status=retired&cursor={cursor}",
        f"/skills?status=onboarded&cursor={cursor}",
        f"/agents?status=onboarded&cursor={cursor[:-2]}",
        f"/agents?status=onboarded&cursor={cursor[:-1]}{'A' if cursor[-1] != 'A' else 'B'}",
        "/agents?cursor=",
        "/agents?cursor=%00",
        "/agents?cursor=" + "A" * 4_000,
        "/agents?cursor=" + quote("né"),
    ]
    for path in wrong:
        assert problem(await reading.get(path)) == (400, "cursor"), path


async def test_the_same_answer_is_sent_once(reading: Reading) -> None:
    """An entity tag that the reader has gives 304 without a body, until a row changes."""
    reading.project([onboarded(1)])
    first = await reading.get("/agents")
    etag = first.headers["etag"]
    again = await reading.get("/agents", **{"if-none-match": f'"other", W/{etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert "content-length" not in again.headers
    assert first.headers["cache-control"] == "private, no-cache"
    reading.project([available(1)], start=1)
    changed = await reading.get("/agents", **{"if-none-match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


async def test_a_cursor_that_was_forged_is_refused(reading: Reading) -> None:
    """Its digest is no secret: keys of another kind, or of another length, don't reach the database."""
    reading.project(everything())
    hours = {"from": "2026-11-23T00:00:00Z", "to": "2026-11-24T00:00:00Z"}
    forged = [
        ("agents", {}, ["none"]), ("agents", {}, [str(UUID(int=1)), "more"]), ("agents", {}, []),
        ("skills", {}, [str(SKILL) + "'"]), ("activity", hours, ["yesterday", "genesis.agent.rated"]),
        ("activity", hours, ["2026-11-23T08:00:00+00:00"]), ("activity", hours, ["9999-99-99T00:00:00Z", "x"]),
        ("marketplace", {}, ["none"]), ("marketplace", {"sort": "rating"}, ["e30"]), ("marketplace", {}, ["W10", "x"]),
    ]  # fmt: skip
    for name, filters, key in forged:
        cursor = encode_cursor(key, name, filters, "genesis")
        answer = await reading.get(f"/{name}?{urlencode({**filters, 'cursor': cursor})}")
        assert problem(answer) == (400, "parameter" if name == "marketplace" and len(key) == 1 else "cursor"), key
    true = encode_cursor([str(UUID(int=2))], "agents", {}, "genesis")
    assert [each["name"] for each in (await reading.get(f"/agents?cursor={true}")).json()["items"]] == [
        "Agent 3", "Agent 4", "Agent 5",
    ]  # fmt: skip
    others = encode_cursor([str(UUID(int=2))], "agents", {}, "acme")
    assert problem(await reading.get(f"/agents?cursor={others}")) == (400, "cursor")


@pytest.mark.parametrize(
    "character", ["a", "é", "日", "🦀", "\x01", '"'], ids=["ascii", "two", "three", "four", "control", "quoted"]
)
async def test_a_search_goes_on_behind_an_agent_of_any_name(reading: Reading, character: str) -> None:
    """The cursor of a page is taken back, however long the name is that its last row has."""
    named = [msgspec.structs.replace(onboarded(number), name=character * 199 + str(number)) for number in (1, 2, 3)]
    reading.project(named)
    for query in ("/marketplace?limit=1", "/marketplace?limit=1&sort=rating"):
        seen, cursor = [], ""
        while cursor is not None:
            answer = await reading.get(query + (cursor and f"&cursor={cursor}"))
            assert answer.status_code == 200, answer.text
            seen += [UUID(each["agent_id"]).int for each in answer.json()["items"]]
            cursor = answer.json()["next"]
        assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    "own",
    [
        r'["name",3.0,"\ud800","%s"]', r'["name",3.0,"\ud83e\udd80","%s"]', r'["name",3.0,"a\u0000","%s"]',
        r'["name",1e999,"a","%s"]', r'["rating",3.0,1e999,"%s"]', r'["rating",3.0,-1e308,"%s"]',
        r'["rating",3.0,4,"%s"]',
        r'["rating",5,"4","%s"]', r'["rating",3.0,5e-324,"%s"]', r'["rating",3.0,-0.0,"%s"]',
        r'["rating",3.0,null,"%s"]', r'["rating",3.0,4.0,"%s",1]',
        r'["rating",3.0,123456789012345678901234567890,"%s"]',
        r'["other",3.0,4.0,"%s"]', r'{"sort":"name","x":"%s"}',
    ],
)  # fmt: skip
async def test_the_cursor_within_a_cursor_may_hold_anything(reading: Reading, own: str) -> None:
    """Whoever makes one up gets rows in its order, or a refusal, and never a fault of ours."""
    reading.project(everything())
    inner = base64.urlsafe_b64encode((own % UUID(int=1)).encode()).decode().rstrip("=")
    for filters in ({}, {"sort": "rating"}):
        cursor = encode_cursor([inner], "marketplace", filters, "genesis")
        answer = await reading.get(f"/marketplace?{urlencode({**filters, 'cursor': cursor})}")
        assert answer.status_code == 200 or problem(answer) == (400, "parameter"), answer.text


async def test_a_cursor_is_not_bound_to_a_wait_or_a_page_size(reading: Reading) -> None:
    """It continues a listing that waited for a position, in pages of another size."""
    reading.project(everything())
    first = (await reading.get(f"/agents?limit=2&at-least={TOPIC}/0/1")).json()
    rest = (await reading.get(f"/agents?limit=10&cursor={first['next']}")).json()
    assert [each["name"] for each in rest["items"]] == ["Agent 3", "Agent 4", "Agent 5"]
    assert rest["next"] is None


async def test_an_entity_tag_is_of_the_whole_answer(reading: Reading) -> None:
    """A page that has a next one now is another answer; a row has its own, which changes with it alone."""
    reading.project([onboarded(1)])
    page, row = "/agents?limit=1", f"/agents/{UUID(int=1)}"
    tags = [(await reading.get(path)).headers["etag"] for path in (page, row)]
    reading.project([onboarded(2)], start=1)
    again = [await reading.get(path, **{"if-none-match": tag}) for path, tag in zip((page, row), tags, strict=True)]
    assert [answer.status_code for answer in again] == [200, 304]
    reading.project([available(1)], start=2)
    changed = await reading.get(row, **{"if-none-match": tags[1]})
    assert (changed.status_code, changed.json()["available"]) == (200, True)
    assert changed.headers["etag"] not in tags
    missing = await reading.get(f"/agents/{UUID(int=9)}", **{"if-none-match": "*"})
    assert problem(missing) == (404, "no-row")
    assert "etag" not in missing.headers


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/agents?colour=red", "colour"),
        ("/agents?status=", "status"),
        ("/agents?status=a&status=b", "status"),
        ("/agents?status=%00", "status"),
        ("/agents?status=" + "x" * 201, "status"),
        ("/agents?available=1", "available"),
        ("/agents?team=none", "team"),
        ("/agents?limit=0", "limit"),
        ("/agents?limit=501", "limit"),
        ("/agents?limit=1e9", "limit"),
        ("/agents?limit=%D9%A1", "limit"),
        ("/agents?at-least=genesis.events", "at-least"),
        ("/agents?at-least=genesis.events/0/99999999999999999999", "at-least"),
        ("/agents?at-least=genesis.events/9999999999/1", "at-least"),
        ("/agents?at-least=a%20b/0/1", "at-least"),
        ("/agents?at-least=genesis.deliveries/0/1", "at-least"),
        ("/agents?at-least=genesis.events.dead/0/1", "at-least"),
        ("/agents?" + "&".join(f"at-least=t/{number}/1" for number in range(65)), "at-least"),
        ("/agents/none", "agent_id"),
        ("/agents/%2e%2e", "agent_id"),
        (f"/agents/{UUID(int=1)}?limit=1", "limit"),
        (f"/ratings/{UUID(int=1)}?status=onboarded", "status"),
        ("/skills?validation=perhaps", "validation"),
        ("/marketplace?sort=age", "sort"),
        ("/marketplace?lowest-rating=6", "lowest-rating"),
        ("/marketplace?lowest-rating=nan", "lowest-rating"),
        ("/marketplace?limit=201", "limit"),
        ("/marketplace?" + "&".join([f"skill={UUID(int=1)}"] * 51), "skill"),
        ("/marketplace?text=%00", "text"),
        ("/marketplace?available-at=now", "available-at"),
        ("/skills?validation-days=0", "validation-days"),
        ("/skills?validation-days=99999999", "validation-days"),
        ("/activity?from=yesterday", "from"),
        ("/activity?from=2026-11-23T00:00:00", "from"),
        ("/activity?from=0001-01-01T00:00:00%2B23:59", "from"),
        ("/activity?to=0001-01-01T00:00:00Z", "to"),
        ("/activity?from=2026-11-24T00:00:00Z&to=2026-11-23T00:00:00Z", "from"),
        ("/activity?from=2020-11-24T00:00:00Z&to=2026-11-23T00:00:00Z", "from"),
    ],
)
async def test_a_parameter_that_does_not_fit_is_named(reading: Reading, path: str, parameter: str) -> None:
    """Nothing is skipped or guessed: the problem says which parameter, and what it may be."""
    answer = await reading.get(path)
    assert problem(answer) == (400, "parameter")
    (error,) = answer.json()["errors"]
    assert error["parameter"] == parameter
    assert error["detail"]


async def test_queries_of_any_shape_are_refused(reading: Reading) -> None:
    """Too long, too many, not UTF-8: each is a 400 and none a 500."""
    for query in ("a=" + "x" * 9_000, "&".join(["a=1"] * 101), "status=%ff", "%ff=1"):
        assert problem(await reading.get(f"/agents?{query}")) == (400, "parameter"), query[:20]
    assert problem(await reading.get("/agents", prefer="wait=soon")) == (400, "parameter")


async def test_only_get_and_head_without_a_body(reading: Reading) -> None:
    """Another method is refused with those that there are, and so is a body."""
    bearer = {"authorization": f"Bearer {reading.token.text}"}
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = await reading.client.request(method, "/agents", headers=bearer)
        assert problem(answer) == (405, "method"), method
        assert answer.headers["allow"] == "GET, HEAD"
    with_body = await reading.client.request("GET", "/agents", headers=bearer, content=b"{}")
    assert problem(with_body) == (413, "body-too-large")


async def test_a_read_waits_for_its_position(reading: Reading) -> None:
    """The answer shows the record that was named; until it is applied there is none."""
    reading.project([onboarded(1)])
    path = f"/agents/{UUID(int=2)}?at-least={TOPIC}/0/1"
    waiting = asyncio.create_task(reading.get(path, prefer="wait=30"))
    await wait_until_async(lambda: reading.api.reads.limits.waiters.count == 1, "the request waits")
    await asyncio.to_thread(reading.project, [onboarded(2)], start=1)
    answer = await waiting
    assert (answer.status_code, answer.json()["name"]) == (200, "Agent 2")
    assert reading.api.reads.limits.waiters.count == 0
    assert (await reading.get(path)).status_code == 200, "what is there is not waited for"


async def test_a_wait_that_is_over_says_where_the_read_model_is(reading: Reading) -> None:
    """The problem has the next offset of each partition that lacks the position, and of no other."""
    reading.project([onboarded(1)])
    query = f"at-least={TOPIC}/0/0&at-least={TOPIC}/0/7&at-least={TOPIC}/3/2&at-least=plant.operations/1/0"
    for wait in ("wait=0", "wait=1"):
        answer = await reading.get(f"/agents?{query}", prefer=wait)
        assert problem(answer) == (503, "not-caught-up")
        assert answer.headers["retry-after"] == "1"
        document = answer.json()
        assert document["read_model"] == "agents"
        assert document["positions"] == [
            {"topic": TOPIC, "partition": 0, "at_least": 7, "next_offset": 1},
            {"topic": TOPIC, "partition": 3, "at_least": 2, "next_offset": 0},
            {"topic": "plant.operations", "partition": 1, "at_least": 0, "next_offset": 0},
        ]
    assert reading.api.reads.limits.waiters.count == 0


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_ratings_of_many_skills_come_in_pages(reading: Reading, limit: int) -> None:
    """All of them first, then those of the agent as a whole, then by skill; each once, whatever a page holds."""
    skills = [UUID(int=number) for number in range(1, 8)]
    reading.project(
        AgentRated(
            event_id=UUID(int=10 + number),
            agent_id=UUID(int=1),
            occurred_at=NOW,
            rater_id=RATER,
            rating=5,
            skill_id=skill,
        )
        for number, skill in enumerate([*skills, None])
    )
    seen: list[tuple[bool, str | None]] = []
    path, cursor = f"/ratings/{UUID(int=1)}?limit={limit}", ""
    while cursor is not None:
        page = (await reading.get(path + (cursor and f"&cursor={cursor}"))).json()
        assert len(page["items"]) <= limit
        seen += [(row["overall"], row["skill_id"]) for row in page["items"]]
        assert page["items"] or not cursor, "no page is empty but that of an agent without ratings"
        cursor = page["next"]
    assert seen == [(True, None), (False, None), *((False, str(skill)) for skill in skills)]


async def test_a_cursor_of_one_agents_ratings_is_of_no_other(reading: Reading) -> None:
    """It is refused, as one of other filters is."""
    reading.project(everything())
    cursor = (await reading.get(f"/ratings/{UUID(int=1)}?limit=1")).json()["next"]
    assert problem(await reading.get(f"/ratings/{UUID(int=2)}?limit=1&cursor={cursor}")) == (400, "cursor")
    assert (await reading.get(f"/ratings/{UUID(int=1)}?limit=1&cursor={cursor}")).status_code == 200


async def test_waiters_hold_no_connection(reading: Reading) -> None:
    """With more waiters than the pool has connections, a read that waits for nothing is answered."""
    reading.project([onboarded(1)])
    path = f"/agents?at-least={TOPIC}/0/1"
    waiting = [asyncio.create_task(reading.get(path, prefer="wait=30")) for _ in range(50)]
    await wait_until_async(lambda: reading.api.reads.limits.waiters.count == 50, "all wait")
    assert (await reading.get("/agents")).status_code == 200
    await asyncio.to_thread(reading.project, [onboarded(2)], start=1)
    answers = await asyncio.gather(*waiting)
    assert {answer.status_code for answer in answers} == {200}
    assert {len(answer.json()["items"]) for answer in answers} == {2}


async def test_waiters_that_one_checkpoint_wakes_read_by_turns(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more of them read at once than the limits of requests say, and all are answered."""
    few = msgspec.structs.replace(settings, api_requests_per_token=2)
    under_way = most = 0
    run = ReadQuery.run

    async def count(query: ReadQuery, connection: AsyncConnection) -> ReadRows:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        rows = await run(query, connection)
        under_way -= 1
        return rows

    monkeypatch.setattr(ReadQuery, "run", count)
    async with reading_of(few) as reading:
        reading.project([onboarded(1)])
        limits, waiting = reading.api.reads.limits, []
        for number in range(1, 21):
            waiting.append(asyncio.create_task(reading.get(f"/agents?at-least={TOPIC}/0/1", prefer="wait=60")))
            await wait_until_async(lambda number=number: limits.waiters.count == number, "one more waits")
        await asyncio.to_thread(reading.project, [onboarded(2)], start=1)
        answers = await asyncio.gather(*waiting)
    assert {answer.status_code for answer in answers} == {200}
    assert most == 2


async def test_a_token_that_is_revoked_ends_its_wait(settings: Settings) -> None:
    """Its reader gets 401 long before the wait, of a day, would be over."""
    patient = msgspec.structs.replace(settings, api_wait_max_seconds=86_400)
    async with reading_of(patient) as reading:
        token = await reading.add_token()
        path = f"/agents?at-least={TOPIC}/0/1"
        waiting = asyncio.create_task(reading.get(path, token=token.text, prefer="wait=86400"))
        await wait_until_async(lambda: reading.api.reads.limits.waiters.count == 1, "the request waits")
        await reading.revoke(token)
        assert problem(await asyncio.wait_for(waiting, DEADLINE_SECONDS)) == (401, "unauthorized")
        assert reading.api.reads.limits.waiters.count == 0


def patient_queries(settings: Settings, pool_size: int) -> Settings:
    """Settings with which a query waits for a lock as long as a test may last."""
    seconds = int(DEADLINE_SECONDS)
    return msgspec.structs.replace(
        settings, database_pool_size=pool_size, api_query_timeout_seconds=seconds,
        database_statement_timeout_seconds=seconds, database_lock_timeout_seconds=seconds,
        database_pool_wait_seconds=seconds,
    )  # fmt: skip


async def test_a_token_that_is_revoked_ends_its_query(settings: Settings) -> None:
    """Its rows are not sent to it, however long before the revocation it was asked."""
    owner = await asyncpg.connect(settings.database_owner_url, ssl=False)
    try:
        async with reading_of(patient_queries(settings, 4)) as reading:
            token = await reading.add_token()
            async with owner.transaction():
                await owner.execute("LOCK TABLE agents_v1.agents")
                answering = asyncio.create_task(reading.get("/agents", token=token.text))
                await wait_until_async(lambda: reading.api.reads.limits.queries.count == 1, "the query runs")
                await reading.revoke(token)
                await wait_until_async(lambda: token.prefix not in reading.api.tokens._tokens, "it is known")
                assert not answering.done()
            assert problem(await answering) == (401, "unauthorized")
            assert reading.api.reads.limits.queries.count == 0
    finally:
        await owner.close()


async def test_slow_queries_of_a_token_leave_others_theirs(settings: Settings) -> None:
    """As many as it may have requests under way: another token is read, and tokens are known, all the same."""
    owner = await asyncpg.connect(settings.database_owner_url, ssl=False)
    try:
        async with reading_of(patient_queries(settings, 4)) as reading:
            limits, other = reading.api.reads.limits, await reading.add_token()
            async with owner.transaction():
                await owner.execute("LOCK TABLE agents_v1.agents")
                slow = [asyncio.create_task(reading.get("/agents")) for _ in range(20)]
                await wait_until_async(lambda: limits.requests.count == 20, "all are under way")
                assert (await reading.get("/skills", token=other.text)).status_code == 200
                await reading.api.tokens.refresh()
                assert limits.queries.count == 2
            assert {answer.status_code for answer in await asyncio.gather(*slow)} == {200}
            assert limits.queries.count == 0
    finally:
        await owner.close()


async def test_a_slow_query_is_stopped(settings: Settings) -> None:
    """The database ends it, its connection is free again, and the reader gets a problem that says so."""
    quick = msgspec.structs.replace(settings, api_query_timeout_seconds=1, database_pool_size=1)
    owner = await asyncpg.connect(settings.database_owner_url, ssl=False)
    try:
        async with reading_of(quick) as reading:
            async with owner.transaction():
                await owner.execute("LOCK TABLE agents_v1.agents")
                answer = await reading.get("/agents")
            assert problem(answer)[1] in ("query-timeout", "database-unavailable")
            assert answer.headers["retry-after"] == "1"

            async def read() -> bool:
                return (await reading.get("/agents")).status_code == 200

            await wait_until_async(read, "rows are read")
    finally:
        await owner.close()


async def test_requests_of_a_token_are_bounded(settings: Settings) -> None:
    """The requests, and the waiters, of one token are refused beyond their number; another token has its own."""
    few = msgspec.structs.replace(settings, api_requests_per_token=1, api_waiters_per_token=1, api_waiters_max=2)
    path = f"/agents?at-least={TOPIC}/0/1"
    async with reading_of(few) as reading:
        limits = reading.api.reads.limits
        others = [await reading.add_token() for _ in range(2)]
        with limits.requests.one_more(reading.token.prefix):
            answer = await reading.get("/agents")
            assert problem(answer) == (429, "too-many-requests")
            assert answer.headers["retry-after"] == "1"
            assert (await reading.get("/agents", token=others[0].text)).status_code == 200
        waiting = [
            asyncio.create_task(reading.get(path, token=text, prefer="wait=30"))
            for text in (reading.token.text, others[0].text)
        ]
        await wait_until_async(lambda: limits.waiters.count == 2, "both wait")
        assert problem(await reading.get(path)) == (429, "too-many-requests")
        assert problem(await reading.get(path, token=others[1].text)) == (503, "overloaded")
        assert (await reading.get("/agents")).status_code == 200, "who waits is no request under way"
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await wait_until_async(lambda: limits.waiters.count == 0, "none waits")
        assert (await reading.get("/agents")).status_code == 200


async def test_a_database_that_is_away_is_a_problem(settings: Settings) -> None:
    """Without tokens nobody is believed, and no answer is a 500."""
    token = await add_token(settings)
    away = msgspec.structs.replace(settings, database_api_url="postgresql://plant_api:p@127.0.0.1:1/plant")
    api = build_api(away)
    async with (
        api.app.lifespan(),
        httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://api") as c,
    ):
        answer = await c.get("/agents", headers={"authorization": f"Bearer {token.text}"})
        assert problem(answer) == (503, "starting")
        assert problem(await c.get("/readyz")) == (503, "starting")
        assert (await c.get("/livez")).json() == {"status": "alive"}


async def test_the_process_answers_for_itself(reading: Reading) -> None:
    """Readiness, the OpenAPI document, and metrics at the other application; none of them needs a token."""
    assert (await reading.client.get("/readyz")).json() == {"status": "ready"}
    assert (await reading.client.get("/openapi.json")).json()["openapi"] == "3.1.0"
    assert problem(await reading.client.get("/metrics")) == (404, "not-found")
    transport = httpx.ASGITransport(reading.api.admin_app)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as admin:
        assert "plant_api_tokens_loaded 1.0" in (await admin.get("/metrics")).text
