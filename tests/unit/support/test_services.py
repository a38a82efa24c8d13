"""Where a run's stacks are: in memory where there is room, on a disk otherwise."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path

import pytest

from tests.support import services


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Folders in the place of the one in memory and of the one on a disk."""
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    monkeypatch.setattr(services, "MEMORY", memory)
    monkeypatch.setattr(services, "MEMORY_NEEDED_BYTES", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    monkeypatch.delenv("TMPDIR", raising=False)
    return memory, disk


def test_stacks_are_in_memory_where_there_is_room(places: tuple[Path, Path]) -> None:
    """The system user of Postgres can enter the folder."""
    memory, _ = places

    folder = services.runs_folder()

    assert folder.parent == memory
    assert folder.stat().st_mode & 0o777 == 0o755


def test_stacks_are_on_a_disk_where_memory_is_short(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine, or a container, that has not what a run needs keeps it."""
    monkeypatch.setattr(services, "MEMORY_NEEDED_BYTES", 2**60)

    assert services.runs_folder().parent == places[1]


def test_stacks_are_on_a_disk_where_there_is_no_folder_in_memory(places: tuple[Path, Path]) -> None:
    """Linux alone has one."""
    memory, disk = places
    memory.rmdir()

    assert services.runs_folder().parent == disk


def test_stacks_are_where_tmpdir_points(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names a place gets it, whatever room memory has."""
    monkeypatch.setenv("TMPDIR", str(places[1]))

    assert services.runs_folder().parent == places[1]


def test_what_a_killed_run_left_is_removed_from_both(places: tuple[Path, Path]) -> None:
    """The run that was killed may have had room in memory where the next one has not."""
    left = [place / f"plant-tests-{os.getuid()}" / str(2**30) for place in places]
    for folder in left:
        folder.mkdir(parents=True)

    with services.folder_of_this_run() as own:
        assert own.is_dir()

    assert not any(folder.exists() for folder in left)


def test_a_run_starts_where_what_a_killed_one_left_cannot_be_taken_down(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here nobody has `docker`: the run says which command removes the project that is left, and goes on."""
    folder = places[0] / f"plant-tests-{os.getuid()}" / str(2**30)
    folder.mkdir(parents=True)
    monkeypatch.chdir(places[0])  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind("engine.sock")
        record = {"project": "plant-tests-1", "docker_host": f"unix://{places[0]}/engine.sock"}
        (folder / services.COMPOSE_RECORD).write_text(json.dumps(record), encoding="utf-8")
        monkeypatch.setenv("PATH", str(places[1]))

        with services.folder_of_this_run():
            pass

    assert "docker compose --project-name plant-tests-1 down" in capsys.readouterr().err
