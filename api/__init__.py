"""The API for readers: what the read models show, over HTTP."""
