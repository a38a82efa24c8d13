"""The built-in embedder: equal texts have equal vectors, and texts with words in common are near."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from entities.embedding import embed
from entities.ngram_embedder import CHARACTERS_MAX, NgramEmbedder, embed_texts

ODD_TEXTS = ["", " \n", "!?…", "a", "\ud800", "ß", "日本語", "x" * 20_000, "a " * 6_000, "\x00", "_", "é" * 3]


async def test_vectors_keep_the_contract_of_the_port() -> None:
    """Whatever the text: empty, of signs alone, of one letter, very long, or no valid Unicode."""
    vectors = await embed(NgramEmbedder(), ODD_TEXTS)

    assert vectors.shape == (len(ODD_TEXTS), 384)


async def test_no_texts_give_no_vectors() -> None:
    """An empty batch is no error."""
    assert (await embed(NgramEmbedder(), [])).shape == (0, 384)


def test_a_vector_is_the_same_whatever_else_is_embedded() -> None:
    """On every machine, in every process, alone or among others: the bytes are written down here."""
    text = "develop software: Python, C++ and größere Dinge"
    alone, (_, among, _) = embed_texts([text])[0], embed_texts(["before", text, "after " * 500])

    assert alone.tobytes() == among.tobytes()
    sums = np.round(alone / np.abs(alone[alone != 0]).min()).astype(np.int8)
    assert hashlib.sha256(sums.tobytes()).hexdigest()[:16] == "61cb0ca03e417551"


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("Python programming", "programmer in Python", "bake bread"),
        ("database administration", "administer databases", "public speaking"),
        ("network security", "secure computer networks", "floristry"),
        ("PYTHON", "python", "pylon"),
        ("cafe", "café bar cafe", "carpentry"),
    ],
)
def test_texts_with_parts_of_words_in_common_are_near(text: str, near: str, far: str) -> None:
    """Nearer than those without."""
    vectors = embed_texts([text, near, far])

    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


def test_writing_the_same_in_another_way_changes_nothing() -> None:
    """Case, spaces, punctuation and the form of a letter in Unicode."""
    first, second = embed_texts(["Ｃafé - Bar", "cafe\u0301, BAR!"])

    assert first.tobytes() == second.tobytes()


def test_a_text_counts_as_far_as_the_longest_description() -> None:
    """What follows changes nothing, and costs nothing."""
    words = "skill " * (CHARACTERS_MAX // 6 + 1)

    assert embed_texts([words[:CHARACTERS_MAX]]).tobytes() == embed_texts([words + "other"]).tobytes()
