"""No log of the whole suite holds a secret of its stacks: every captured stderr, every process's, every log file.

Secrets are collected where a stack writes them down and where settings are read; texts are looked at where a test's
report is made, where a process has ended, before a stack's logs are deleted, and at the end of the session.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final

import pytest

from devstack.stack import Stack
from devstack.state import StateFolder
from runtime.masking import secrets_in
from runtime.redaction import KNOWN, KnownSecrets

FORM_LENGTH_MIN: Final = 20
"""Passwords and keys that are made at random are longer; a test's own word of a secret may be a word of a message."""
FILE_MAX_BYTES: Final = 64 * 1024 * 1024

_made: Final = KnownSecrets()
_findings: Final[list[str]] = []
_reported: Final[list[str]] = []
_output: Final[pytest.StashKey[bool]] = pytest.StashKey()
WORKER_OUTPUT: Final = "secrets_in_logs"


def remember_environ(environ: Mapping[str, str]) -> None:
    """Look for the secrets of these variables from now on."""
    _made.remember(secrets_in({name.removeprefix("PLANT_").lower(): value for name, value in environ.items()}))


def secrets_in_text(text: str) -> list[str]:
    """Return the secrets that a text holds, shortened, so that the report holds none."""
    if not text:
        return []
    forms = [form for form in _made.forms() | KNOWN.forms() if len(form) >= FORM_LENGTH_MIN]
    return [f"{form[:4]}… ({len(form)} characters)" for form in forms if form in text]


def look_into(folder: Path) -> list[str]:
    """Return a finding for each log file below a folder that holds a secret."""
    findings = []
    for file in sorted(folder.rglob("*.log*")):
        if "data" in file.relative_to(folder).parts or not file.is_file() or file.stat().st_size > FILE_MAX_BYTES:
            continue  # Kafka's segments have the same ending.
        found = secrets_in_text(file.read_text("utf-8", "replace"))
        findings += [f"{file} holds {each}" for each in found]
    return findings


def _watch_processes() -> None:
    """Look at what each process that a test has started has written to stderr."""
    run_communicate, async_communicate = subprocess.Popen.communicate, asyncio.subprocess.Process.communicate

    @wraps(run_communicate)
    def communicate(self: subprocess.Popen[Any], *arguments: Any, **named: Any) -> Any:
        out, errors = run_communicate(self, *arguments, **named)
        look_at(self.args, errors)
        return out, errors

    @wraps(async_communicate)
    async def communicate_async(self: asyncio.subprocess.Process, *arguments: Any, **named: Any) -> Any:
        out, errors = await async_communicate(self, *arguments, **named)
        look_at(f"process {self.pid}", errors)
        return out, errors

    subprocess.Popen.communicate = communicate  # type: ignore[method-assign]
    asyncio.subprocess.Process.communicate = communicate_async  # type: ignore[method-assign]


def look_at(name: object, errors: str | bytes | None) -> None:
    """Note a finding for each secret in what a command has written to stderr."""
    text = errors.decode("utf-8", "replace") if isinstance(errors, bytes) else errors or ""
    _findings.extend(f"stderr of {str(name)[:100]} holds {each}" for each in secrets_in_text(text))


def _watch_stacks() -> None:
    """Know what each stack writes into `stack.env`, and look into its logs before they are deleted."""
    write_environ, down = StateFolder.write_environ, Stack.down

    @wraps(write_environ)
    def written(self: StateFolder, *arguments: Any, **named: Any) -> dict[str, str]:
        environ = write_environ(self, *arguments, **named)
        remember_environ(environ)
        return environ

    @wraps(down)
    def ended(self: Stack, *, delete_data: bool = False, **named: Any) -> list[str]:
        remember_environ(self.environ)
        if delete_data and (self.home / "logs").exists():
            _findings.extend(look_into(self.home / "logs"))
        return down(self, delete_data=delete_data, **named)

    StateFolder.write_environ = written  # type: ignore[method-assign]
    Stack.down = ended  # type: ignore[method-assign]


def pytest_configure(config: pytest.Config) -> None:
    remember_environ(os.environ)
    if not config.stash.get(_output, False):
        config.stash[_output] = True
        _watch_processes()
        _watch_stacks()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Fail a test whose output, or whose processes' or stacks', held a secret."""
    report: Any = yield
    for title, text in report.sections:
        if "stderr" in title or "log" in title:
            _findings.extend(f"{title} holds {each}" for each in secrets_in_text(text))
    if _findings and report.passed:
        report.outcome = "failed"
        report.longrepr = "Secrets in logs:\n" + "\n".join(_findings)
        _findings.clear()
    return report  # type: ignore[return-value]  # pytest's wrappers return what they yielded


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of pytest-xdist has found at its end."""
    _findings.extend(getattr(node, "workeroutput", {}).get(WORKER_OUTPUT, []))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Look into every log file that tests left in their folders; fail the session for what is found."""
    factory = getattr(session.config, "_tmp_path_factory", None)
    if factory is not None and factory._basetemp is not None:
        _findings.extend(look_into(factory.getbasetemp()))
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output[WORKER_OUTPUT] = list(_findings)
    elif _findings and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    _reported[:] = _findings


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for finding in _findings:
        terminalreporter.write_line(f"FAILED: a secret in a log: {finding}")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Fail for the logs of services that ended after the session, which all workers of pytest-xdist shared."""
    if late := _findings[len(_reported) :]:
        raise AssertionError("Secrets in logs:\n" + "\n".join(late))
