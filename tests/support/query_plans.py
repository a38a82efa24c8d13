"""Plans of the queries on the log and on read models: which there are, and what makes one bad."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy import TextClause

from audit.verifier import log_tables as verified_tables
from audit.verifier import stored_log
from entities.embedding import direction
from entities.vocabulary import EMBEDDING_DIMENSIONS
from operations.demo import tampering
from projections import (
    checkpoints,
    dead_letter_rows,
    effective_events,
    fold,
    log_progress,
    log_ranges,
    log_writer,
    parking_log,
    poison_rows,
    repeats,
)
from projections.activity import queries as activity_queries
from projections.agents import queries
from projections.inline import prepare_statement
from projections.inline_folds import InlineFolds
from projections.marketplace import queries as marketplace_queries
from projections.marketplace import skill_embeddings
from projections.marketplace.agent_search import AgentSearch
from projections.ratings import queries as ratings_queries
from projections.read_model import READ_MODELS, ReadModel
from projections.rebuild import end_offsets
from projections.recovery import consumer_positions, head_comparison
from projections.skills import queries as skills_queries
from projections.staged_names import STAGED_EVENTS
from projections.staging import Staging, every_event, staging_tables
from tests.support import ROOT

TOPIC, PARTITION, PARTITIONS = "genesis.events", 1, 4
RANGE_OFFSETS = 4_096
"""Offsets of a range here, so that a partition has several."""
BIG_TABLES = re.compile(
    r"agents|skills|skill_validations|ratings|activity|skill_embeddings|marketplace_(?!totals)\w+"
    rf"|{re.escape(TOPIC)}/\d+/\d+"
)
"""Tables that grow with the log, its ranges among them; the others have a row a partition or a row a range."""
REFUSED = {"operations/demo/tampering.py attempt_changes"}
"""Statements that Postgres is to refuse."""
COPIED = {"operations/demo/tampering.py _ROWS"}
"""Statements that copy a whole partition."""
SUMMED = {"projections/rebuild/comparison.py _DIGEST"}
"""Statements that read every row of a table, since all of them are compared."""
READ_ONCE = {
    "audit/verifier/stored_log.py _FIRST_UNFOUNDED_IN_OPEN",
    "projections/rebuild/end_offsets.py _FIRST_LATER",
}
"""Statements that read the log once, whatever is asked for."""
COMPARED = {
    "projections/marketplace/queries.py _PAGE",
    "projections/marketplace/queries.py _PAGE (later)",
}
"""Statements that compare every row: the best of all agents, by averages that each rating of anybody changes."""
LISTED = {
    "projections/listing.py Listing",
    "projections/skills/queries.py SKILLS",
    "projections/activity/queries.py ACTIVITY",
}
"""Pages for readers, whose time is bounded: until a table is analysed they may read it as a whole."""
PACKAGES = ("api", "audit", "database", "entities", "ingress", "operations", "projections", "relay", "streams")
SELECTIVE = (
    r"ctid|offset|event_id|agent_id|skill_id|entity_id|industry_id|job_role_id|\bword\b|hour|disposition = 'control'"
)
"""Conditions that leave few rows."""
NAMED = re.compile(
    r"\b(?:FROM|JOIN|UPDATE|INTO)\s+(?:ONLY\s+)?(?:public\.)?"
    r"(?:event_stream|audit_log|log_records|log\.|\{table\}|read_models\.|\w+_v\d+\.|__schema__\.)"
)


class PlannedQuery(NamedTuple):
    """A query as its caller runs it: role, settings, and arguments from the middle of a partition's rows."""

    sql: str
    arguments: Sequence[Any]
    role: str
    settings: Mapping[str, str] = {}


NOW = datetime(2026, 1, 1, tzinfo=UTC)
_VERIFIER = stored_log.PLANNER
_SCANNING = stored_log.PLANNER | dict(re.findall(r"SET LOCAL (\w+) = '?(\w+)'?", stored_log._SCAN_ONCE))
_WORKER = {"jit": "off", "plant.governance_agent_id": "genesis"}
_READER = {"plant.governance_agent_id": "genesis"}


def planned_queries(rows: int) -> dict[str, PlannedQuery]:
    """The queries on tables that hold so many rows of each partition, by module and name.

    In brackets: the same statement, in another place.
    """
    first, last = rows // 4, rows // 2
    chain = (TOPIC, PARTITION)
    ids = [UUID(int=number) for number in range(first, min(first + 50, last))]
    closed, opened = (range_table(number) for number in (first, rows - 1))
    encoded = [identity.bytes for identity in ids]
    offsets = list(range(rows - len(ids), rows))

    def worker(sql: str, *arguments: Any) -> PlannedQuery:
        return PlannedQuery(sql, arguments, "plant_writer", _WORKER)

    def verifier(sql: str, *arguments: Any, settings: Mapping[str, str] = _VERIFIER) -> PlannedQuery:
        return PlannedQuery(sql, arguments, "plant_auditor", settings)

    def reader(query: TextClause, **values: Any) -> PlannedQuery:
        return PlannedQuery(*numbered(str(query), **values), "plant_api", _READER)

    def listed(statement: str, *arguments: Any) -> PlannedQuery:
        return PlannedQuery(statement, arguments, "plant_api", _READER)

    def auditor(query: str, **values: Any) -> PlannedQuery:
        return PlannedQuery(*numbered(query, topic=TOPIC, **values), "plant_auditor", _READER)

    of_partition = {"partition": PARTITION, "first": first}
    dead_letters = dead_letter_rows._PAGE.format(conditions=dead_letter_rows._CONDITIONS["cause"])
    literals = {"topic": f"'{TOPIC}'", "partition": str(PARTITION), "token": "1", "consumer": "'projector'"}
    at = {"first": str(first), "until": str(rows), "offsets": f"'{{{','.join(map(str, offsets))}}}'::bigint[]"}
    return {
        "audit/verifier/raised.sql": verifier(stored_log._RAISED),
        "audit/verifier/rows.sql": verifier(
            stored_log._ROWS.format(table=f'log."{closed}"'), *chain, first, min(last, RANGE_OFFSETS)
        ),
        "audit/verifier/stored_log.py _HASH_BEFORE": verifier(stored_log._HASH_BEFORE, *chain, first),
        "audit/verifier/stored_log.py _UNFOUNDED_IN_CLOSED": verifier(
            stored_log._UNFOUNDED_IN_CLOSED, *chain, list(range(first, first + len(ids))), ids, last
        ),
        "audit/verifier/stored_log.py _FIRST_UNFOUNDED_IN_OPEN": verifier(
            stored_log._FIRST_UNFOUNDED_IN_OPEN, *chain, offsets, ids, offsets[0], offsets[-1], settings=_SCANNING
        ),
        "audit/verifier/log_tables.py _ENDS": verifier(verified_tables._ENDS.format(oid=0, table=f'log."{closed}"')),
        "audit/verifier/stored_log.py _BROUGHT_IN": verifier(stored_log._BROUGHT_IN, *chain, ids),
        "audit/verifier/stored_log.py _LAST": verifier(stored_log._LAST, *chain),
        "audit/verifier/stored_log.py _TABLE_OF": verifier(stored_log._TABLE_OF, *chain, first),
        "audit/verifier/stored_log.py _HASH_AT": verifier(stored_log._HASH_AT, *chain, first),
        "projections/repeats.py _SEEN (closed range)": worker(
            repeats.seen_query(closed, encoded, [None] * len(ids) if rows > RANGE_OFFSETS else offsets)
        ),
        "projections/repeats.py _SEEN (open range)": worker(repeats.seen_query(opened, encoded, offsets)),
        "projections/log_ranges.py _IDS": worker(
            log_ranges._IDS.format(table=f'log."{closed}"', first=first, until=first + len(ids))
        ),
        "projections/log_writer.py _RAISED": worker(log_writer._RAISED.format(**literals)),
        "projections/checkpoints.py _LAST_RECORD": worker(checkpoints._LAST_RECORD, *chain, last),
        "projections/rebuild/end_offsets.py _FIRST_LATER": worker(
            end_offsets._FIRST_LATER, *chain, "2026-01-01T00:00:00+00:00"
        ),
        "projections/fold.py _APPLIED": worker(
            fold._APPLIED.format(columns="value", of_types=""), *chain, first, rows, fold.FOLD_RECORDS
        ),
        "projections/fold.py _APPLIED (of types)": worker(
            fold._APPLIED.format(columns="value, entity_id", of_types=fold._OF_TYPES),
            *chain,
            first,
            rows,
            fold.FOLD_RECORDS,
            "genesis.agent.rated",
        ),
        "projections/fold.py _APPLIED (with headers)": worker(
            fold._APPLIED.format(columns="value, headers", of_types=""), *chain, first, rows, fold.FOLD_RECORDS
        ),
        **{
            f"projections/parking_log.py {name}": worker(getattr(parking_log, name).format(**literals, **at))
            for name in ("_FIRST_WAITING", "_CHANGES", "_HAS_EFFECTS", "_POISON", "_RESOLVED", "_VALUES", "_HEADERS")
        },
        **{
            f"projections/effective_events.py {name}": worker(
                getattr(effective_events, name).format(**literals, **at, limit=1_000)
            )
            for name in ("_UNAPPLIED", "_APPLIED", "_APPLIED_AT")
        },
        "projections/poison_rows.py UNSENT": worker(poison_rows.UNSENT, TOPIC, 100, 1_000_000, 1_000, None, None),
        "projections/dead_letter_rows.py _ONE_PARTITION (page)": auditor(
            dead_letters, **of_partition, until=rows, cause="a test"
        ),
        "projections/dead_letter_rows.py _ONE_PARTITION (records)": auditor(
            dead_letter_rows._RECORDS, partition=PARTITION, whole=True, offsets=offsets
        ),
        "projections/dead_letter_rows.py _ONE_PARTITION (resolved)": auditor(
            dead_letter_rows._RESOLVED, **of_partition, last=last
        ),
        "projections/dead_letter_rows.py _ONE_PARTITION (parked)": auditor(
            dead_letter_rows._PARKED, **of_partition, entities=ids
        ),
        "projections/dead_letter_rows.py _ONE_PARTITION (ineffective)": auditor(
            dead_letter_rows._INEFFECTIVE, **of_partition, last=last, mark=b"mark"
        ),
        "projections/dead_letter_rows.py _OPERATION": PlannedQuery(
            *numbered(dead_letter_rows._OPERATION, event_id=ids[0]), "plant_auditor", _READER
        ),
        **{
            f"projections/{model.name}/apply.sql ({number})": worker(fold)
            for model in READ_MODELS
            for number, fold in enumerate(model.folds(), 1)
        },
        **{
            f"projections/{model.name}/apply.sql ({number}, inline)": worker(fold)
            for model in READ_MODELS
            for number, fold in enumerate(inline_folds(model), 1)
        },
        "projections/log_progress.py _DISPOSITIONS": PlannedQuery(
            *numbered(str(log_progress._DISPOSITIONS), topic=TOPIC, partitions=[0, 1], offsets=[first, last]),
            "plant_api",
        ),
        "projections/recovery/head_comparison.py _HASH": worker(head_comparison._HASH, *chain, first),
        "projections/recovery/head_comparison.py _RAISED": worker(head_comparison._RAISED, *chain),
        "projections/recovery/head_comparison.py _BETWEEN": worker(head_comparison._BETWEEN, *chain, first, last, 100),
        "projections/recovery/consumer_positions.py _BEFORE": worker(consumer_positions._BEFORE, *chain, last, 1_000),
        "projections/recovery/consumer_positions.py _POISON": worker(consumer_positions._POISON, *chain, "{1,2}"),
        "projections/agents/queries.py _BY_ID": reader(queries._BY_ID, ids=ids),
        "projections/skills/queries.py _BY_ID": reader(skills_queries._BY_ID, ids=ids, now=NOW, days=365),
        "projections/listing.py Listing": listed(queries.AGENTS.page([], after=True), ids[0], 100),
        "projections/listing.py Listing (one)": listed(queries.AGENTS.one(), ids[0]),
        "projections/skills/queries.py SKILLS": listed(
            skills_queries.SKILLS.page([], after=True), NOW, 365, ids[0], 100
        ),
        "projections/skills/queries.py SKILLS (one)": listed(skills_queries.SKILLS.one(), NOW, 365, ids[0]),
        "projections/activity/queries.py ACTIVITY": listed(
            activity_queries.ACTIVITY.page([], after=True), NOW, NOW + timedelta(hours=50), NOW, "genesis", 100
        ),
        "projections/skills/queries.py _OF_AN_AGENT": reader(
            skills_queries._OF_AN_AGENT, ids=ids, agent_id=ids[0], now=NOW, days=365
        ),
        "projections/ratings/queries.py _OF_AN_AGENT_TEXT": reader(
            ratings_queries._OF_AN_AGENT,
            agent_id=ids[0],
            prior=10,
            first=NOW.date(),
            today=NOW.date(),
            after=None,
            rows=100,
        ),
        "projections/activity/queries.py _HOURS": reader(
            activity_queries._HOURS, start=NOW, stop=NOW + timedelta(hours=1)
        ),
        **_marketplace(ids),
        "operations/demo/tampering.py _RATED": PlannedQuery(tampering._RATED, (*chain, first), "plant_auditor"),
        "operations/demo/tampering.py _CHANGE": PlannedQuery(tampering._CHANGE, (b"", *chain, first, b""), "postgres"),
    }


def _marketplace(ids: Sequence[UUID]) -> dict[str, PlannedQuery]:
    """The queries of the marketplace: a page for each condition, by name and by rating, first and later."""
    file = "projections/marketplace/queries.py"
    searches = {
        "_STANDING_OF_EACH": AgentSearch(available_at=NOW, lowest_rating=4.0),
        "_WITH_NAMES (industry)": AgentSearch(industry_id=ids[0], available_at=NOW),
        "_WITH_NAMES (job role)": AgentSearch(job_role_id=ids[0], available_at=NOW, sort="rating"),
        "_ALL_SKILLS": AgentSearch(all_skills=ids[:3], available_at=NOW, sort="rating"),
        "_ANY_SKILLS": AgentSearch(any_skills=ids[:3], available_at=NOW),
        "_TEXT": AgentSearch(text="skill 7", available_at=NOW),
        "_FOUND": AgentSearch(text="skill 7", all_skills=ids[:2], lowest_rating=4.0, sort="rating"),
        "_PAGE": AgentSearch(available_at=NOW, sort="rating"),
    }
    mean = numbered(str(marketplace_queries._MEAN), whole_tables="off", sorting="off")
    found = {f"{file} _MEAN": PlannedQuery(*mean, "plant_api", _READER)}
    for name, search in searches.items():
        last = marketplace_queries._Cursor(search.sort, 3.0, "A" if search.sort == "name" else 3.0, ids[0])
        for after in (None, last):
            statement = str(marketplace_queries._statement(search, after is not None))
            arguments = marketplace_queries._arguments(search, 3.0, after) | {"limit": 51}
            later = "" if after is None else " (later)"
            planning = marketplace_queries._planning(search)
            settings = _READER | {"enable_seqscan": planning["whole_tables"], "enable_sort": planning["sorting"]}
            query = PlannedQuery(*numbered(statement, **arguments), "plant_api", settings)
            found[f"{file} {name}{later}"] = query
    vector = direction([1.0] * EMBEDDING_DIMENSIONS).tolist()
    near = {"vector": vector, "candidates": 20, "farthest": 1.0, "limit": 10, "model": "a model", "without": ids[:1]}
    page = {"after": ids[0], "limit": 200, "model": "a model", "tenant": "genesis"}
    file = "projections/marketplace/skill_embeddings.py"
    similar = numbered(str(skill_embeddings._SIMILAR), **near)
    return found | {
        f"{file} _SIMILAR": PlannedQuery(*similar, "plant_api", _READER),
        f"{file} _STALE": PlannedQuery(*numbered(str(skill_embeddings._STALE), **page), "plant_embedder", _READER),
    }


def numbered(sql: str, **values: Any) -> tuple[str, list[Any]]:
    """A statement with `:name` parameters as one with `$1`, and its arguments in that order."""
    for number, name in enumerate(values, 1):
        sql = re.sub(rf"(?<!:):{name}\b", f"${number}", sql)
    return sql, list(values.values())


def statements_on_big_tables() -> set[str]:
    """Where production code names a table that grows with the log in SQL: a file, and the constant in it."""
    found = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.sql")):
            if NAMED.search(path.read_text("utf-8")):
                found.add(path.relative_to(ROOT).as_posix())
        for path in sorted((ROOT / package).rglob("*.py")):
            if "migrations" not in path.parts:
                found |= {f"{path.relative_to(ROOT).as_posix()} {name}" for name in _constants(path)}
    return found


def _constants(path: Path) -> Iterator[str]:
    """The names of a module's constants, or of its functions, that hold SQL on a big table."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body:
        explained = ast.get_docstring(node, clean=False) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
        texts = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and each.value != explained)
        if any(NAMED.search(text) for text in texts if isinstance(text, str)):
            match node:
                case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                    yield name
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    yield name


def inline_folds(model: ReadModel) -> Iterator[str]:
    """Yield a model's statements as small batches run them, with ten rows of each table in place of the parameters."""
    folds = InlineFolds(Staging(READ_MODELS))
    for statement in model.statements:
        _, kinds, text = re.split(
            r"^PREPARE fold \((.*?)\) AS ",
            prepare_statement("fold", statement.in_schema(model.schema), folds.named_columns(statement)),
        )
        for number, kind in reversed(list(enumerate(kinds.split(", "), 1))):
            text = text.replace(f"${number}", f"array_fill(NULL::{kind.removesuffix('[]')}, ARRAY[10])")
        yield text


async def fill(connection: asyncpg.Connection[Any], rows: int, *, start: int = 0) -> None:
    """Append rows to each partition and agents to the read model, as a fast load leaves them: nothing is analysed."""
    async with connection.transaction():
        await fill_log(connection, rows, start=start)
        for model in READ_MODELS:
            for table in model.tables:
                await connection.execute(f"ALTER TABLE {model.schema}.{table} SET (autovacuum_enabled = off)")
        for sql in _FILL_MODELS:
            await connection.execute(sql.format(start=start, stop=start + rows - 1, last=PARTITIONS - 1))


async def fill_log(connection: asyncpg.Connection[Any], rows: int, *, start: int = 0) -> None:
    """Append rows to each partition, and none to the read models, which take four times as long."""
    async with connection.transaction():
        await make_ranges(connection, start, start + rows - 1)
        await connection.execute(_FILL_LOG.format(start=start, stop=start + rows - 1, last=PARTITIONS - 1, topic=TOPIC))
        await close_ranges(connection)


def range_table(offset: int) -> str:
    """The name of the table that has an offset of the partition that is asked for."""
    return f"{TOPIC}/{PARTITION}/{offset - offset % RANGE_OFFSETS}"


async def make_ranges(connection: asyncpg.Connection[Any], first: int, last: int) -> None:
    """Make the ranges of these offsets in every partition; all but the last are closed."""
    await connection.execute(
        "CREATE OR REPLACE FUNCTION log_range_offsets() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE"
        f" RETURN {RANGE_OFFSETS}"
    )
    for partition in range(PARTITIONS):
        for start in range(first - first % RANGE_OFFSETS, last + 1, RANGE_OFFSETS):
            key = (TOPIC, partition, start)
            if await connection.fetchval(
                "SELECT true FROM log_ranges WHERE (topic, partition, first_offset) = ($1, $2, $3)", *key
            ):
                continue
            table = await connection.fetchval("SELECT add_log_range($1, $2, $3)", *key)
            await connection.execute(f'ALTER TABLE log."{table}" SET (autovacuum_enabled = off)')


async def close_ranges(connection: asyncpg.Connection[Any]) -> None:
    """Index and close every range that is full."""
    await connection.execute(
        "SELECT index_log_range(topic, partition, first_offset), close_log_range(topic, partition, first_offset)"
        " FROM log_ranges AS r WHERE EXISTS (SELECT FROM log_ranges AS l"
        " WHERE (l.topic, l.partition) = (r.topic, r.partition) AND l.first_offset > r.first_offset)"
    )


_RECORDS = "generate_series(0, {last}) AS p (partition), generate_series({start}, {stop}) AS o (number)"
_FILL_LOG = f"""INSERT INTO log_records
    (topic, partition, "offset", created_at, disposition, event_id, entity_type, entity_id, event_type, hash,
     value, headers, reason)
SELECT '{{topic}}', partition, number, '2026-01-01Z',
    (CASE WHEN number % 50 = 7 THEN 'poison' ELSE 'applied' END)::log_disposition,
    lpad(to_hex(number * 8 + partition), 32, '0')::uuid, 'agent', lpad(to_hex(number % 5000), 32, '0')::uuid,
    'genesis.agent.rated', sha256((number + 1)::text::bytea), repeat('v', 90)::bytea, repeat('h', 220)::bytea,
    CASE WHEN number % 50 = 7 THEN 'a test' END
FROM {_RECORDS} ORDER BY number, partition"""
_FILL_MODELS = (
    """INSERT INTO agents_v1.agents (agent_id, name, status)
    SELECT lpad(to_hex(number), 32, '0')::uuid, 'Agent ' || number, 'onboarded'
    FROM generate_series({start}, {stop}) AS number""",
    """INSERT INTO skills_v1.skills (skill_id, name, status)
    SELECT lpad(to_hex(number), 32, '0')::uuid, 'Skill ' || number, 'registered'
    FROM generate_series({start}, {stop}) AS number""",
    """INSERT INTO skills_v1.skill_validations
        (skill_id, agent_id, validator_id, score, validated_at, validation_offset)
    SELECT lpad(to_hex(number), 32, '0')::uuid, lpad(to_hex(number), 32, '0')::uuid, gen_random_uuid(), 50,
        '2026-01-01Z', number
    FROM generate_series({start}, {stop}) AS number""",
    """INSERT INTO ratings_v1.ratings
        (agent_id, skill_id, day, ratings, rating_sum, rated_1, rated_2, rated_3, rated_4, rated_5)
    SELECT lpad(to_hex(number), 32, '0')::uuid, lpad(to_hex(number), 32, '0')::uuid, '2026-01-01', 1, 5, 0, 0, 0, 0, 1
    FROM generate_series({start}, {stop}) AS number""",
    """INSERT INTO marketplace_v3.marketplace_agents
        (agent_id, name, industry_id, job_role_id, skill_ids, status, profile_offset)
    SELECT lpad(to_hex(number), 32, '0')::uuid, 'Agent ' || number, lpad(to_hex(number % 20), 32, '0')::uuid,
        lpad(to_hex(number % 500), 32, '0')::uuid,
        ARRAY[lpad(to_hex(number % 900), 32, '0')::uuid, lpad(to_hex(number % 7), 32, '0')::uuid], 'onboarded', number
    FROM generate_series({start}, {stop}) AS number""",
    """INSERT INTO marketplace_v3.marketplace_agent_skills (skill_id, agent_id)
    SELECT DISTINCT unnest(skill_ids), agent_id FROM marketplace_v3.marketplace_agents
    WHERE profile_offset BETWEEN {start} AND {stop}""",
    """INSERT INTO marketplace_v3.marketplace_standings (agent_id, available, ratings, rating_sum)
    SELECT agent_id, profile_offset % 2 = 0, profile_offset % 9, profile_offset % 9 * (1 + profile_offset % 5)
    FROM marketplace_v3.marketplace_agents WHERE profile_offset BETWEEN {start} AND {stop}""",
    """INSERT INTO marketplace_v3.marketplace_totals (partition, ratings, rating_sum)
    SELECT partition, 1, 3 FROM generate_series(0, {last}) AS partition ON CONFLICT DO NOTHING""",
    """INSERT INTO marketplace_v3.marketplace_catalogue
        (kind, entity_id, name, description, words, retired, catalogue_offset)
    SELECT kind, lpad(to_hex(number), 32, '0')::uuid, kind || ' ' || number, '', ARRAY[number::text, kind],
        false, number
    FROM generate_series({start}, {stop}) AS number, unnest(ARRAY['skill', 'job_role', 'industry']) AS kind""",
    """INSERT INTO marketplace_v3.marketplace_words (word, kind, entity_id)
    SELECT unnest(words), kind, entity_id FROM marketplace_v3.marketplace_catalogue
    WHERE catalogue_offset BETWEEN {start} AND {stop}""",
    """INSERT INTO skill_embeddings (skill_id, model, text_sha256, embedding)
    SELECT lpad(to_hex(number), 32, '0')::uuid, 'a model', sha256(''),
        (SELECT array_agg(sin(number * 7919 + p * p)) FROM generate_series(1, 384) AS p)::real[]::vector(384)
    FROM generate_series({start}, least({stop}, 2000)) AS number""",
    """INSERT INTO activity_v1.activity (hour, event_type, partition, events)
    SELECT '2026-01-01Z'::timestamptz + number * '1 hour'::interval, 'genesis.agent.rated', 0, 1
    FROM generate_series({start}, {stop}) AS number""",
)


# A client that sends parameters has them bound, so the generic plan is asked for by the server itself.
_GENERIC_PLAN = """
CREATE OR REPLACE FUNCTION pg_temp.generic_plan(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE plan json;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT JSON, GENERIC_PLAN) ' || statement INTO plan;
    RETURN plan::text;
END
$$
"""


async def plans_of(
    connection: asyncpg.Connection[Any], queries: Mapping[str, PlannedQuery]
) -> dict[tuple[str, bool], dict[str, Any]]:
    """Return each query's plans by its name: for its arguments, and the generic one that a prepared statement may get.

    The staging tables are made once for all of them, which never see what another query has set.
    """
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    async with connection.transaction():
        await connection.execute(_GENERIC_PLAN)
        await _stage(connection)
        for name, query in queries.items():
            before = connection.transaction()
            await before.start()
            for setting, value in query.settings.items():
                await connection.execute("SELECT set_config($1, $2, true)", setting, value)
            await connection.execute(f"SET LOCAL ROLE {query.role}")
            generic = await connection.fetchval("SELECT pg_temp.generic_plan($1)", query.sql)
            shown = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query.sql}", *query.arguments)
            await before.rollback()
            found |= {(name, kind): json.loads(plan)[0]["Plan"] for kind, plan in ((True, generic), (False, shown))}
    return found


async def _stage(connection: asyncpg.Connection[Any]) -> None:
    """The staging tables of a batch of 2,000 events, which nobody ever analyses."""
    tables = {}
    for name, columns in staging_tables(READ_MODELS).items():
        tables[name] = ", ".join(f'"{each.name}" {each.type}' for each in columns)
    for name, ddl in tables.items():
        await connection.execute(f"CREATE TEMPORARY TABLE {name} ({ddl}) ON COMMIT DROP")
        await connection.execute(f"GRANT ALL ON {name} TO plant_writer")
    await connection.execute(f"CREATE TEMPORARY VIEW {STAGED_EVENTS} AS {every_event()}")
    await connection.execute(f"GRANT ALL ON {STAGED_EVENTS} TO plant_writer")
    numbers = "FROM generate_series(1, 2000) AS number"
    for table, column in {
        "staged_agent_onboarded": "agent_id",
        "staged_agent_available": "agent_id",
        "staged_agent_rated": "agent_id",
        "staged_skill_validated": "skill_id",
        "staged_skill_registered": "skill_id",
    }.items():
        sql = f"INSERT INTO {table} (\"offset\", {column}) SELECT number, lpad(to_hex(number), 32, '0')::uuid {numbers}"
        await connection.execute(sql)


def faults(plan: Mapping[str, Any], *, whole_tables: bool = False, limited: bool = False) -> Iterator[str]:
    """What makes a plan slow on a large table: it reads a whole table or partition, or compares every pair of rows."""
    kind, table = plan["Node Type"], plan.get("Relation Name")
    if kind == "Nested Loop" and "Join Filter" in plan and any(map(_is_big, plan["Plans"])):
        yield f"a nested loop compares pairs by {plan['Join Filter']}"
    if table is not None and BIG_TABLES.fullmatch(table) and "Scan" in kind:
        condition = plan.get("Index Cond", plan.get("Recheck Cond", plan.get("TID Cond", "")))
        if kind == "Seq Scan":
            if not whole_tables:
                yield f"{table} is read as a whole"
        elif not limited and not re.search(SELECTIVE, condition):
            yield f"{table} is read by {plan.get('Index Name')} with ({condition})"
    # A sort reads all of its input, and a limit above it helps nothing.
    keeps = kind == "Limit" or (limited and kind not in ("Sort", "Aggregate", "Hash", "Materialize", "HashAggregate"))
    for part in plan.get("Plans", ()):
        yield from faults(part, whole_tables=whole_tables, limited=keeps)


def _is_big(plan: Mapping[str, Any]) -> bool:
    return BIG_TABLES.fullmatch(plan.get("Relation Name", "")) is not None or any(map(_is_big, plan.get("Plans", ())))
