"""`plant demo`, step by step: `run.py` has the order, each other file one step or what it works on."""
