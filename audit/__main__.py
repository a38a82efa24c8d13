"""`python -m audit postgresql://…`: the verifier alone, for someone who has the log's address and nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from audit.verifier.chains import read_heads, verify_chains
from audit.verifier.heads import dump, load
from audit.verifier.verdicts import ChainFilter, raise_unless_good
from runtime.errors import PlantError
from runtime.process import prepare_process
from runtime.redaction import redact


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify, print a JSON line for each chain, return the exit code.

    0 good, 3 a bad entry, one that can't be judged or a name without entries, 2 or 4 not checked.
    """
    prepare_process()
    parser = argparse.ArgumentParser(prog="python -m audit", description=__doc__)
    parser.add_argument("url", help="postgresql:// address of a role that may read log_records and log_ranges")
    parser.add_argument("--topic", help="only this topic's chains")
    parser.add_argument("--partition", type=int, help="only chains with this partition")
    parser.add_argument("--jobs", type=int, help="processes to use (default: at most one a core)")
    parser.add_argument("--expect", type=Path, help="heads kept from before, as --heads printed them")
    parser.add_argument("--schema-ids", type=Path, help="PLANT_SCHEMA_IDS_FILE of the log, if it has one")
    parser.add_argument("--heads", action="store_true", help="print the chain heads, check nothing")
    options = parser.parse_args(arguments)
    try:
        if options.heads:
            sys.stdout.write(dump(read_heads(options.url)))
            return 0
        kept = load(options.expect) if options.expect else None
        verdicts = verify_chains(
            options.url,
            topic=options.topic,
            partition=options.partition,
            jobs=options.jobs,
            expect=kept or (),
            schema_ids=options.schema_ids,
        )
        for verdict in verdicts:
            line = {"verdict": verdict.state, **msgspec.to_builtins(verdict)}
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        if not verdicts:
            sys.stderr.write("There are no chains: nothing was checked.\n")
        choice = ChainFilter(topic=options.topic, partition=options.partition)
        raise_unless_good(verdicts, choice, expect=kept, schema_ids=options.schema_ids)
    except PlantError as error:
        sys.stderr.write(redact(f"error: {error}\n"))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
