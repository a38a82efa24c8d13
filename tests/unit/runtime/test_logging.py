"""Logs: one format for all, nothing secret in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from runtime.logging import configure, get_logger, unit_of_work
from runtime.settings import Settings
from tests.support import ROOT


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave the process's logging as it was found."""
    root = logging.getLogger()
    handlers, level, ours = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers, root.level = handlers, level
    structlog.configure(**ours)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_stdout_is_left_to_data(capsys: pytest.CaptureFixture[str]) -> None:
    """What a command logs that is no service, and so has configured nothing, comes on stderr, without secrets."""
    get_logger("plant").warning("query.slow", seconds=1, password="hunter2")

    captured = capsys.readouterr()

    assert captured.out == ""
    assert "query.slow" in captured.err
    assert "hunter2" not in captured.err


def test_nothing_logs_past_it() -> None:
    """Whoever imported structlog alone would write to stdout."""
    packages = (
        "audit",
        "database",
        "devstack",
        "entities",
        "ingress",
        "operations",
        "projections",
        "schemas",
        "streams",
    )
    modules = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 100
    assert [path.name for path in modules if "structlog" in path.read_text("utf-8")] == []


def test_json_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Our lines and the standard library's come out alike, in JSON, on stderr."""
    configure(Settings())
    structlog.get_logger("plant").info("batch.projected", rows=3)
    logging.getLogger("library").warning("seen %s", "it")

    ours, theirs = lines(capsys)

    assert (ours["event"], ours["rows"], ours["level"], ours["logger"]) == ("batch.projected", 3, "info", "plant")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("seen it", "warning", "library")
    assert str(ours["time"]).endswith("Z")


def test_level_is_respected(capsys: pytest.CaptureFixture[str]) -> None:
    """What is less severe than the setting is not written."""
    configure(Settings(log_level="error"))
    structlog.get_logger("plant").warning("quiet")

    assert lines(capsys) == []


def test_secrets_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    """A field whose name says that it is secret shows no value."""
    configure(Settings())
    structlog.get_logger("plant").info("key.added", producer="p", secret="whsec_abc", database_password="x")

    (line,) = lines(capsys)

    assert line["producer"] == "p"
    assert line["secret"] == line["database_password"] == "********"


def test_unit_of_work_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A block logs once, with what it added, how long it took and how it ended."""
    configure(Settings())
    logger = structlog.get_logger("plant")
    with unit_of_work(logger, "batch.projected", topic="t") as line:
        line["rows"] = 2
    with pytest.raises(ValueError, match="odd"), unit_of_work(logger, "batch.projected"):
        raise ValueError("odd")

    good, bad = lines(capsys)

    assert (good["outcome"], good["topic"], good["rows"]) == ("ok", "t", 2)
    assert float(str(good["duration_ms"])) >= 0
    assert (bad["outcome"], bad["error"], bad["level"]) == ("ValueError", "odd", "error")


def test_tracebacks_hold_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    """An exception is logged with its frames but without values, which may be payloads or secrets."""
    for log_format in ("json", "console"):
        configure(Settings(log_format=log_format))  # type: ignore[arg-type]
        whisper = "only-in-a-" + "local-variable"
        try:
            raise RuntimeError("boom")
        except RuntimeError:
            structlog.get_logger("plant").exception("failed")
        shown = capsys.readouterr().err

        assert "boom" in shown
        assert whisper not in shown
