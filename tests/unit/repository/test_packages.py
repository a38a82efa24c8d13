"""The lists of packages agree: what is shipped, typed, measured and kept apart is every package there is."""

from __future__ import annotations

import tomllib
from typing import Any

from tests.support import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NOT_SHIPPED = {"tests", "benchmarks"}
NOT_MEASURED = {"operations", "runtime", "devstack"}
"""What starts processes, and what everything else rests on, is run by tests in processes of their own."""


def packages() -> set[str]:
    """The folders at the root that are packages of Plant."""
    return {path.parent.name for path in ROOT.glob("*/__init__.py")} - NOT_SHIPPED


def test_every_package_is_shipped_typed_and_kept_apart() -> None:
    """A package that a list lacks is not in the wheel, has no types checked, or may import what it likes."""
    tools = PROJECT["tool"]
    assert set(tools["hatch"]["build"]["targets"]["wheel"]["packages"]) == packages()
    assert set(tools["mypy"]["packages"]) == packages()
    assert set(tools["importlinter"]["root_packages"]) == packages()
    assert set(tools["mutmut"]["source_paths"]) == packages()
    assert set(tools["coverage"]["run"]["source"]) == packages() - NOT_MEASURED


def test_the_image_has_every_package() -> None:
    """The image is built from what its allow-list lets in: all packages, and what installs them."""
    lines = (ROOT / "infra" / "Dockerfile.dockerignore").read_text("utf-8").split()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[0] == "**"
    assert allowed == packages() | {".ci/uv.txt", ".ci/sbom.txt", "README.md", "pyproject.toml", "uv.lock"}
