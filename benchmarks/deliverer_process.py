"""`python -m benchmarks.deliverer_process GENERATION`: `plant deliverer` on topics whose names end otherwise."""

from __future__ import annotations

import sys

import uvloop

from deliveries.deliverer.delivery_process import DeliveryTopics
from operations.services.deliverer import serve_deliverer
from runtime.logging import configure
from runtime.settings import load_settings

if __name__ == "__main__":
    settings = load_settings()
    configure(settings)
    uvloop.run(serve_deliverer(settings, DeliveryTopics(sys.argv[1])))
