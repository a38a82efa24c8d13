"""What a vector has to be to be searched with, and what is held against an embedder that breaks its promise.

No model is here: vectors are seeded or written out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest

from entities.embedding import Vectors, direction, embed
from entities.errors import EmbedderBroken, VectorRefused
from entities.vocabulary import EMBEDDING_DIMENSIONS

DIMENSIONS = EMBEDDING_DIMENSIONS


class Seeded:
    """An embedder for tests: each text's hash seeds its vector, so nearness means nothing. `spoil` breaks a promise."""

    model = "seeded/1"

    def __init__(self, spoil: str = "") -> None:
        self._spoil = spoil

    async def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        for row, text in enumerate(texts):
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
            vectors[row] = direction(np.random.default_rng(seed).standard_normal(DIMENSIONS))
        return self._spoiled(vectors)

    def _spoiled(self, vectors: Vectors) -> Vectors:
        if self._spoil == "kind":
            return vectors.astype(np.float64)  # type: ignore[return-value]  # the promise it breaks
        if self._spoil == "rows":
            return vectors[1:]
        if self._spoil == "columns":
            return vectors[:, 1:]
        if self._spoil == "nan":
            vectors[-1, 3] = np.nan
        if self._spoil == "length":
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
    ("spoil", "said"),
    [
        ("kind", "no array of float32"),
        ("rows", "the shape is (1, 384)"),
        ("columns", "the shape is (2, 383)"),
        ("nan", "a NaN"),
        ("length", "length is not 1"),
    ],
)
async def test_a_broken_promise_is_told_of(spoil: str, said: str) -> None:
    """Nothing that breaks the port's promise gets past it, and the error names the model."""
    with pytest.raises(EmbedderBroken) as caught:
        await embed(Seeded(spoil), ["sows", "reaps"])
    assert said in caught.value.why
    assert "seeded/1" in caught.value.why
