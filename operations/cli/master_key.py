"""`plant keys rekey`: stored secrets under another master key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from operations.operator_actions import OperatorAction, actor_option, reason_option, record, with_facts

if TYPE_CHECKING:
    from runtime.settings import Settings


@click.command(name="rekey")
@click.option("--execute", is_flag=True, help="Do it; without this the plan is printed.")
@actor_option
@reason_option("The master key is changed regularly.")
def rekey(execute: bool, actor: str, reason: str) -> None:
    """Encrypt the stored secrets under a new master key: producers' keys, and endpoints' keys and headers.

    PLANT_MASTER_KEY is the new master key, and PLANT_MASTER_KEY_PREVIOUS the one until now. Start every ingress process
    with both first: it accepts secrets under either. Afterwards PLANT_MASTER_KEY_PREVIOUS is no longer needed.

    \b
    Examples:
      plant keys rekey
      plant keys rekey --execute --reason "an operator has left"
    """
    from runtime.settings import load_settings

    click.echo(asyncio.run(_rekey(load_settings(), execute, actor, reason)), err=True)


async def _rekey(settings: Settings, execute: bool, actor: str, reason: str) -> str:
    from database.connector import connect
    from operations.secret_tables import SECRET_TABLES
    from signing.master_key import MasterKeys
    from signing.master_key_rows import change_master_key

    database, master_keys = connect(settings, "operator"), MasterKeys(settings).require()
    try:
        planned = await change_master_key(database, master_keys, SECRET_TABLES, execute=False)
        change = f"from the master key {planned.old or 'that was not recorded'} to {planned.new}"
        count = f"{planned.secret_count} secrets"
        if not planned.needed:
            return f"every usable secret is encrypted under the master key {planned.new}; nothing to do"
        if not execute:
            return f"would change {count} over {change}, once every ingress process has both; add --execute to do it"
        why = with_facts(reason, [change, count])
        await record(settings, OperatorAction(action="keys.rekey", target="master key", reason=why, actor=actor))
        done = await change_master_key(database, master_keys, SECRET_TABLES, execute=True)
    finally:
        await database.close()
    return f"changed {done.secret_count} secrets over {change}; PLANT_MASTER_KEY_PREVIOUS is no longer needed"
