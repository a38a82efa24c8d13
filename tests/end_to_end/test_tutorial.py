"""docs/tutorial.md, from its second step on, run as it stands; the first one has been done where tests run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from devstack.kafka import JAVA_OPTIONS
from devstack.processes import choose_port
from tests.support import ROOT
from tests.support.at_home import RUN_TIMEOUT_SECONDS, environ_of, running_in

TUTORIAL = ROOT / "docs" / "tutorial.md"
PORT = "8080"


def test_the_tutorial_works(home: Path) -> None:
    """Every command succeeds; the event is consumed, in the table, in a good chain; nothing is left running."""
    if missing := [tool for tool in ("bash", "curl", "openssl", "od") if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    install, *steps = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert install == "make setup\nsource .venv/bin/activate\n"
    port = str(choose_port(None, set()))
    environ = environ_of(home, PLANT_INGRESS_PORT=port, PLANT_INGRESS_ADMIN_ADDRESS="127.0.0.1:0")
    home.mkdir(exist_ok=True)
    home.chmod(0o755)
    # .plant in the current folder, and Java's own options, as for everyone who follows the tutorial.
    del environ["PLANT_HOME"]
    environ.pop(JAVA_OPTIONS, None)
    # A step that fails ends the script; what it has started would keep its output open.
    script = "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n" + "\n".join(steps).replace(PORT, port)
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=home, env=environ, capture_output=True, text=True, check=False, timeout=RUN_TIMEOUT_SECONDS,
        )  # fmt: skip
    finally:
        subprocess.run(
            ["plant", "down", "--delete-data", "--execute"], cwd=home, env=environ, capture_output=True, check=True
        )
    assert done.returncode == 0, done.stdout + done.stderr
    answers = re.findall(r'\{"event_id".*?\}', done.stdout)
    assert len(answers) == 2
    assert answers[0] == answers[1]
    kinds = ["genesis.agent.onboarded", "genesis.agent.available", "genesis.agent.rated"]
    consumed = [line.split()[3] for line in done.stdout.splitlines() if re.match(r"\d+@\d+ ", line)]
    assert consumed == kinds
    assert "{'name': 'first agent', 'status': 'onboarded', 'available': True}" in done.stdout
    _, _, verdicts = done.stdout.partition(" verdict ")
    chains = re.findall(r"^(?:genesis\.events|plant\.operations) +\d+ +(\w+)", verdicts, re.MULTILINE)
    assert set(chains) == {"good"}
    assert [line for line in running_in(home) if "pytest" not in line] == []
