"""The lock file: what the demo installs comes as wheels for every platform that we name."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import Any

import pytest
from packaging.markers import Marker

from devstack.kafka_jars import locked_jars
from tests.support import ROOT

PACKAGES: list[dict[str, Any]] = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
PYTHONS = ("3.11", "3.12", "3.13")
DOWNLOAD_BUDGET_BYTES = 400_000_000


@dataclass(frozen=True)
class Platform:
    system: str
    sys_platform: str
    machine: str
    wheel_tag: str


LINUX = Platform("Linux", "linux", "x86_64", r"manylinux.*_x86_64")
LINUX_ARM = Platform("Linux", "linux", "aarch64", r"manylinux.*_aarch64")
# Intel Macs are not in the list: cryptography has no wheel for them any more.
MACOS_ARM = Platform("Darwin", "darwin", "arm64", r"macosx_\d+_\d+_(arm64|universal2)")

BUILT_WITHOUT_A_COMPILER = {
    # Its C extensions are optional; with no compiler its build leaves them out.
    ("faust-streaming", LINUX_ARM),
}


def needed(python: str, platform: Platform) -> list[dict[str, Any]]:
    """Packages of `--no-default-groups --group stack`, with what they need in turn, as one platform resolves them."""
    where = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_system": platform.system,
        "platform_machine": platform.machine,
        "sys_platform": platform.sys_platform,
        "os_name": "posix",
    }
    plant = next(package for package in PACKAGES if package["name"] == "plant")
    waiting = [*plant["dependencies"], *plant["dev-dependencies"]["stack"]]
    found: dict[str, dict[str, Any]] = {}
    while waiting:
        dependency = waiting.pop()
        if "marker" in dependency and not Marker(dependency["marker"]).evaluate(where):
            continue
        package = _locked(dependency)
        for extra in dependency.get("extra", []):
            waiting += package["optional-dependencies"][extra]
        if package["name"] not in found:
            found[package["name"]] = package
            waiting += package.get("dependencies", [])
    return list(found.values())


def _locked(dependency: dict[str, Any]) -> dict[str, Any]:
    """The one entry of the lock file that a dependency means; it says the version where there are several."""
    version = dependency.get("version")
    found = [package for package in PACKAGES if package["name"] == dependency["name"]]
    return next(package for package in found if version in (None, package["version"]))


def wheel_sizes(package: dict[str, Any], python: str, platform: Platform) -> list[int]:
    return [wheel["size"] for wheel in package.get("wheels", []) if _fits(wheel["url"], python, platform)]


def _fits(url: str, python: str, platform: Platform) -> bool:
    """Whether a wheel's tags (PEP 425) let this Python use it on a platform."""
    interpreters, abis, systems = url.rpartition("/")[2].removesuffix(".whl").rsplit("-", 3)[1:]
    tags, minor = interpreters.split("."), int(python.removeprefix("3."))
    if "abi3" in abis.split("."):
        usable = any(tag.startswith("cp3") and int(tag[3:]) <= minor for tag in tags)
    else:
        usable = bool({f"cp3{minor}", "py3", f"py3{minor}"} & set(tags)) and abis in (f"cp3{minor}", "none")
    return usable and (systems == "any" or re.search(platform.wheel_tag, systems) is not None)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", [LINUX, LINUX_ARM, MACOS_ARM], ids=lambda it: f"{it.sys_platform}-{it.machine}")
def test_every_package_of_the_demo_has_a_wheel(platform: Platform, python: str) -> None:
    """Nothing needs a compiler on a user's machine."""
    without = [
        package["name"]
        for package in needed(python, platform)
        if not wheel_sizes(package, python, platform) and (package["name"], platform) not in BUILT_WITHOUT_A_COMPILER
    ]

    assert without == []


def test_first_demo_downloads_less_than_its_budget() -> None:
    """Wheels for one platform and the Kafka jars together stay under 400 MB."""
    wheels_bytes = sum(max(wheel_sizes(package, "3.11", LINUX)) for package in needed("3.11", LINUX))
    jars_bytes = sum(jar.size_bytes for jar in locked_jars())

    assert 100_000_000 < wheels_bytes + jars_bytes < DOWNLOAD_BUDGET_BYTES, (wheels_bytes, jars_bytes)
