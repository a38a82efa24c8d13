"""Embeddings of the catalogue's skills: filled outside of folds, kept up to date, and searched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy.exc import ProgrammingError

from database.connector import Database as Connector
from database.connector import connect
from database.errors import RowRefused
from entities.embedding import Vectors
from entities.errors import EmbedderBroken, SearchRefused
from entities.ngram_embedder import NgramEmbedder, embed_texts
from projections.engine import PartitionProjector
from projections.marketplace import skill_embeddings
from projections.marketplace.skill_embeddings import embed_skills, similar_skills
from schemas.entity_states import SkillState
from schemas.events import EntityRetired, Event, SkillRegistered
from tests.conftest import Database, SettingsFor
from tests.support.batches import WATERMARKS, batch_of
from tests.support.direct_changes import fetch
from tests.support.tenants import Attempt

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
PYTHON, JAVA, BREAD, SNAKES = (UUID(int=number) for number in range(1, 5))
SKILLS = {
    PYTHON: "Python programming",
    JAVA: "Java programming",
    BREAD: "bake bread",
    SNAKES: "keep pythons",
}
EMBEDDER = NgramEmbedder()


class CountingEmbedder:
    """The built-in one, under a name of its own; counts the texts that it gets, and can end in the middle."""

    def __init__(self, model: str = "counting/1", broken_after: int = 10_000) -> None:
        self.model = model
        self.texts = list[str]()
        self._broken_after = broken_after

    async def embed(self, texts: Sequence[str]) -> Vectors:
        self.texts += texts
        vectors = embed_texts(texts)
        return vectors if len(self.texts) <= self._broken_after else vectors * 2


@pytest_asyncio.fixture
async def embedder_role(database: Database, settings_for: SettingsFor, api: Connector) -> AsyncIterator[Connector]:
    connector = connect(settings_for(database), "embedder")
    yield connector
    await connector.close()


@pytest.fixture
def skills(projector: PartitionProjector, api: Connector) -> PartitionProjector:
    """The skills above, in the catalogue."""
    register(projector, SKILLS, 0)
    return projector


def register(projector: PartitionProjector, named: dict[UUID, str], start: int) -> None:
    """Register skills, or register them again under other names."""
    apply(
        projector,
        [
            SkillRegistered(
                event_id=UUID(int=start << 8 | number), skill_id=skill_id, occurred_at=NOW, name=name, description="",
                category="technical",
            )
            for number, (skill_id, name) in enumerate(named.items(), 100)
        ],
        start,
    )  # fmt: skip


def apply(projector: PartitionProjector, events: Sequence[Event], start: int) -> None:
    """Apply events from an offset on, by a new owner."""
    projector.project(batch_of(events, token=projector.acquire(WATERMARKS).token, start=start))


async def test_every_skill_gets_an_embedding_of_its_own_text(
    skills: PartitionProjector, embedder_role: Connector, api: Connector
) -> None:
    """Then what shares words with a text is found by it, the nearest first; what does not is not."""
    assert await embed_skills(embedder_role, EMBEDDER) == len(SKILLS)

    found = await similar_skills(api, EMBEDDER, "programming in Python")
    near = await similar_skills(api, EMBEDDER, PYTHON, min_similarity=0.1)

    assert [skill.name for skill in found][:2] == ["Python programming", "Java programming"]
    assert [skill.similarity for skill in found] == sorted((skill.similarity for skill in found), reverse=True)
    assert [skill.skill_id for skill in near] == [JAVA, SNAKES]
    assert (await similar_skills(api, EMBEDDER, "Python programming", limit=1))[0].similarity == pytest.approx(1)


async def test_what_has_an_embedding_is_not_embedded_again(
    skills: PartitionProjector, embedder_role: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another walk has only what is new or changed, whatever the size of its batches."""
    monkeypatch.setattr(skill_embeddings, "SKILLS_A_BATCH", 2)
    first, second = CountingEmbedder(), CountingEmbedder()

    assert await embed_skills(embedder_role, first) == 4
    register(skills, {BREAD: "bake cakes", UUID(int=9): "new"}, 4)
    assert await embed_skills(embedder_role, second) == 2

    assert first.texts == [f"{name}\n" for name in SKILLS.values()]
    assert second.texts == ["bake cakes\n", "new\n"]
    assert await embed_skills(embedder_role, CountingEmbedder()) == 0


async def test_another_model_embeds_everything_again(
    skills: PartitionProjector, embedder_role: Connector, api: Connector
) -> None:
    """Vectors of two models are never compared: those of the former one find nothing until then."""
    await embed_skills(embedder_role, EMBEDDER)
    other = CountingEmbedder("other/2")

    assert await similar_skills(api, other, "Python programming") == []
    assert await similar_skills(api, other, PYTHON) == []
    assert await embed_skills(embedder_role, other) == len(SKILLS)
    assert (await similar_skills(api, other, PYTHON))[0].skill_id == JAVA
    assert await similar_skills(api, EMBEDDER, PYTHON) == []


async def test_work_that_was_ended_goes_on_where_it_was(
    skills: PartitionProjector, embedder_role: Connector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that were kept stay; a broken embedder, or an end, costs the batch under way and no more."""
    monkeypatch.setattr(skill_embeddings, "SKILLS_A_BATCH", 1)
    with pytest.raises(EmbedderBroken):
        await embed_skills(embedder_role, CountingEmbedder(broken_after=2))

    assert await embed_skills(embedder_role, CountingEmbedder(), stopping=lambda: True) == 0
    assert await embed_skills(embedder_role, CountingEmbedder()) == 2


async def test_a_retired_skill_is_near_nothing(
    skills: PartitionProjector, embedder_role: Connector, api: Connector
) -> None:
    """It leaves the results at once, without the service."""
    await embed_skills(embedder_role, EMBEDDER)
    state = SkillState(name="Java programming", description="", category="technical")
    apply(
        skills,
        [EntityRetired(event_id=UUID(int=7), entity_id=JAVA, occurred_at=NOW, entity_type="skill", skill=state)],
        4,
    )

    assert JAVA not in [skill.skill_id for skill in await similar_skills(api, EMBEDDER, "programming")]


async def test_bounds_of_a_search_are_those_of_neighbours(api: Connector) -> None:
    """Too many results, or a similarity that there is not."""
    for arguments in ({"limit": 0}, {"limit": 201}, {"min_similarity": 1.5}):
        with pytest.raises(SearchRefused):
            await similar_skills(api, EMBEDDER, "a text", **arguments)  # type: ignore[arg-type]  # of a kind each


async def test_text_of_another_tenant_is_never_taken(
    skills: PartitionProjector, database: Database, embedder_role: Connector
) -> None:
    """A row of the catalogue that belongs to somebody else is not read, and no embedding is made for him."""
    await fetch(
        database.superuser_url,
        f"UPDATE marketplace_v3.marketplace_catalogue SET governance_agent_id = 'acme' WHERE entity_id = '{BREAD}'"
        " RETURNING 1",
    )
    counting = CountingEmbedder()

    assert await embed_skills(embedder_role, counting) == 3
    assert "bake bread\n" not in counting.texts
    with pytest.raises(RowRefused):
        await skill_embeddings._keep(_Elsewhere(embedder_role), counting, [(BREAD, "bread")])  # type: ignore[arg-type]


class _Elsewhere:
    """A database whose transactions are in another tenant than the one that the service names."""

    def __init__(self, database: Connector) -> None:
        self._database = database

    def transaction(self, _tenant: str) -> object:
        return self._database.transaction("acme")


async def test_the_role_can_do_nothing_else(database: Database, api: Connector, embedder_role: Connector) -> None:
    """It reads the catalogue and its own table, and writes there; neither profiles nor the log, nor a deletion."""
    async with Attempt(database.embedder_url, "genesis", commit=False) as attempt:
        await attempt.run(
            "SELECT * FROM read_models.marketplace_agents",
            "SELECT * FROM read_models.agents",
            "SELECT * FROM event_stream",
            "SELECT * FROM skills",
            "SELECT * FROM webhook_signatures",
            "UPDATE marketplace_v3.marketplace_catalogue SET name = ''",
            "DELETE FROM skill_embeddings",
            "UPDATE skill_embeddings SET governance_agent_id = 'genesis'",
        )
    assert [error.sqlstate for error in attempt.refusals] == ["42501"] * 8
    with pytest.raises(ProgrammingError, match="permission denied"):
        await skill_embeddings._keep(api, CountingEmbedder(), [(BREAD, "bread")])
