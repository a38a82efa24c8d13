"""Secrets are taken out of every text that people see: log lines, errors, tracebacks, whoever wrote them.

Two ways, since a driver's message may hold a secret in any form: the secrets of the settings that this process has read
are known and replaced wherever they stand; and what has the shape of a secret (the password of an address, a field with
the name `password`, a token, a key of Standard Webhooks) is replaced though nobody has named it.
"""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote, quote_plus, unquote

MASK: Final = "********"
WORD_LENGTH: Final = 8
"""A known secret that is shorter is replaced only where it stands as a word: it may be part of others."""
_LENGTH_MIN: Final = 4
"""A shorter one is no secret, and replacing it would garble every line."""

_ADDRESS = re.compile(r"://(?P<user>[^\s:/@'\"]{0,200}):(?P<password>[^\s'\"]{1,300})@")
_PARAMETER = re.compile(r"(?i)(password\\?=)('[^']{0,300}'|[^&\s'\"]{1,300})")
_FIELD = re.compile(
    r"""(?is)((?:password|passwd|secret|token|master_key)\\{0,3}["']\s{0,8}:\s{0,8}(?P<quote>\\{0,3}["']))"""
    r"""(?:\\.|[^\\]){1,2000}?((?P=quote)|$)"""
)
"""A field of JSON, of a `repr`, or of JSON inside a text, whose name says that it is secret; it may be cut off."""
_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?")
_ACCESS_TOKEN = re.compile(r"\b(plant_[0-9a-f]{12}_)[A-Za-z0-9_-]{8,}")
_WEBHOOK_SECRET = re.compile(r"\bwhs(?:ec|k)_[A-Za-z0-9+/=_-]{8,200}")


class KnownSecrets:
    """The secrets that this process has read, in every form that a library may write them in."""

    def __init__(self) -> None:
        self._patterns: tuple[tuple[str, re.Pattern[str] | None], ...] = ()
        self._forms: set[str] = set()
        self._lock = threading.Lock()

    def remember(self, secrets: Iterable[str]) -> None:
        """Replace these texts from now on."""
        forms = {form for secret in secrets for form in _forms(secret) if len(form) >= _LENGTH_MIN and form != MASK}
        with self._lock:
            if not forms <= self._forms:
                self._forms |= forms
                # The longest first: one secret may begin with another. A new tuple: other threads read the former one.
                longest_first = sorted(self._forms, key=lambda form: (-len(form), form))
                self._patterns = tuple((form, _as_word(form)) for form in longest_first)

    def forms(self) -> frozenset[str]:
        """Return every text that is replaced."""
        return frozenset(self._forms)

    def replace_in(self, text: str) -> str:
        for secret, word in self._patterns:
            if secret in text:
                text = text.replace(secret, MASK) if word is None else word.sub(MASK, text)
        return text


KNOWN: Final = KnownSecrets()


def redact(text: str) -> str:
    """Return the text without secrets.

    >>> redact('could not connect to "postgresql://u:p@ss@db/plant": refused')
    'could not connect to "postgresql://u:********@db/plant": refused'
    >>> redact("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), redact("user=u password='a b' dbname=d")
    ('********', 'user=u password=******** dbname=d')
    >>> redact('{"user": "u", "password": "p"}')
    '{"user": "u", "password": "********"}'
    """
    text = KNOWN.replace_in(text)
    if "://" in text:
        text = _ADDRESS.sub(rf"://\g<user>:{MASK}@", text)
    if ":" in text and ('"' in text or "'" in text):
        text = _FIELD.sub(rf"\g<1>{MASK}\g<3>", text)
    if "eyJ" in text:
        text = _TOKEN.sub(MASK, text)
    if "plant_" in text:
        text = _ACCESS_TOKEN.sub(rf"\1{MASK}", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\1{MASK}", text)
    return _WEBHOOK_SECRET.sub(MASK, text) if "whs" in text else text


def redact_values(value: Any) -> Any:
    """Return a value of a log line with the secrets taken out of every text inside it."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {name: redact_values(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(each) for each in value]
    if isinstance(value, int | float | None):
        return value
    return redact(str(value))


def redact_uncaught_errors() -> None:
    """Let Python's own reports of errors that nobody caught, in any thread, go without secrets. Once a process."""
    sys.excepthook = _report
    threading.excepthook = _report_thread
    sys.unraisablehook = lambda failed: _report(failed.exc_type, failed.exc_value, failed.exc_traceback)


def redacted_traceback(error: BaseException) -> str:
    """Return the error's traceback as Python prints it, without secrets."""
    return redact("".join(traceback.format_exception(error)))


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is not SystemExit:  # the way to end a thread, of which Python says nothing either
        _report(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _report(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if sys.stderr is not None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _forms(secret: str) -> set[str]:
    """Return the secret as it is, decoded, percent-encoded, and as `repr` and JSON show it."""
    plain = {secret, unquote(secret)}
    encoded = {form for text in plain for form in (quote(text, safe=""), quote(text), quote_plus(text))}
    return plain | encoded | {repr(text)[1:-1] for text in plain} | {text.replace("\\", "\\\\") for text in plain}


def _as_word(secret: str) -> re.Pattern[str] | None:
    return None if len(secret) >= WORD_LENGTH else re.compile(rf"(?<![\w.-]){re.escape(secret)}(?![\w.-])")
