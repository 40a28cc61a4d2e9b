"""A served limiter, asked as Envoy asks it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from gateway.limiter.__main__ import assembled
from gateway.limiter.settings import LimiterSettings
from parley.edge import rate_limit_pb2, rate_limit_pb2_grpc

Response = rate_limit_pb2.RateLimitResponse


class RunningLimiter:
    """A limiter on a port of its own, and a client of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = rate_limit_pb2_grpc.RateLimitServiceStub(self.channel)

    async def ask(self, limit: str, *, user: str = "", address: str = "") -> Response:
        request = rate_limit_pb2.RateLimitRequest(domain="parley")
        descriptor = request.descriptors.add()
        descriptor.entries.add(key="limit", value=limit)
        if user:
            descriptor.entries.add(key="user", value=user)
        if address:
            descriptor.entries.add(key="masked_remote_address", value=address)
        return await self.stub.ShouldRateLimit(request, timeout=10)

    async def allows(self, limit: str, **whose: str) -> bool:
        return (await self.ask(limit, **whose)).overall_code == Response.OK


def headers_of(answer: Response) -> dict[str, str]:
    return {header.key: header.value for header in answer.response_headers_to_add}


@asynccontextmanager
async def running_limiter(**settings: Any) -> AsyncIterator[RunningLimiter]:
    """Serves until the block ends, in a task of its own: fixtures begin and end in different ones."""
    stop = asyncio.Event()
    served: asyncio.Future[RunningLimiter] = asyncio.get_running_loop().create_future()
    values = {"listen_address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0", **settings}

    async def serve() -> None:
        async with assembled(LimiterSettings(**values)) as server:
            limiter = RunningLimiter(await server.start())
            served.set_result(limiter)
            await stop.wait()
            await limiter.channel.close()
            await server.stop()

    task = asyncio.create_task(serve())
    await asyncio.wait((task, served), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield await served
    finally:
        stop.set()
        await task
