"""Serving a process's metrics, for those that serve nothing else by HTTP."""

from __future__ import annotations

from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from runtime.errors import ConfigurationError


def serve_metrics(address: str, service: str = "worker") -> WSGIServer | None:
    """Serve Prometheus metrics at `host:port`, in a thread; nowhere if empty. Raises ConfigurationError."""
    if not address:
        return None
    host, _, port = address.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host or "127.0.0.1")
    except (ValueError, OSError) as error:
        raise ConfigurationError(
            f"The {service}'s metrics can't be served.",
            why=f"PLANT_{service.upper()}_METRICS_ADDRESS is {address}: {error}.",
            next_step="plant settings",
        ) from error
    return server
