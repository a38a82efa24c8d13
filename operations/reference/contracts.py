"""The machine-readable contracts among the generated files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from api.openapi import reader_openapi_text
from ingress.contracts.openapi import openapi_text as openapi
from ingress.routes import WEBHOOK_ROUTES
from operations.reference.asyncapi import asyncapi_text as asyncapi

CONTRACTS: Final[Mapping[str, Callable[[], str]]] = {
    "reference/openapi.json": lambda: openapi(WEBHOOK_ROUTES),
    "reference/openapi-read.json": reader_openapi_text,
    "reference/asyncapi.json": asyncapi,
}
"""What makes each file, by its name under `docs/`."""
