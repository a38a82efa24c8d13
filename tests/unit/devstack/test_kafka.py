"""The data folder of a broker: made by Kafka's own tool once, and by hand from then on."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devstack import kafka
from devstack.kafka import FEATURES_FILE, Broker, Ports
from devstack.progress import Silent

CLUSTER_ID = "cGxhbnQtdGVzdC1jbHVzdA"


def test_a_data_folder_made_by_hand_is_as_kafkas_tool_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has the first one's features, an id of its own, and took no Java; nobody else may write it."""
    monkeypatch.setattr(kafka, "kept_features", lambda _: tmp_path / "kept")
    ports = [Ports(1, 2)]
    by_tool, by_hand = Broker(tmp_path / "a", 1, 1), Broker(tmp_path / "b", 1, 1)
    by_tool.format(CLUSTER_ID, ports, Silent())

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr(subprocess, "run", refuse)
    by_hand.format(CLUSTER_ID, ports, Silent())

    files = {path.name for path in by_tool.data.iterdir()}
    assert {path.name for path in by_hand.data.iterdir()} == files == {FEATURES_FILE, "meta.properties"}
    assert (by_hand.data / FEATURES_FILE).read_bytes() == (by_tool.data / FEATURES_FILE).read_bytes()
    made, told = (properties(broker) for broker in (by_hand, by_tool))
    assert made.pop("directory.id") != told.pop("directory.id")
    assert made == told
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (by_hand.data, *by_hand.data.iterdir())]
    assert [mode for mode in modes if mode & (stat.S_IWGRP | stat.S_IWOTH)] == []
    before = properties(by_hand)
    by_hand.format(CLUSTER_ID, ports, Silent())
    assert properties(by_hand) == before


def properties(broker: Broker) -> dict[str, str]:
    """What a broker's folder says of itself."""
    lines = (broker.data / "meta.properties").read_text("utf-8").splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines if not line.startswith("#"))}
