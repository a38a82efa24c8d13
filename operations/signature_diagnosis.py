"""Which part of a signed request does not match: the key, the headers, the signature or the body.

A signature that does not match gives no reason. So the mistakes that people make are tried: a body with another end of
line, a secret that was used as text, a signature in another alphabet. The first one that explains it is named.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal

import msgspec

from ingress.headers import MESSAGE_ID, require_one_reading
from operations.signing_keys import SigningKeyUnusable, read_signing_key, verifying
from runtime.errors import CheckFailed, ConfigurationError
from server.problems import Problem
from signing.ed25519 import PUBLIC_PREFIX, decode_public_key
from signing.hmac_secrets import SECRET_PREFIX
from signing.signatures import Ed25519Key, HmacKey, Key, SignatureRejected, Verified, explain, sign, verify_signature

NAMES: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")
SIGNATURE_FORMS: Final = {"v1": "v1, a comma and the base64 of 32 bytes", "v1a": "v1a, a comma and that of 64 bytes"}

_REQUEST_LINE: Final = re.compile(rb"[A-Z]+ \S+ HTTP/[0-9.]+")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_SIGNATURE_SIZES: Final = {b"v1": 32, b"v1a": 64}


class RequestUnreadable(ConfigurationError):
    """The file does not hold a request: header lines, an empty line and the body."""


class RequestUnverified(CheckFailed):
    """The request would not be accepted."""


class SavedRequest(msgspec.Struct, frozen=True):
    """A request as a file holds it. Header names are in lower case; one may come twice."""

    headers: list[tuple[str, bytes]]
    body: bytes


class PartCheck(msgspec.Struct, frozen=True):
    """What was found out about a part of a request."""

    part: Literal["headers", "webhook-id", "webhook-timestamp", "webhook-signature", "body", "match"]
    result: Literal["good", "bad", "not checked"]
    reason: str = ""


def read_verifying_key(text: str) -> Key:
    """Return the key of a `whsec_…`, `whsk_…` or `whpk_…` text. Raises SigningKeyUnusable, which does not repeat it."""
    if not text.startswith(PUBLIC_PREFIX):
        return verifying(read_signing_key(text))
    try:
        public_key = decode_public_key(text)
    except ValueError as error:
        raise SigningKeyUnusable("The key can't be used.", why=f"{error}.".capitalize()) from None
    return Ed25519Key(id="given", owner="given", public_key=public_key)


def read_request(content: bytes, body: bytes | None) -> SavedRequest:
    """Return the request of a file: header lines, then an empty line and the body, unless the body is given apart.

    Raises RequestUnreadable.
    """
    ends = [at for at in (content.find(b"\r\n\r\n"), content.find(b"\n\n")) if at >= 0]
    head, rest = content, None
    if ends:
        at = min(ends)
        head, rest = content[:at], content[at + (4 if content[at : at + 1] == b"\r" else 2) :]
    if body is None and rest is None:
        raise RequestUnreadable(why="There is no empty line, and no --body.", next_step="plant webhook verify --help")
    if body is not None and rest:
        raise RequestUnreadable("There are two bodies.", why="One follows the headers, and --body names another.")
    headers = []
    for number, line in enumerate(head.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if number == 1 and _REQUEST_LINE.fullmatch(line):
            continue
        header = _HEADER.fullmatch(line)
        if header is None:
            raise RequestUnreadable(why=f"Line {number} is no header.", next_step="plant webhook verify --help")
        headers.append((header[1].decode("ascii").lower(), header[2]))
    return SavedRequest(headers, body if body is not None else rest or b"")


def diagnose(key: Key, key_text: str, request: SavedRequest, now_seconds: float | None) -> list[PartCheck]:
    """Return what holds and what does not, part by part; the age is left out where there is no time to compare with."""
    values = dict(request.headers)
    fault = _headers_fault(request.headers)
    if fault:
        rest: tuple[Literal["match", "body"], ...] = ("body", "match")
        return [PartCheck("headers", "bad", fault), *(PartCheck(part, "not checked") for part in rest)]
    message_id, timestamp, signatures = (values[name] for name in NAMES)
    form = "1 to 256 visible ASCII characters without { and [ are allowed"
    return [
        PartCheck("headers", "good"),
        _part("webhook-id", "" if MESSAGE_ID.fullmatch(message_id) else form),
        _part("webhook-timestamp", _timestamp_fault(timestamp, now_seconds)),
        _part("webhook-signature", _signature_fault(key, signatures)),
        _part("body", _body_fault(request.body, values)),
        _part("match", _match_fault(key, key_text, message_id, timestamp, signatures, request.body)),
    ]


def require_good(results: list[PartCheck]) -> None:
    """Raise RequestUnverified unless every part is good."""
    bad = [each for each in results if each.result == "bad"]
    if bad:
        raise RequestUnverified(
            why=" ".join(f"{each.part}: {each.reason}." for each in bad), next_step="plant webhook verify --help"
        )


def _part(
    part: Literal["webhook-id", "webhook-timestamp", "webhook-signature", "body", "match"], fault: str
) -> PartCheck:
    return PartCheck(part, "bad" if fault else "good", fault)


def _headers_fault(headers: list[tuple[str, bytes]]) -> str:
    names = [name for name, _ in headers]
    for name in NAMES:
        if names.count(name) != 1:
            return f"{name} {'comes more than once' if name in names else 'is missing'}"
    return ""


def _timestamp_fault(timestamp: bytes, now_seconds: float | None) -> str:
    compared = _seconds(timestamp) if now_seconds is None else now_seconds
    # A signature that is none: the timestamp is looked at first.
    verdict = verify_signature((), b"", timestamp, b"", b"", compared)
    assert isinstance(verdict, SignatureRejected)
    return "" if verdict.reason == "no_known_signature" else explain(verdict.reason)


def _seconds(timestamp: bytes) -> float:
    """Return the time of a timestamp, at which it has no age; 0 where it is none."""
    return float(timestamp) if timestamp.isdigit() and len(timestamp) <= 12 else 0.0


def _signature_fault(key: Key, signatures: bytes) -> str:
    """Return what is wrong with the form of the signatures, whatever was signed."""
    scheme = "v1" if isinstance(key, HmacKey) else "v1a"
    versions = [signature.partition(b",") for signature in signatures.split(b" ")]
    own = [text for version, _, text in versions if version == scheme.encode()]
    if not own:
        found = sorted(
            {version.decode("ascii", "replace") for version, _, _ in versions if version in _SIGNATURE_SIZES}
        )
        there = f"only {' and '.join(found)}" if found else "neither v1 nor v1a"
        return f"the key is for {scheme}, and there is {there}; a signature is {SIGNATURE_FORMS[scheme]}"
    for text in own:
        try:
            if (
                len(binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True))
                == _SIGNATURE_SIZES[scheme.encode()]
            ):
                return ""
        except ValueError:
            continue
    return f"no signature has the form of {scheme}: {SIGNATURE_FORMS[scheme]}"


def _body_fault(body: bytes, values: Mapping[str, bytes]) -> str:
    content_length = values.get("content-length")
    try:
        require_one_reading(body, gzipped=values.get("content-encoding", b"").strip().lower() in (b"gzip", b"x-gzip"))
    except Problem as problem:
        return problem.detail.rstrip(".")
    if content_length is not None and content_length.isdigit() and int(content_length) != len(body):
        return (
            f"it has {len(body)} bytes, and content-length is {int(content_length)}; an editor may have changed its end"
        )
    return ""


def _match_fault(key: Key, key_text: str, message_id: bytes, timestamp: bytes, signatures: bytes, body: bytes) -> str:
    at = _seconds(timestamp)
    verdict = verify_signature([key], message_id, timestamp, signatures, body, at)
    if isinstance(verdict, Verified):
        return ""
    if verdict.reason != "no_match":
        return explain(verdict.reason)
    for mistake, other_body in _other_bodies(body):
        if isinstance(verify_signature([key], message_id, timestamp, signatures, other_body, at), Verified):
            return f"the body is not the one that was signed: {mistake}"
    if isinstance(key, HmacKey):
        for mistake, other_secret in _other_secrets(key_text):
            other = HmacKey(id="given", owner="given", secret=other_secret)
            if isinstance(verify_signature([other], message_id, timestamp, signatures, body, at), Verified):
                return f"the secret was not used as it is: {mistake}"
        for mistake, other_signature in _other_signatures(key, message_id, timestamp, body):
            if other_signature in signatures.split(b" "):
                return f"the signature is of other content or in another form: {mistake}"
    return "another key was used, or the id, the timestamp or the body is not the one that was signed"


def _other_bodies(body: bytes) -> Iterator[tuple[str, bytes]]:
    yield "a line end was added behind it", body.removesuffix(b"\n").removesuffix(b"\r")
    yield "a line end was taken from behind it", body + b"\n"
    yield "its line ends were made LF", body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    yield "its line ends were made CRLF", body.replace(b"\r\n", b"\n")
    yield "a byte order mark was added", body.removeprefix(b"\xef\xbb\xbf")
    yield "it was signed without a body", b""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return
    for ascii_only in (True, False):
        for separators in ((",", ":"), (", ", ": ")):
            for ordered in (False, True):
                text = json.dumps(document, ensure_ascii=ascii_only, separators=separators, sort_keys=ordered)
                yield "its JSON was written again in other characters", text.encode("utf-8", "surrogatepass")


def _other_secrets(key_text: str) -> Iterator[tuple[str, bytes]]:
    yield "its text was the key, with whsec_, and not the bytes of its base64", key_text.encode()
    yield "its text was the key, and not the bytes of its base64", key_text.removeprefix(SECRET_PREFIX).encode()


def _other_signatures(key: HmacKey, message_id: bytes, timestamp: bytes, body: bytes) -> Iterator[tuple[str, bytes]]:
    digest = binascii.a2b_base64(sign(key.secret, message_id, timestamp, body).removeprefix(b"v1,"))
    yield "it is in hexadecimal, not base64", b"v1," + digest.hex().encode()
    in_base64 = binascii.b2a_base64(digest, newline=False)
    for form in (in_base64, in_base64.rstrip(b"=")):
        yield "it is in the alphabet of URLs (- and _)", b"v1," + form.translate(bytes.maketrans(b"+/", b"-_"))
