"""What a vector has to be to be searched with, and what is held against an embedder that breaks its promise.

No model is here: vectors are seeded or written out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from entities.embedding import Vectors, direction, embed
from entities.errors import EmbedderBroken, SearchRefused, VectorRefused
from entities.neighbours import LIMIT_MAX, agents_with, nearest_agents, nearest_industries, nearest_skills
from entities.vocabulary import EMBEDDING_DIMENSIONS, IDS_MAX

DIMENSIONS = EMBEDDING_DIMENSIONS


class Seeded:
    """An embedder for tests: each text's hash seeds its vector, so nearness is chance. `defect` breaks a promise."""

    model = "seeded/1"

    def __init__(self, defect: str = "") -> None:
        self._defect = defect

    async def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        for row, text in enumerate(texts):
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
            vectors[row] = direction(np.random.default_rng(seed).standard_normal(DIMENSIONS))
        return self._spoiled(vectors)

    def _spoiled(self, vectors: Vectors) -> Vectors:
        if self._defect == "kind":
            return vectors.astype(np.float64)  # type: ignore[return-value]  # the promise it breaks
        if self._defect == "rows":
            return vectors[1:]
        if self._defect == "columns":
            return vectors[:, 1:]
        if self._defect == "nan":
            vectors[-1, 3] = np.nan
        if self._defect == "length":
            vectors[-1] *= 1.01
        return vectors


@pytest.mark.parametrize(
    ("vector", "why"),
    [
        ([1.0] * 383, "It must have 384 dimensions, and has the shape (383,)."),
        ([[1.0] * DIMENSIONS], "It must have 384 dimensions, and has the shape (1, 384)."),
        ([], "It must have 384 dimensions, and has the shape (0,)."),
        ([[1.0], [1.0, 2.0]], "It must be numbers."),
        (["a word"] * DIMENSIONS, "It must be numbers."),
        ([1.0] * 383 + [float("nan")], "It must hold no NaN and no infinity."),
        ([1.0] * 383 + [float("-inf")], "It must hold no NaN and no infinity."),
        ([0.0] * DIMENSIONS, "It must not be all zero: it would have no direction."),
    ],
)
def test_what_is_no_vector_is_refused(vector: object, why: str) -> None:
    """Each way not to be a vector with a direction has its own reason."""
    with pytest.raises(VectorRefused) as caught:
        direction(vector)
    assert caught.value.why == why


@pytest.mark.parametrize("size", [1.0, 1e300, 1e-300])
def test_a_vector_of_any_length_becomes_its_direction(size: float) -> None:
    """What is scaled keeps its direction, even where its squares would be infinite or zero."""
    vector = np.random.default_rng(1).standard_normal(DIMENSIONS)
    found = direction(vector / np.abs(vector).max() * size)
    assert found.dtype == np.float32
    assert np.allclose(found, vector / np.linalg.norm(vector), atol=1e-7)


async def test_an_embedder_that_keeps_its_promise_is_passed_on() -> None:
    """Row i is of text i, equal texts have equal rows, and no texts give no rows."""
    vectors = await embed(Seeded(), ["sows", "reaps", "sows"])
    assert vectors.shape == (3, DIMENSIONS)
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.array_equal(vectors[0], vectors[1])
    assert (await embed(Seeded(), [])).shape == (0, DIMENSIONS)


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("kind", "no array of float32"),
        ("rows", "the shape is (1, 384)"),
        ("columns", "the shape is (2, 383)"),
        ("nan", "a NaN"),
        ("length", "length is not 1"),
    ],
)
async def test_a_broken_promise_is_reported(defect: str, message: str) -> None:
    """Nothing that breaks the port's promise gets past it, and the error names the model."""
    with pytest.raises(EmbedderBroken) as caught:
        await embed(Seeded(defect), ["sows", "reaps"])
    assert message in caught.value.why
    assert "seeded/1" in caught.value.why


REFUSED: list[tuple[Callable[..., Awaitable[object]], dict[str, Any], str]] = [
    (nearest_skills, {"limit": 0}, f"limit must be a whole number from 1 to {LIMIT_MAX}"),
    (nearest_skills, {"limit": LIMIT_MAX + 1}, "limit must be"),
    (nearest_skills, {"limit": True}, "limit must be"),
    (nearest_skills, {"limit": 1.5}, "limit must be"),
    (nearest_skills, {"category": "hard"}, "category must be one of"),
    (nearest_skills, {"min_similarity": True}, "min_similarity must be a number"),
    (nearest_skills, {"without": [uuid4() for _ in range(IDS_MAX + 1)]}, f"without must have at most {IDS_MAX} ids"),
    (nearest_industries, {"min_similarity": -1.5}, "from -1 to 1"),
    (nearest_industries, {"min_similarity": 1.5}, "from -1 to 1"),
    (nearest_industries, {"min_similarity": float("nan")}, "from -1 to 1"),
    (nearest_industries, {"without": ["x"]}, "without must be UUIDs"),
    (nearest_agents, {"limit": 0}, "limit must be"),
    (nearest_agents, {"among": 0}, "among must be"),
    (nearest_agents, {"among": LIMIT_MAX + 1}, "among must be"),
]


@pytest.mark.parametrize(("search", "options", "why"), REFUSED)
async def test_a_search_is_refused_before_it_reaches_the_database(
    search: Callable[..., Awaitable[object]], options: dict[str, Any], why: str
) -> None:
    """Options out of their bounds are named; there is no connection here that could be asked."""
    with pytest.raises(SearchRefused, match=why):
        await search(None, np.eye(1, DIMENSIONS)[0], **options)


@pytest.mark.parametrize(
    ("skill_ids", "options", "why"),
    [
        ([], {}, "must not be empty"),
        ([uuid4()], {"at_least": 2}, "at_least must be a whole number from 1 to 1"),
        ([uuid4()], {"at_least": 0}, "at_least must be"),
        ([uuid4()], {"limit": 0}, "limit must be"),
        ([uuid4() for _ in range(IDS_MAX + 1)], {}, "skill_ids must have at most"),
    ],
)
async def test_a_search_for_skills_is_refused_before_it_reaches_the_database(
    skill_ids: list[UUID], options: dict[str, Any], why: str
) -> None:
    """No skills, too many, and more or fewer of them than there are."""
    with pytest.raises(SearchRefused, match=why):
        await agents_with(None, skill_ids, **options)  # type: ignore[arg-type]  # It must not be used.
