"""Chain heads that are kept elsewhere: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit.verifier.chain_range import Chain
from audit.verifier.errors import BadHeadsFile
from audit.verifier.heads import Head, dump, load

HEADS = [
    Head(topic="genesis.events", partition=0, offset=0, hash="0a" * 32),
    Head(topic="ä", partition=3, offset=7, hash="ff" * 32),
]
TEXT = """{
  "format": "plant.audit.heads/1",
  "heads": [
    {
      "topic": "genesis.events",
      "partition": 0,
      "offset": 0,
      "hash": "%s"
    }
  ]
}
""" % ("0a" * 32)


def test_heads_are_read_as_they_were_written(tmp_path: Path) -> None:
    """In their order, and in a text that a person can compare."""
    assert dump(HEADS[:1]) == TEXT
    file = tmp_path / "heads.json"
    file.write_text(dump(HEADS), encoding="utf-8")
    assert load(file) == HEADS
    assert [head.chain for head in load(file)] == [Chain("genesis.events", 0), Chain("ä", 3)]


@pytest.mark.parametrize(
    "changes",
    [{"partition": -1}, {"offset": -1}, {"hash": "0A" * 32}, {"hash": "0a" * 31}, {"topic": None}],
    ids=["partition", "offset", "capitals", "short", "topic"],
)
def test_a_head_that_is_none_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    """A check against it would say good, or bad, for no reason."""
    content = json.loads(TEXT)
    content["heads"][0] |= changes
    file = tmp_path / "heads.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BadHeadsFile):
        load(file)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", TEXT.replace("/1", "/2"), TEXT.replace('"heads"', '"more": 1, "heads"'), "\udcff"],
    ids=["empty", "list", "object", "another format", "more", "no UTF-8"],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    """The error says which file it is, and which command writes one."""
    file = tmp_path / "heads.json"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    for path in (file, tmp_path / "missing.json"):
        with pytest.raises(BadHeadsFile) as caught:
            load(path)
        assert str(caught.value.why).startswith(f"{path}: ")
        assert caught.value.next_step == "plant audit head > heads.json"
