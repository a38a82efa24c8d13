"""A stack whose folder has a name that other programs' formats give a meaning to, made by a process without a umask."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

import pytest

from devstack import processes
from devstack.errors import tail
from devstack.kafka import class_path
from devstack.stack import Stack
from runtime.errors import ConfigurationError
from tests.support.services import folder_of_this_run

ODD = "é a,b\\tc'#%=$(x)"
"""What properties files, lists, class paths of the C locale and shells would read as something else."""


def test_a_stack_in_an_odd_folder_keeps_all_in_it_and_deletes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka's data is where it belongs though the locale is C, only its owner may write it, and it goes on deletion."""
    monkeypatch.setenv("LC_ALL", "C")
    with folder_of_this_run() as own:
        base = own / "odd"
        stack = Stack(base / ODD)
        before = os.umask(0)
        try:
            stack.up()
            written = [path for path in stack.home.rglob("*") if not path.is_symlink()]
            writable = [path for path in written if path.lstat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)]
            broker = stack.state.kafka
            assert broker is not None
            data = list(base.rglob("meta.properties"))
        finally:
            stack.down(delete_data=True)
            os.umask(before)

        assert writable == []
        assert data == [stack.home / "kafka" / "data" / "meta.properties"]
        assert list(base.rglob("*")) == []
        base.rmdir()
        assert not processes.is_running(broker)


def test_a_hint_can_be_pasted_into_a_shell() -> None:
    """The shell reads the file's name as it is."""
    assert shlex.split(tail(Path("/tmp") / ODD / "kafka.log")) == ["tail", "-50", f"/tmp/{ODD}/kafka.log"]


def test_a_folder_that_no_class_path_can_name_is_refused() -> None:
    """The separator has no escape: the error says what to change."""
    with pytest.raises(ConfigurationError, match="divided by :"):
        class_path(Path("/home/a:b/.cache/plant"))
