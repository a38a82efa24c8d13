"""The probe: what a machine lacks is found before anything of Plant's is built, and named."""

from __future__ import annotations

import pytest

from tests.containers import probe
from tests.containers.engine import ContainerEngine


def test_it_finds_nothing_to_object_to_here(engine: ContainerEngine) -> None:
    """The other tests of this folder run here, so it must not skip them."""
    assert probe.reason_to_skip(engine) is None


def test_it_says_that_no_container_can_be_run(engine: ContainerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here since the runtime that the configuration names is none."""
    monkeypatch.setattr(engine, "_podman", (*engine._podman, "--runtime", "/bin/false"))
    reason = probe.reason_to_skip(engine)
    assert reason is not None
    assert reason.startswith("a first container can't be run (")


def test_it_says_that_the_package_index_is_out_of_reach(
    engine: ContainerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build in a container could not fetch anything either, which would be no fault of the Dockerfile."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    reason = probe.reason_to_skip(engine)
    assert reason is not None
    assert reason.startswith("a container can't fetch from the package index (")
