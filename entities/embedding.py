"""Embeddings: the port through which texts become vectors, and the checks of a vector.

The built-in adapter is in `entities/ngram_embedder.py`; a service with a model implements :class:`Embedder` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from entities.errors import EmbedderBroken, VectorRefused
from entities.vocabulary import EMBEDDING_DIMENSIONS

Vectors: TypeAlias = NDArray[np.float32]
"""Embeddings, one a row: n x 384."""

LENGTH_TOLERANCE: Final = 1e-3
"""How far from 1 the length of an embedding may be: what four bytes a number lose, with room."""


class Embedder(Protocol):
    """A model that turns texts into vectors whose cosine is high where their meanings are near."""

    @property
    def model(self) -> str:
        """Name and version of the model. Vectors can be compared when these are equal, and only then."""
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the texts' embeddings in rows: float32, n x 384, finite, of length 1. No texts give 0 x 384.

        The same model gives equal texts equal vectors, up to rounding, whatever else is in the call. A text that is too
        long for the model counts as far as the model reads. It does not block the event loop. All texts are embedded,
        or an error is raised: Unreachable where asking again later may help.
        """
        ...


async def embed(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Return the embeddings of the texts, after checks of the embedder's contract. Raises EmbedderBroken."""
    vectors = await embedder.embed(texts)
    if problem := _broken_contract(vectors, len(texts)):
        raise EmbedderBroken(why=f"{embedder.model} got {len(texts)} texts: {problem}.")
    return vectors


def direction(vector: Any) -> Vectors:
    """Return a vector of 384 numbers scaled to length 1: cosine distances stay, and no square over- or underflows.

    Raises VectorRefused for anything but a vector of 384 finite numbers, and for zero, which has no direction.
    """
    try:
        numbers = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise VectorRefused(why="It must be numbers.") from error
    if numbers.shape != (EMBEDDING_DIMENSIONS,):
        why = f"It must have {EMBEDDING_DIMENSIONS} dimensions, and has the shape {numbers.shape}."
        raise VectorRefused(why=why)
    if not np.isfinite(numbers).all():
        raise VectorRefused(why="It must hold no NaN and no infinity.")
    largest = np.abs(numbers).max()
    if not largest:
        raise VectorRefused(why="It must not be all zero: it would have no direction.")
    numbers = numbers / largest
    scaled: Vectors = (numbers / np.linalg.norm(numbers)).astype(np.float32)
    return scaled


def _broken_contract(vectors: Vectors, count: int) -> str:
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        return "the result is no array of float32"
    if vectors.shape != (count, EMBEDDING_DIMENSIONS):
        return f"the shape is {vectors.shape}"
    if not np.isfinite(vectors).all():
        return "there is a NaN or an infinity"
    lengths = np.linalg.norm(vectors, axis=1)
    return "" if (np.abs(lengths - 1) <= LENGTH_TOLERANCE).all() else "a vector's length is not 1"
