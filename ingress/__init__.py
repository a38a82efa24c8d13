"""Ingress: webhooks over HTTP, their signatures, limits and answers."""
