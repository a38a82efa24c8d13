"""Every table that holds secrets under the master key: `plant keys rekey` changes them together."""

from __future__ import annotations

from typing import Final

from deliveries.endpoint_rows import ENDPOINT_SECRETS
from ingress.key_rows import PRODUCER_SECRETS
from signing.master_key_rows import SecretTable

SECRET_TABLES: Final[tuple[SecretTable, ...]] = (PRODUCER_SECRETS, ENDPOINT_SECRETS)
