"""The obvious pipeline: a stock Faust agent, `async for`, and a SQLAlchemy transaction an event.

`python -m benchmarks.stock_faust [TOPIC]`
"""

from __future__ import annotations

import asyncio
import sys
import tempfile

import faust
from sqlalchemy import BigInteger, Boolean, Integer, LargeBinary, Text, Uuid
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from runtime.settings import load_settings
from schemas import codec
from schemas.events import AgentAvailable, AgentOnboarded


class Base(DeclarativeBase):
    pass


class LogRow(Base):
    __tablename__ = "stock_log"
    topic: Mapped[str] = mapped_column(Text, primary_key=True)
    partition: Mapped[int] = mapped_column(Integer, primary_key=True)
    offset: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    event_id: Mapped[object] = mapped_column(Uuid)
    value: Mapped[bytes] = mapped_column(LargeBinary)


class AgentRow(Base):
    __tablename__ = "stock_agents"
    agent_id: Mapped[object] = mapped_column(Uuid, primary_key=True)
    name: Mapped[str | None] = mapped_column(Text)
    industry_id: Mapped[object | None] = mapped_column(Uuid)
    available: Mapped[bool | None] = mapped_column(Boolean)
    offset: Mapped[int] = mapped_column(BigInteger)


def build(topic: str) -> faust.App:
    settings = load_settings()
    url = make_url(settings.database_address("writer")).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url)
    app = faust.App(
        settings.consumer_group,
        broker=f"kafka://{settings.kafka_address()}",
        store="memory://",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        web_enabled=False,
        datadir=tempfile.mkdtemp(),
    )

    @app.agent(app.topic(topic))
    async def project(stream: faust.StreamT[bytes]) -> None:
        async for event in stream.events():
            message = event.message
            fact = codec.decode(message.value)
            async with AsyncSession(engine) as session, session.begin():
                session.add(
                    LogRow(
                        topic=message.topic,
                        partition=message.partition,
                        offset=message.offset,
                        event_id=fact.event_id,
                        value=message.value,
                    )
                )
                changed: dict[str, object] = {}
                if isinstance(fact, AgentOnboarded):
                    changed = {"name": fact.name, "industry_id": fact.industry_id}
                elif isinstance(fact, AgentAvailable):
                    changed = {"available": fact.available}
                if changed:
                    row = {"agent_id": fact.entity_id, "offset": message.offset, **changed}
                    statement = insert(AgentRow).values(row)
                    await session.execute(
                        statement.on_conflict_do_update(
                            index_elements=["agent_id"], set_={**changed, "offset": message.offset}
                        )
                    )

    return app


async def main() -> None:
    app = build(sys.argv[1] if len(sys.argv) > 1 else "genesis.events")
    await app.start()
    await app.wait_until_stopped()


if __name__ == "__main__":
    asyncio.run(main())
