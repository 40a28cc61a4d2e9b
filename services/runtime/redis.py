"""The way to Redis: clients that never repeat a call by themselves, since who calls knows whether that is worth it."""

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def open_redis(url: str, *, connections: int, wait_seconds: float) -> Redis:
    """A client with a fixed pool, for whose connections a call waits so long; connects on first use.

    One connection: without a pool and what it costs, for a single caller.
    """
    retry = Retry(NoBackoff(), 0)
    if connections == 1:
        return Redis.from_url(url, single_connection_client=True, retry=retry, protocol=2)
    pool = BlockingConnectionPool.from_url(url, max_connections=connections, timeout=wait_seconds, retry=retry, protocol=2)
    return Redis.from_pool(pool)
