"""Tokens for SASL OAUTHBEARER: the client credentials grant (RFC 6749, section 4.4) at a token endpoint.

A token is used for all connections of a process, and replaced when most of its life has passed. An endpoint that does
not answer costs nothing as long as the token before is valid. Neither secret nor token is in a message or a log line.
"""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote_plus, urlsplit

import httpx
import msgspec
from aiokafka.abc import AbstractTokenProvider

from runtime.clock import Clock, SystemClock
from runtime.errors import ConfigurationError
from runtime.kafka_settings import PREFIX, KafkaSettings
from runtime.logging import get_logger
from streams.errors import KafkaUnavailable
from streams.kafka.tls import trusting

log = get_logger(__name__)

TOKEN_TIMEOUT_SECONDS: Final = 4.0
"""For the whole request: a connection to a broker has to be ready within 5 s, its token included."""
ANSWER_MAX_BYTES: Final = 256 * 1024
REFRESH_AT: Final = 0.8
"""The part of a token's life after which it is replaced, as Kafka's own clients do."""
DEFAULT_LIFE_SECONDS: Final = 60.0
"""Of a token whose answer does not say how long it is good for."""
RETRY_AFTER_SECONDS: Final = 1.0
"""How long a failed request stands for the next ones: many connections may ask at once."""
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_ERROR_CODE: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,80}")
_EXTENSION: Final = re.compile(r"(?P<name>[A-Za-z]+)=(?P<value>[\x20-\x2b\x2d-\x7e\t]+)")


class TokenAnswer(msgspec.Struct):
    """The answer of a token endpoint, as far as it is read (RFC 6749, sections 5.1 and 5.2)."""

    access_token: str = ""
    token_type: str = "bearer"  # noqa: S105 (no password)
    expires_in: float | None = None
    error: str = ""


class Token(msgspec.Struct, frozen=True):
    """A token, and the times of the monotonic clock at which it is to be replaced and at which it ends."""

    text: str
    refresh_at_seconds: float
    ends_at_seconds: float

    def __repr__(self) -> str:
        return "Token(********)"


class TokenCache:
    """The newest token of a client id, for all connections of the process, in whatever thread."""

    def __init__(self) -> None:
        self.token: Token | None = None
        self.failed_at_seconds = float("-inf")
        self.failure: KafkaUnavailable | None = None


class TokenEndpoint(msgspec.Struct, frozen=True):
    """A token endpoint, and who asks it. Its `repr` has no secret."""

    url: str
    client_id: str
    client_secret: str
    scope: str
    ca_file: str

    def __repr__(self) -> str:
        return f"TokenEndpoint({self.shown})"

    @property
    def shown(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka is not type-checked here
    """The source of tokens of one Kafka client, which belongs to one event loop."""

    def __init__(
        self, endpoint: TokenEndpoint, extensions: dict[str, str], cache: TokenCache, clock: Clock | None = None
    ) -> None:
        self._endpoint = endpoint
        self._extensions = extensions
        self._cache = cache
        self._clock = clock or SystemClock()
        self._asking = asyncio.Lock()
        self._tls = trusting(endpoint.ca_file, f"{PREFIX}KAFKA_OAUTH_CAFILE")

    def extensions(self) -> dict[str, str]:
        """Return the SASL extensions that go with a token."""
        return self._extensions

    async def token(self) -> str:
        """Return a token that is valid. Raises KafkaUnavailable where there is none within the timeout."""
        async with self._asking:
            now_seconds = self._clock.monotonic_seconds()
            token = self._cache.token
            if token is not None and now_seconds < token.refresh_at_seconds:
                return token.text
            try:
                token = await self._replaced(now_seconds)
            except KafkaUnavailable as error:
                if token is None or token.ends_at_seconds <= now_seconds:
                    raise
                log.warning("token.not_replaced", why=str(error))
            return token.text

    async def _replaced(self, now_seconds: float) -> Token:
        cache = self._cache
        if cache.failure is not None and now_seconds - cache.failed_at_seconds < RETRY_AFTER_SECONDS:
            raise KafkaUnavailable(cache.failure.what, why=cache.failure.why, next_step=cache.failure.next_step)
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT_SECONDS):
                answer = await self._ask()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            if isinstance(error, (TimeoutError, httpx.TimeoutException)):
                why = f"it did not answer within {TOKEN_TIMEOUT_SECONDS:g} s"
            else:
                why = f"{type(error).__name__}: {error}"
            cache.failure, cache.failed_at_seconds = self._unavailable(f"{why}."), now_seconds
            raise cache.failure from error
        except KafkaUnavailable as error:
            cache.failure, cache.failed_at_seconds = error, now_seconds
            raise
        life_seconds = DEFAULT_LIFE_SECONDS if answer.expires_in is None else answer.expires_in
        cache.failure = None
        cache.token = Token(answer.access_token, now_seconds + REFRESH_AT * life_seconds, now_seconds + life_seconds)
        return cache.token

    async def _ask(self) -> TokenAnswer:
        endpoint = self._endpoint
        form = {"grant_type": "client_credentials"} | ({"scope": endpoint.scope} if endpoint.scope else {})
        # Both are encoded as in a form before they are joined (RFC 6749, section 2.3.1).
        credentials = httpx.BasicAuth(quote_plus(endpoint.client_id), quote_plus(endpoint.client_secret))
        async with (
            httpx.AsyncClient(verify=self._tls, timeout=TOKEN_TIMEOUT_SECONDS, follow_redirects=False) as client,
            client.stream(
                "POST",
                endpoint.url,
                data=form,
                auth=credentials,
                headers={"accept": "application/json", "accept-encoding": "identity"},
            ) as response,
        ):
            body = b""
            async for part in response.aiter_raw():
                body += part
                if len(body) > ANSWER_MAX_BYTES:
                    raise self._unavailable("its answer is too long.")
        return self._read(response.status_code, body)

    def _read(self, status: int, body: bytes) -> TokenAnswer:
        try:
            answer = msgspec.json.decode(body, type=TokenAnswer, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = TokenAnswer()
        if status != 200:
            code = f" {answer.error}" if _ERROR_CODE.fullmatch(answer.error) else ""
            raise self._unavailable(f"it answered {status}{code}.")
        if not _TOKEN.fullmatch(answer.access_token) or answer.token_type.lower() != "bearer":
            raise self._unavailable("its answer holds no bearer token.")
        if answer.expires_in is not None and not 0 < answer.expires_in < float("inf"):
            raise self._unavailable("its answer holds a token that is good for no time.")
        return answer

    def _unavailable(self, why: str) -> KafkaUnavailable:
        return KafkaUnavailable(
            "There is no token for Kafka.",
            why=f"{self._endpoint.shown}: {why}",
            next_step="plant settings    # PLANT_KAFKA_OAUTH_…",
        )


def make_token_provider(settings: KafkaSettings) -> TokenProvider:
    """Return a client's source of tokens; it shares them with others of the settings. Call it inside an event loop.

    Raises ConfigurationError where a setting is missing or can't be used.
    """
    endpoint = TokenEndpoint(
        settings.kafka_oauth_token_url,
        settings.kafka_oauth_client_id,
        settings.kafka_oauth_client_secret,
        settings.kafka_oauth_scope,
        settings.kafka_oauth_cafile,
    )
    _require_https(endpoint)
    return TokenProvider(endpoint, read_extensions(settings.kafka_oauth_extensions), _cache_of(endpoint))


def read_extensions(text: str) -> dict[str, str]:
    """Return the extensions of a setting. Raises ConfigurationError.

    >>> read_extensions("logicalCluster=lkc-1, identityPoolId=pool-2")
    {'logicalCluster': 'lkc-1', 'identityPoolId': 'pool-2'}
    """
    found = {}
    for part in filter(None, map(str.strip, text.split(","))):
        extension = _EXTENSION.fullmatch(part)
        if extension is None or extension["name"] == "auth":
            raise ConfigurationError(
                f"The setting {PREFIX}KAFKA_OAUTH_EXTENSIONS can't be used.",
                why=f"{part[:60]!r} is no name=value: names are letters, and auth is taken (RFC 7628, section 3.1).",
                next_step=f"export {PREFIX}KAFKA_OAUTH_EXTENSIONS=logicalCluster=lkc-1,identityPoolId=pool-1",
            )
        found[extension["name"]] = extension["value"]
    return found


def _require_https(endpoint: TokenEndpoint) -> None:
    """Refuse an address over which the client's secret would go in the clear."""
    try:
        parts = urlsplit(endpoint.url)
        host, good = parts.hostname, parts.port != 0 and bool(httpx.URL(endpoint.url).host)
    except (ValueError, httpx.InvalidURL):
        host, good = None, False
    if not good or not host or parts.scheme not in ("http", "https"):
        why = "It is no https address."
    elif parts.scheme == "http" and host not in LOOPBACK:
        why = "It is no https address, so the client's secret would go in the clear."
    else:
        return
    raise ConfigurationError(
        f"The setting {PREFIX}KAFKA_OAUTH_TOKEN_URL can't be used.",
        why=why,
        next_step=f"export {PREFIX}KAFKA_OAUTH_TOKEN_URL=https://issuer.example/oauth2/token",
    )


@lru_cache(maxsize=8)
def _cache_of(endpoint: TokenEndpoint) -> TokenCache:
    del endpoint
    return TokenCache()
