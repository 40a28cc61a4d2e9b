"""Sms as a real process, on stand-ins for auth, chat and Twilio: what the tests of this folder kill."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psycopg

from services.runtime.jobs import PUT_BACK
from suite.databases import ServiceDatabase
from tests.conftest import truncate
from tests.faults.stand import ROOT, START_SECONDS
from tests.issuer import Issuer
from tests.ports import free_port
from tests.sms.peers import CREDENTIAL, ChatStandIn, PeopleStandIn, running_auth, running_chat
from tests.sms.service import PUBLIC_URL, SmsProcess
from tests.sms.twilio_stand_in import ACCOUNT, OWN_NUMBER, TOKEN, TwilioStandIn, running_twilio


@dataclass
class SmsStand:
    """One sms process and what it stands on."""

    issuer: Issuer
    database: ServiceDatabase
    people: PeopleStandIn
    chat: ChatStandIn
    twilio: TwilioStandIn
    environment: dict[str, str]
    process: Process | None = None
    sms: SmsProcess | None = None

    async def start(self) -> SmsProcess:
        port = free_port()
        addresses = {"LISTEN_ADDRESS": f"127.0.0.1:{port}", "METRICS_ADDRESS": f"127.0.0.1:{free_port()}"}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.sms", cwd=ROOT, env={**self.environment, **addresses}
        )
        channel = grpc.aio.insecure_channel(f"ipv4:127.0.0.1:{port}")
        async with asyncio.timeout(START_SECONDS):
            await channel.channel_ready()
        self.sms = SmsProcess(self.issuer, channel, None, self.database)
        return self.sms

    async def kill_process(self) -> None:
        """Dies without a word."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()

    async def kill(self) -> None:
        """Dies, and what time would bring comes at once: its jobs are put back, its claims are old."""
        await self.kill_process()
        if self.sms is not None:
            await self.sms.channel.close()
        async with self.owner() as connection:
            await connection.execute("update procrastinate_workers set last_heartbeat = now() - interval '1 hour'")
            await connection.execute("update messages set claim_time = now() - interval '1 minute'")
            await connection.execute(PUT_BACK.encode(), {"seconds": 30})

    @asynccontextmanager
    async def owner(self) -> AsyncIterator["psycopg.AsyncConnection[tuple[object, ...]]"]:
        url = self.database.migration_url
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute("select set_config('parley.scope', 'service', false)")
            yield connection

    async def waiting_for_a_lock(self) -> None:
        """Until the process waits for a lock that the test holds."""
        # What pg_stat_activity tells is not for this role.
        statement = "select from pg_locks where not granted"
        end = time.monotonic() + 15
        async with self.owner() as connection:
            while (await (await connection.execute(statement)).fetchall()) == []:
                assert time.monotonic() < end, "nobody waits"
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()
        if self.sms is not None:
            await self.sms.channel.close()


@asynccontextmanager
async def sms_stand(issuer: Issuer, database: ServiceDatabase, folder: Path) -> AsyncIterator[SmsStand]:
    """The stand; everything ends with the block."""
    await truncate(database)
    credential = folder / "credential"
    credential.write_text(CREDENTIAL)
    people, chat, twilio = PeopleStandIn(), ChatStandIn(), TwilioStandIn()
    async with AsyncExitStack() as parts:
        await parts.enter_async_context(running_twilio(twilio))
        environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database.url,
            "AUTH_TARGET": await parts.enter_async_context(running_auth(issuer, people)),
            "CHAT_TARGET": await parts.enter_async_context(running_chat(issuer, chat)),
            "WORKLOAD_CREDENTIAL_FILE": str(credential),
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
            "PUBLIC_URL": PUBLIC_URL,
            "SMS_PROVIDER": "twilio",
            "SMS_NUMBER": OWN_NUMBER,
            "TWILIO_ACCOUNT_SID": ACCOUNT,
            "TWILIO_AUTH_TOKEN": TOKEN,
            "TWILIO_BASE_URL": twilio.url,
            "SEND_TIMEOUT_SECONDS": "5",
            "RECONCILE_SECONDS": "0.3",
            "UNKNOWN_AFTER_SECONDS": "2",
            "DRAIN_WAIT_SECONDS": "0",
            "LOG_LEVEL": "WARNING",
        }
        stand = SmsStand(issuer, database, people, chat, twilio, environment)
        parts.push_async_callback(stand.stop)
        yield stand
