"""The page on the tests is up to date, and the command that writes it can be trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.report import (
    PAGE,
    ROOT,
    TESTS,
    Covered,
    NotWhole,
    collect,
    counts_of,
    coverage_of,
    main,
    page,
    read_counts,
    read_coverage,
)

PROJECT = {
    "pyproject.toml": """
        [tool.pytest.ini_options]
        testpaths = ["tests"]
        [tool.coverage.run]
        branch = true
        parallel = true
        source = ["pack", "other"]
        """,
    "pack/__init__.py": "",
    "pack/halves.py": "def half(n):\n    if n % 2:\n        return None\n    return n // 2\n",
    "other/__init__.py": "ONE = 1\n",
    "docs/reference/empty": "",
    "tests/test_a.py": '''
        """Halves."""
        import json, os, pathlib, pytest
        from pack.halves import half
        from tests.support.report import counts_of

        @pytest.mark.parametrize("n", [2, 4, 6])
        def test_half(n):
            assert half(n) == n / 2

        def test_seen(request):
            pathlib.Path("seen.json").write_text(json.dumps(counts_of(request.session)))
        ''',
    "tests/deeper/test_b.py": 'import other\n\n\ndef test_one():\n    """One."""\n    assert other.ONE == 1\n',
}
COUNTS = {"tests/test_a.py": 4, "tests/deeper/test_b.py": 1}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two packages and two files of tests, that imports this project's report."""
    for name, text in PROJECT.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        file.write_text("\n".join(line[indent:] for line in lines).lstrip() + "\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / TESTS}")
    for name in [name for name in os.environ if name.startswith(("COV_CORE", "COVERAGE", "PYTEST_XDIST"))]:
        monkeypatch.delenv(name)
    # Two plugins out of many, which take long to load.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p pytest_cov.plugin -p xdist.plugin -p no:cacheprovider")
    return tmp_path


def test_the_page_is_up_to_date(request: pytest.FixtureRequest) -> None:
    """In a whole run each file has as many tests as the page says; in any run the page has every file of tests."""
    text = (ROOT / PAGE).read_text("utf-8")
    counts = counts_of(request.session)
    said = read_counts(text)
    there = [str(file.relative_to(ROOT)) for file in (ROOT / TESTS).rglob("test_*.py")]
    assert sorted(said) == sorted(there), "run: python -m tests.support.report"
    assert page(said if counts is None else counts, read_coverage(text)) == text, "run: python -m tests.support.report"


@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        ([], True),
        (["-n", "2"], True),
        (["-k", "seen or one"], False),
        (["tests/test_a.py"], False),
        (["-n", "2", "tests/test_a.py"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_counts_are_those_of_whole_runs_alone(project: Path, arguments: list[str], whole: bool) -> None:
    """A test sees the counts of all files, in parallel too; where some were left out it sees none."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((project / "seen.json").read_text()) == (COUNTS if whole else None)


def test_a_whole_run_is_written_down(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`--run` writes counts and the coverage of lines and branches; without it the figures stay, and counts follow."""
    main(["--run", "--", "-q"], project)
    text = (project / PAGE).read_text()
    assert read_counts(text) == collect(project) == COUNTS
    assert read_coverage(text) == {"pack": Covered(4, 3, 2, 1), "other": Covered(1, 1, 0, 0)}
    assert "| `pack` | 4 | 3 | 75.0 % | 2 | 1 | 50.0 % | 66.7 % |" in text
    assert "| all | 5 | 4 | 80.0 % | 2 | 1 | 50.0 % | 71.4 % |" in text
    assert "| [`test_a.py`](../../tests/test_a.py) | 4 | Halves. |" in text
    (project / "tests" / "test_c.py").write_text("def test_c(): ...\n")
    main([], project)
    again = (project / PAGE).read_text()
    assert read_counts(again) == {**COUNTS, "tests/test_c.py": 1}
    assert read_coverage(again) == read_coverage(text)
    capfd.readouterr()


def test_a_run_of_some_tests_is_not_written_down(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Data that leaves a whole source file unrun is refused, and so is having none; the page stays."""
    with pytest.raises(NotWhole, match=r"no \.coverage"):
        coverage_of(project)
    command = [sys.executable, "-m", "pytest", "-q", "--cov", "--cov-report=", "tests/test_a.py"]
    subprocess.run(command, cwd=project, capture_output=True, check=True)
    main([], project)
    before = (project / PAGE).read_text()
    with pytest.raises(SystemExit, match=r"No test ran other/__init__\.py"):
        main(["--coverage"], project)
    assert (project / PAGE).read_text() == before
    capfd.readouterr()


def test_a_failed_run_is_not_written_down(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where a test fails, the command ends with pytest's exit code and writes no figures."""
    (project / "tests" / "test_c.py").write_text("def test_c():\n    assert False\n")
    with pytest.raises(SystemExit) as ended:
        main(["--run"], project)
    assert ended.value.code == 1
    assert read_coverage((project / PAGE).read_text()) == {}
    capfd.readouterr()
