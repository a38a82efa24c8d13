"""The built-in embedder: words and parts of words of a text, hashed into 384 numbers. It needs no model.

Texts are near where they share words or parts of words: "Python programming" and "programmer in Python" are; two texts
that mean the same in other words are not. Equal texts have equal vectors, everywhere. An embedder with a model takes
its place behind the port in `entities/embedding.py`.

How a vector is made, after Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (2009):

1. The text is normalised (NFKC, case folded) and cut into words of letters and digits; 64 characters of a word
   count.
2. Features are each word, and each run of 3 and of 4 characters in ` word word … `, with a space around every word.
3. The code points x of a feature make h = (h * 0x100000001B3) xor x, modulo 2^64. In the beginning h is
   0xCBF29CE484222325, xor 3 or 4 for a run of so many. splitmix64 mixes h.
4. A word counts for 3, a run for 1: added at the number h mod 384, or subtracted where the highest bit of h is set.
5. The sums are scaled to length 1. A text without features, or whose sums are all zero, has a 1 at the first number.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from entities.embedding import Vectors
from entities.vocabulary import EMBEDDING_DIMENSIONS, NAME_MAX_CHARACTERS, TEXT_MAX_CHARACTERS

CHARACTERS_MAX: Final = NAME_MAX_CHARACTERS + 1 + TEXT_MAX_CHARACTERS
"""A text counts as far as this: a name and a description of the longest kind."""

GRAMS: Final = (3, 4)
WORD_WEIGHT: Final = 3.0
WORD_MAX_CHARACTERS: Final = 64

_WORD: Final = re.compile(r"[^\W_]+")
_OFFSET_BASIS: Final = 0xCBF29CE484222325
_PRIME: Final = np.uint64(0x100000001B3)

Hashes64 = NDArray[np.uint64]


class NgramEmbedder:
    """The port's adapter that needs no model."""

    @property
    def model(self) -> str:
        """Name and version; vectors of another version can't be compared with these."""
        return "plant-ngrams/1"

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the texts' embeddings in rows, computed in a thread."""
        return await asyncio.to_thread(embed_texts, texts)


def embed_texts(texts: Sequence[str]) -> Vectors:
    """Return the texts' embeddings in rows: float32, n x 384, of length 1.

    >>> near, far = (embed_texts(["Python programming", text]) for text in ("programmer in Python", "bake bread"))
    >>> round(float(near[0] @ near[1]), 2), round(float(far[0] @ far[1]), 2)
    (0.57, 0.07)
    """
    vectors = np.zeros((len(texts), EMBEDDING_DIMENSIONS))
    for row, text in enumerate(texts):
        vectors[row] = _sums(text)
    vectors[~vectors.any(axis=1), 0] = 1.0
    scaled: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def _sums(text: str) -> NDArray[np.float64]:
    """Return the sums of a text's features; they are whole numbers, so their order means nothing."""
    normalised = unicodedata.normalize("NFKC", text[:CHARACTERS_MAX]).casefold()
    words = [word[:WORD_MAX_CHARACTERS] for word in _WORD.findall(normalised)]
    if not words:
        return np.zeros(EMBEDDING_DIMENSIONS)
    padded = _code_points(f" {' '.join(words)} ")
    hashes = [_hashes_of_words(words)]
    hashes += [_hashes_of_runs(padded, length) for length in GRAMS if len(padded) >= length]
    weights = np.ones(sum(map(len, hashes)))
    weights[: len(words)] = WORD_WEIGHT
    mixed = _mix(np.concatenate(hashes))
    signs = np.where(mixed >> np.uint64(63), -1.0, 1.0)
    numbers = (mixed % np.uint64(EMBEDDING_DIMENSIONS)).astype(np.intp)
    sums: NDArray[np.float64] = np.bincount(numbers, weights * signs, EMBEDDING_DIMENSIONS).astype(np.float64)
    return sums


def _hashes_of_words(words: Sequence[str]) -> Hashes64:
    """Return a hash a word."""
    points = [_code_points(word) for word in words]
    lengths = np.array([len(each) for each in points])
    table = np.zeros((len(words), lengths.max()), np.uint64)
    for row, each in enumerate(points):
        table[row, : len(each)] = each
    hashes = np.full(len(words), _OFFSET_BASIS, np.uint64)
    for column in range(table.shape[1]):
        hashes = np.where(lengths > column, (hashes * _PRIME) ^ table[:, column], hashes)
    return hashes


def _hashes_of_runs(points: Hashes64, length: int) -> Hashes64:
    """Return a hash for each run of so many characters."""
    hashes = np.full(len(points) - length + 1, _OFFSET_BASIS ^ length, np.uint64)
    for column in range(length):
        hashes = (hashes * _PRIME) ^ points[column : len(points) - length + 1 + column]
    return hashes


def _code_points(text: str) -> Hashes64:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)


def _mix(hashes: Hashes64) -> Hashes64:
    """Return well spread hashes: splitmix64 (https://prng.di.unimi.it/splitmix64.c)."""
    hashes = hashes + np.uint64(0x9E3779B97F4A7C15)
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes64 = hashes ^ (hashes >> np.uint64(31))
    return mixed
