"""The machine-readable contracts among the generated files."""

from __future__ import annotations

from pathlib import Path

from ingress.contracts.openapi import openapi_text as openapi
from ingress.routes import WEBHOOK_ROUTES
from operations.reference.asyncapi import asyncapi_text as asyncapi


def contracts(reference: Path) -> dict[Path, str]:
    """Return the content of each file by its name in the folder of reference pages."""
    return {reference / "openapi.json": openapi(WEBHOOK_ROUTES), reference / "asyncapi.json": asyncapi()}
