"""The way in: HTTP, signatures, limits, and the answers."""
