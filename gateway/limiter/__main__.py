"""The limiter: `python -m gateway.limiter`; settings -> counts -> servicer -> serve."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop

from gateway.limiter.own_count import OwnCount
from gateway.limiter.server import LimitServer, serve
from gateway.limiter.servicer import LimitServicer
from gateway.limiter.settings import LimiterSettings
from gateway.limiter.shared_count import SharedCount
from services.runtime import log
from services.runtime.duties import beside
from services.runtime.redis import open_redis
from services.runtime.settings import read_settings
from services.runtime.tls import Tls


@asynccontextmanager
async def assembled(settings: LimiterSettings) -> AsyncIterator[LimitServer]:
    """The server, ready to start, with the count running."""
    redis = open_redis(settings.redis_url.get_secret_value(), connections=1, wait_seconds=settings.redis_timeout_seconds)
    shared = SharedCount(redis, timeout_seconds=settings.redis_timeout_seconds, retry_seconds=settings.redis_retry_seconds)
    try:
        async with beside(shared.run()):
            servicer = LimitServicer(settings.windows(), shared, OwnCount())
            yield LimitServer(servicer, address=settings.listen_address, tls=Tls.from_settings(settings))
    finally:
        await redis.aclose()


async def main(settings: LimiterSettings) -> None:
    """Serves until told to stop."""
    async with assembled(settings) as server:
        await serve(server, metrics_address=settings.metrics_address)


if __name__ == "__main__":
    _settings = read_settings(LimiterSettings)
    log.configure("limiter", level=_settings.log_level, log_format=_settings.log_format)
    try:
        uvloop.run(main(_settings))
    except OSError as error:
        sys.exit(f"the limiter cannot serve: {error}")
