"""Rebuilding a read model from the log, proving the rebuild equal, and moving readers to it and back."""
