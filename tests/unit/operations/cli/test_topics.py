"""`plant topics list --topic`: a topic that nobody has is named."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest

from operations.cli.main import run
from runtime.settings import Settings
from streams import topics
from streams.topics import Description


@pytest.fixture(autouse=True)
def _brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers that have genesis.events, and a topic of their own."""

    async def describe(_: Settings, names: Sequence[str]) -> dict[str, Description]:
        existing = {"genesis.events", "genesis.events-2"} & set(names)
        return {name: Description(name, 8, 3, UUID(int=1), 3) for name in existing}

    monkeypatch.setattr(topics, "describe", describe)


@pytest.mark.parametrize(
    ("names", "code", "states"),
    [
        ([], 0, ["present", *["missing"] * (len(topics.CATALOGUE) - 1)]),
        (["genesis.events"], 0, ["present"]),
        (["plant.operations"], 0, ["missing"]),
        (["genesis.events-2"], 0, ["present"]),
        (["nope"], 3, []),
        (["nope", "genesis.events"], 3, ["present"]),
    ],
)
def test_a_topic_that_nobody_has_is_named(
    names: list[str], code: int, states: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is known is listed, and the exit code is 3 where one is neither in the catalogue nor at the brokers."""
    assert run(["topics", "list", *(part for name in names for part in ("--topic", name))]) == code
    shown = capsys.readouterr()
    assert [line.split()[1] for line in shown.out.splitlines()[1:]] == states
    assert ("topic 'nope'" in shown.err) == (code == 3)
