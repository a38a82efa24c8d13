"""In CI a skip is a failure, unless `allowed_skips.toml` lists the test by name with its reason."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.toml")

_skipped: dict[str, str] = {}


def read_allowed(file: Path = ALLOWED) -> dict[str, str]:
    """Test name (without parameters) to the reason why it may be skipped."""
    entries = tomllib.loads(file.read_text(encoding="utf-8")).get("skip", [])
    return {entry["test"]: entry["reason"] for entry in entries}


def unlisted(skipped: Iterable[str], allowed: Iterable[str]) -> list[str]:
    """Names that were skipped and are not allowed to be; a parametrised test is listed without its brackets."""
    listed = set(allowed)
    return sorted(name for name in skipped if name not in listed and name.partition("[")[0] not in listed)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped[report.nodeid] = str(report.longrepr)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped[report.nodeid] = str(report.longrepr)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _in_ci() and unlisted(_skipped, read_allowed()) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _in_ci():
        return
    for name in unlisted(_skipped, read_allowed()):
        terminalreporter.write_line(f"FAILED: {name} was skipped and is not in {ALLOWED.name}: {_skipped[name]}")


def _in_ci() -> bool:
    return os.environ.get("CI") == "true"
