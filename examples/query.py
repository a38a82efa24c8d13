"""Query a read model as `plant_api`; any Postgres client will do.

set -a; . .plant/stack.env; set +a
python examples/query.py
"""

from __future__ import annotations

import asyncio
import os

import asyncpg


async def agents() -> dict[str, str]:
    connection = await asyncpg.connect(os.environ["PLANT_DATABASE_API_URL"])
    try:
        await connection.execute("SET plant.governance_agent_id = 'genesis'")  # the tenant
        rows = await connection.fetch("SELECT name, status FROM read_models.agents ORDER BY name")
        return {row["name"]: row["status"] for row in rows}
    finally:
        await connection.close()


if __name__ == "__main__":
    print(asyncio.run(agents()))
