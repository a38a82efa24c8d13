"""Scenes of fault tests: what a test that failed has started there is ended, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.faults import scene as scenes
from tests.support.faults.scene import Scene, nothing_left_behind, open_scene
from tests.support.waiting import wait_until


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A scene whose processes do nothing."""
    waiting = tmp_path / "waiting"
    waiting.write_text(f"#!{shutil.which('sh')}\nexec sleep 1000\n", "utf-8")
    waiting.chmod(0o755)
    monkeypatch.setattr(scenes, "PLANT", str(waiting))
    with open_scene(Scene({}, "topic", tmp_path)) as made:
        yield made


def test_what_a_failed_test_has_started_is_ended(scene: Scene) -> None:
    """What was there before goes on, if the test has frozen it too; what another scene has is its own."""
    before = scene.worker()
    with nothing_left_behind(lambda: True):
        left = scene.relay()
        before.freeze()
        with open_scene(Scene({}, "other", scene.folder / "..")) as other:
            elsewhere = other.deliverer()
            assert elsewhere.alive
        assert not elsewhere.alive

    assert (before.alive, left.alive) == (True, False)
    wait_until(lambda: psutil.Process(before.pid).status() != psutil.STATUS_STOPPED, "it goes on")


def test_what_a_good_test_has_started_goes_on(scene: Scene) -> None:
    """The next test may use it."""
    with nothing_left_behind(lambda: False):
        left = scene.worker()

    assert left.alive


def test_a_scene_ends_what_it_has_started(scene: Scene, tmp_path: Path) -> None:
    """And is not among those that are open."""
    with open_scene(Scene({}, "topic", tmp_path)) as made:
        left = made.worker()
        assert made in scenes.OPEN_SCENES

    assert not left.alive
    assert made not in scenes.OPEN_SCENES
