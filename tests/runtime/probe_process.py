"""The probe as a process of its own: settings, logging, signals and drain as every service has them.

What it is asked tells it how to fail; each failure has secrets in its exception and in its variables.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import text

from services.runtime import process
from services.runtime.database import open_database
from services.runtime.server import GrpcServer, Mount, serve
from services.runtime.settings import PeerSettings, ServerSettings
from tests.issuer import Issuer
from tests.runtime import probe


class ProbeSettings(ServerSettings, PeerSettings):
    """All that a service may have."""

    names: tuple[str, ...] = ()


def _check(value: str) -> None:
    raise ValueError(value)


async def main(settings: ProbeSettings) -> None:
    database = open_database(settings.database_url.get_secret_value(), pool_size=1)

    async def answer(request: Any, _context: Any) -> Message:
        secret = f"local-{request.text}"
        match request.name:
            case "fault":
                raise RuntimeError("a fault\nof many lines with " + secret)
            case "group":
                raise ExceptionGroup("a group", [ValueError("of one\n" + secret)])
            case "query":
                async with database.service_transaction() as connection:
                    await connection.execute(text("select cast(:value as int)"), {"value": secret})
            case "lib":
                try:
                    _check("\n" + secret)
                except ValueError:
                    logging.getLogger("a.library").exception("a library failed")
            case "slow":
                await asyncio.sleep(1)
        return probe.reply(text="done")  # type: ignore[no-any-return]

    async def follow(request: Any, context: Any) -> AsyncGenerator[Message, None]:
        yield probe.reply()
        await answer(request, context)

    issuer = Issuer()
    server = GrpcServer(
        address=settings.listen_address,
        mounts=[Mount(probe.add, probe.Probe(answer, follow), probe.service())],
        verifier=issuer.verifier("probe"),
    )
    try:
        await serve(server, settings)
    finally:
        await database.close()


if __name__ == "__main__":
    process.run("probe", ProbeSettings, main)
