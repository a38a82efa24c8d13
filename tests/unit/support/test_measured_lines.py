"""Coverage that is measured by probes: the same lines and branches as coverage.py's own tracer finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

SETTINGS = """\
    [tool.pytest.ini_options]
    testpaths = ["."]
    [tool.coverage.run]
    branch = true
    parallel = true
    source = ["pack"]
    """
MODULE = '''\
    """Of each kind of branch some that are taken, and some that are not."""
    from __future__ import annotations

    import asyncio
    import contextlib
    from dataclasses import dataclass


    @dataclass(frozen=True)
    class Pair:
        """Two."""

        one: int
        other: int = 0


    def half(n: int) -> int | None:
        """Half of it."""
        if n % 2:
            return None
        elif n > 100:
            n = 100
        return n // 2


    def total(numbers: list[int]) -> int:
        found = 0
        for each in numbers:
            if each < 0:
                continue
            with contextlib.suppress(ValueError):
                if each > 3:
                    found += each
        else:
            found += 1
        while found > 1000:
            found -= 1000
        return found


    def name(value: object) -> str:
        match value:
            case int():
                return "number"
            case Pair(one=1):
                found = "one"
            case Pair(other=other) if other > 1:
                found = "other"
            case _:
                found = "none"
        return found


    def read(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            if text:
                return -1
        except TypeError:
            return -2
        finally:
            len(str(text))
        return 0


    async def ticks(count: int) -> list[int]:
        async def each():
            for n in range(count):
                await asyncio.sleep(0)
                yield n

        return [
            n
            async for n in each()
            if n
        ]


    def never(n: int) -> None:
        if n:
            raise AssertionError


    def left_out(n: int) -> int:  # pragma: no cover
        return n
    '''
TESTS = '''\
    import asyncio

    import pytest

    from pack import branches


    @pytest.mark.parametrize("n", range(60))
    def test_often(n):
        """Often enough for a probe to be taken out."""
        for _ in range(20):
            assert branches.half(2 * n % 50) == n % 25
            assert branches.total([1, -1, 5]) == 6


    def test_once():
        assert branches.name(1) == "number"
        assert branches.name(branches.Pair(2, 3)) == "other"
        assert branches.read("1") == 1
        assert branches.read("x") == -1
        assert asyncio.run(branches.ticks(3)) == [1, 2]
    '''
FILES = {
    "pyproject.toml": SETTINGS,
    "pack/__init__.py": "",
    "pack/branches.py": MODULE,
    "pack/unused.py": "NONE = 0\n",
    "test_first.py": TESTS,
    "test_second.py": "from pack import branches\n\n\ndef test_odd():\n    assert branches.half(3) is None\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text), "utf-8")
    return tmp_path


def measured(project: Path, *arguments: str, **environ: str) -> dict[str, Any]:
    """Run the project's tests; coverage.py's report of each source file, by its name."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    plugins = "-p xdist.plugin -p pytest_cov.plugin -p no:cacheprovider"
    own |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": plugins, "PYTHONPATH": str(project), **environ}
    (project / ".coverage").unlink(missing_ok=True)
    for command in (["pytest", "-q", *arguments], ["coverage", "json", "-q"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=project, env=own, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    files = json.loads((project / "coverage.json").read_text("utf-8"))["files"]
    kinds = ("executed_lines", "missing_lines", "executed_branches", "missing_branches", "excluded_lines")
    return {name: {kind: found[kind] for kind in kinds} for name, found in files.items()}


@pytest.mark.parametrize("arguments", [(), ("-n", "2", "--dist", "loadfile")], ids=["one process", "two processes"])
def test_probes_find_what_the_tracer_finds(project: Path, arguments: tuple[str, ...]) -> None:
    """Each kind of branch, taken and not, in one process or put together from two; files not imported count."""
    expected = measured(project, "--cov", "--cov-report=")
    assert measured(project, *arguments, PYTEST_PLUGINS="tests.support.measured_lines") == expected
    assert {name for name, found in expected.items() if not found["executed_lines"]} >= {"pack/unused.py"}
    assert expected["pack/branches.py"]["missing_branches"]
