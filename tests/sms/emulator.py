"""Twilio as somebody else emulates it: npm's `emulate`, stateful, and signing what it sends. Skipped by name without."""

import asyncio
import json
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.ports import free_ports
from tests.sms.twilio_stand_in import ACCOUNT, OWN_NUMBER, TOKEN

# The emulator wants Node 24, which npm has too.
PACKAGES = ("emulate@0.12.2", "node@24")
INSTALL_SECONDS, START_SECONDS = 90.0, 20.0


@contextmanager
def node_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="parley-emulate-") as folder:
        yield Path(folder)


async def install(folder: Path) -> None:
    """Installs the emulator into a folder; skips by name where there is no npm, or no registry to have it from."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine: the Twilio emulator cannot be installed")
    arguments = ("install", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES)
    installing = await asyncio.create_subprocess_exec(npm, *arguments, stdout=PIPE, stderr=PIPE)
    with suppress(TimeoutError):
        await asyncio.wait_for(installing.communicate(), INSTALL_SECONDS)
    if installing.returncode is None:
        installing.kill()
        await installing.wait()
    if installing.returncode != 0:
        pytest.skip(f"npm cannot install {' and '.join(PACKAGES)} here")


@dataclass(frozen=True)
class Emulator:
    """A running one."""

    url: str
    session: aiohttp.ClientSession

    async def simulate(self, what: str, **fields: str) -> dict[str, Any]:
        async with self.session.post(f"{self.url}/_twilio/simulate/{what}", data=fields) as answer:
            assert answer.status in {200, 201}, await answer.text()
            told: dict[str, Any] = await answer.json()
            return told

    async def messages(self, number: str) -> list[dict[str, Any]]:
        path = f"{self.url}/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
        async with self.session.get(path, params={"To": number}) as answer:
            found: list[dict[str, Any]] = (await answer.json())["messages"]
            return found


@asynccontextmanager
async def running_emulator(folder: Path, *, public_url: str) -> AsyncIterator[Emulator]:
    """The emulator, with our number and its webhooks at the public URL."""
    [port] = free_ports(1)
    number = {
        "phone_number": OWN_NUMBER,
        "sms_url": f"{public_url}/webhooks/twilio/sms",
        "voice_url": f"{public_url}/webhooks/twilio/voice-status",
        "status_callback": f"{public_url}/webhooks/twilio/voice-status",
    }
    seed = {"twilio": {"account": {"sid": ACCOUNT, "auth_token": TOKEN}, "phone_numbers": [number]}}
    config = folder / "seed.json"
    config.write_text(json.dumps(seed))
    modules = folder / "node_modules"
    process = await asyncio.create_subprocess_exec(
        str(modules / "node" / "bin" / "node"), str(modules / "emulate" / "dist" / "index.js"),
        "start", "--service", "twilio", "--port", str(port), "--seed", str(config),
        cwd=folder, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL,
    )  # fmt: skip
    auth = aiohttp.encode_basic_auth(ACCOUNT, TOKEN)
    async with aiohttp.ClientSession(headers={"Authorization": auth}) as session:
        try:
            emulator = Emulator(f"http://127.0.0.1:{port}", session)
            async with asyncio.timeout(START_SECONDS):
                while True:
                    with suppress(aiohttp.ClientConnectionError):
                        assert await emulator.messages("+14155550000") == []
                        break
                    await asyncio.sleep(0.1)
            yield emulator
        finally:
            process.terminate()
            await process.wait()
