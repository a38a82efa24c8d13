"""Secrets are taken out of every text that people see, whoever wrote it."""

from __future__ import annotations

import doctest
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pytest
import structlog

from runtime import redaction as module
from runtime.errors import PlantError
from runtime.logging import configure, get_logger
from runtime.redaction import MASK, KnownSecrets, redact
from runtime.settings import Settings, load_settings

ODD = "ab/cd+e=#f?g\"q'\\z"
"""A password with what URLs, JSON and `repr` escape."""


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the process's logging and known secrets as they were found."""
    root = logging.getLogger()
    handlers, level, ours = root.handlers[:], root.level, structlog.get_config()
    monkeypatch.setattr(module, "KNOWN", KnownSecrets())
    yield
    root.handlers, root.level = handlers, level
    structlog.configure(**ours)


def test_its_examples_are_right() -> None:
    """What the docstrings show is what the functions return."""
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("secret", ["p%zz1", "Made-Up-1", ODD, "päss wörd", "0123456789abcdef"])
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_library_that_logs_a_password_of_the_settings_logs_it_masked(
    secret: str, log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Message, arguments, traceback and chained errors of somebody else's line show no form of the secret."""
    address = f"postgresql://plant_writer:{quote(secret, safe='')}@db/plant"
    configure(
        load_settings({"PLANT_HOME": "/nonexistent", "PLANT_DATABASE_URL": address, "PLANT_LOG_FORMAT": log_format})
    )
    try:
        try:
            raise ValueError(f"invalid conninfo {secret} or {secret!r}")
        except ValueError as error:
            raise RuntimeError(f'missing "=" after "{address}"') from error
    except RuntimeError:
        logging.getLogger("library").exception("can't connect with %s and %r", secret, {"pw": secret})
    get_logger("plant").warning(
        "partition.waiting", why=f"no {secret}", more=[{"deep": (address,)}], odd=PlantError(secret)
    )

    shown = capsys.readouterr().err

    assert MASK in shown
    if log_format == "json":
        assert secret not in "\n".join(str(json.loads(line)) for line in shown.splitlines())
    for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]):
        assert form not in shown


def test_what_looks_like_a_secret_is_masked_though_nobody_named_it() -> None:
    """Passwords in addresses and parameters, and keys of Standard Webhooks."""
    assert redact("http://u:hidden@registry/x and postgresql+asyncpg://u:a:b@c@d/e") == (
        f"http://u:{MASK}@registry/x and postgresql+asyncpg://u:{MASK}@d/e"
    )
    assert redact("?user=u&password=hidden&x=1") == f"?user=u&password={MASK}&x=1"
    assert redact("key whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw is bad") == f"key {MASK} is bad"
    assert redact("host h:5432, postgresql://h:5432/plant") == "host h:5432, postgresql://h:5432/plant"


def test_a_short_secret_is_masked_as_a_word_and_garbles_no_other() -> None:
    """A password of five letters inside a longer word is no secret there."""
    load_settings({"PLANT_HOME": "/nonexistent", "PLANT_DATABASE_URL": "postgresql://u:horse@db/plant"})

    assert redact("password horse, seahorses") == f"password {MASK}, seahorses"


def test_a_password_that_is_the_user_s_name_stays() -> None:
    """It is no secret, and every message names the user."""
    load_settings({"PLANT_HOME": "/nonexistent", "PLANT_DATABASE_URL": "postgresql://plant:plant@db/plant"})

    assert redact("next: plant status") == "next: plant status"


def test_errors_that_nobody_caught_are_reported_without_secrets() -> None:
    """In the main thread and in others; a thread that ends with SystemExit reports nothing."""
    code = (
        "import sys, threading\n"
        "from runtime.redaction import KNOWN, redact_uncaught_errors\n"
        "KNOWN.remember(['hunter2hunter2']); redact_uncaught_errors()\n"
        "def fail(): raise ValueError('it was hunter2hunter2')\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "thread = threading.Thread(target=sys.exit, args=('quietly',)); thread.start(); thread.join()\n"
        "fail()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "hunter2" not in done.stderr
    assert done.stderr.count(f"ValueError: it was {MASK}") == 2
    assert "quietly" not in done.stderr
    assert "SystemExit" not in done.stderr


def test_known_secrets_may_be_added_by_several_threads() -> None:
    """None is lost."""
    secrets = [f"secret-number-{number}" for number in range(200)]
    threads = [threading.Thread(target=module.KNOWN.remember, args=([secret],)) for secret in secrets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(secrets) <= module.KNOWN.forms()


def test_settings_of_every_kind_are_known_once_they_are_read() -> None:
    """Whatever `plant settings` masks, log lines mask too."""
    secret = "hunter2hunter2"
    for name in Settings.__struct_fields__:
        if "password" in name or "secret" in name or "key" in name.split("_"):
            load_settings({"PLANT_HOME": "/nonexistent", f"PLANT_{name.upper()}": f"{name}-{secret}"})
            if f"{name}-{secret}" in repr(Settings(**{name: f"{name}-{secret}"})):  # type: ignore[arg-type]
                continue  # a file's name, say
            assert redact(f"{name}-{secret}") == MASK


@pytest.mark.parametrize(
    "text",
    [
        '{"password": "a b\\"c-s3cret", "user": "u"}',
        "{'user': 'u', 'sasl_password': 'c-s3cret'}",
        '{"client_secret":"c-s3cret","a":1}',
        r'"{\"password\": \"c-s3cret\"}"',
        '{"access_token": "c-s3cret"}',
        '{"Password" : "c-s3cret that is cut of',
    ],
)
def test_secrets_are_found_by_the_name_before_them(text: str) -> None:
    """In JSON, in `repr`, in JSON inside of JSON; the rest of the text stays."""
    assert "s3cret" not in redact(text)
    assert MASK in redact(text)
    assert ("user" in redact(text)) == ("user" in text)


@pytest.mark.parametrize(
    "text", ["password authentication failed", '{"password": null}', "no password: none was given"]
)
def test_words_about_passwords_stay(text: str) -> None:
    """They hold none."""
    assert redact(text).startswith(text[:11])
    assert "authentication failed" in redact(text) or "null" in redact(text) or "was given" in redact(text)


def test_tokens_are_found_by_their_shape() -> None:
    """Those of JSON Web Signatures, as OAUTHBEARER sends them."""
    assert redact("auth=Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJwbGFudCJ9.c2ln at 3") == f"auth=Bearer {MASK} at 3"
