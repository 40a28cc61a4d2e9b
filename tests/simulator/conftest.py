"""One simulator for the folder, reset around every test; an unconsumed scripted answer fails the test that left it."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from openai import AsyncOpenAI

from simulator.control import Control
from simulator.server import Running, running
from tests.simulator.wire import Wire


@pytest.fixture(scope="session")
async def simulator() -> AsyncIterator[Running]:
    async with running() as started:
        yield started


@pytest.fixture
async def control(simulator: Running) -> AsyncIterator[Control]:
    await simulator.control.reset()
    yield simulator.control
    await simulator.control.verify_consumed()
    await simulator.control.reset()


@pytest.fixture(scope="session")
async def client(simulator: Running) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="sk-test", base_url=simulator.base_url, max_retries=0, timeout=5) as openai:
        yield openai


@pytest.fixture(scope="session")
async def wire(simulator: Running) -> AsyncIterator[Wire]:
    headers = {"authorization": "Bearer sk-test"}
    async with httpx2.AsyncClient(base_url=simulator.base_url, headers=headers, timeout=5, trust_env=False) as http:
        yield Wire(http)
