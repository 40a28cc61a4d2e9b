"""The memory service: settings -> parts -> servicer -> serve."""

from contextlib import AsyncExitStack

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.memory.conversation_memory import ContextLimits, ConversationMemory
from services.memory.evictions import sweep_evictions
from services.memory.servicer import MemoryServicer
from services.memory.settings import MemorySettings
from services.memory.store import TurnStore
from services.memory.working_set import WorkingSet, WorkingSetLimits
from services.runtime.database import serving_database
from services.runtime.duties import beside
from services.runtime.membership import membership
from services.runtime.process import run
from services.runtime.redis import open_redis
from services.runtime.server import GrpcServer, Mount, serve

NAME = "memory"


async def main(settings: MemorySettings) -> None:
    """Serves until told to stop."""
    async with AsyncExitStack() as parts:
        memory = await open_memory(settings, parts)
        member = await parts.enter_async_context(membership(NAME, settings))
        await parts.enter_async_context(beside(sweep_evictions(memory, interval_seconds=settings.eviction_sweep_seconds)))
        server = GrpcServer(
            address=settings.listen_address,
            mounts=[mount(memory)],
            verifier=member.verifier,
            slow_call_seconds=settings.slow_call_seconds,
        )
        await serve(server, settings)


def mount(memory: ConversationMemory) -> Mount:
    """MemoryService, to be served."""
    service = memory_pb2.DESCRIPTOR.services_by_name["MemoryService"]
    return Mount(memory_pb2_grpc.add_MemoryServiceServicer_to_server, MemoryServicer(memory), service)


async def open_memory(settings: MemorySettings, parts: AsyncExitStack) -> ConversationMemory:
    """Memory on its database and Redis, which close with `parts`. Refuses a role that could step around isolation."""
    url = settings.database_url.get_secret_value()
    database = await parts.enter_async_context(serving_database(url, pool_size=settings.database_pool_size))
    redis = open_redis(
        settings.redis_url.get_secret_value(),
        connections=settings.redis_connections,
        wait_seconds=settings.redis_timeout_seconds,
    )
    parts.push_async_callback(redis.aclose)
    working_set = WorkingSet(
        redis,
        WorkingSetLimits(
            ttl_seconds=settings.working_set_ttl_seconds,
            most_bytes=settings.working_set_bytes,
            timeout_seconds=settings.redis_timeout_seconds,
            retry_seconds=settings.redis_retry_seconds,
        ),
    )
    limits = ContextLimits(
        default_tokens=settings.default_context_tokens,
        most_tokens=settings.greatest_context_tokens,
        most_messages=settings.working_set_messages,
    )
    return ConversationMemory(TurnStore(database), working_set, limits)


if __name__ == "__main__":
    run(NAME, MemorySettings, main)
