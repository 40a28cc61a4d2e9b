"""The memory service: settings -> parts -> servicer -> serve."""

from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.memory.conversation_memory import ContextLimits, ConversationMemory
from services.memory.evictions import sweep_evictions
from services.memory.servicer import MemoryServicer
from services.memory.settings import MemorySettings
from services.memory.store import TurnStore
from services.memory.upkeep.runner import Upkeep
from services.memory.upkeep.store import UpkeepStore
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
        await parts.enter_async_context(beside(*memory.duties))
        server = GrpcServer(
            address=settings.listen_address,
            mounts=[memory.mount],
            verifier=member.verifier,
            slow_call_seconds=settings.slow_call_seconds,
        )
        await serve(server, settings)


@dataclass(frozen=True)
class Memory:
    """The parts of memory that its process needs; the duties run beside serving."""

    mount: Mount
    conversations: ConversationMemory
    upkeep: Upkeep
    duties: Sequence[Coroutine[None, None, None]]


async def open_memory(settings: MemorySettings, parts: AsyncExitStack) -> Memory:
    """Memory on its database and Redis, which close with `parts`. Refuses a role that could step around isolation."""
    url = settings.database_url.get_secret_value()
    database = await parts.enter_async_context(serving_database(url, pool_size=settings.database_pool_size))
    conversations = ConversationMemory(TurnStore(database), _open_working_set(settings, parts), _context_limits(settings))
    upkeep = Upkeep(UpkeepStore(database), [])
    servicer = MemoryServicer(memory=conversations)
    return Memory(
        mount=Mount(
            memory_pb2_grpc.add_MemoryServiceServicer_to_server,
            servicer,
            memory_pb2.DESCRIPTOR.services_by_name["MemoryService"],
        ),
        conversations=conversations,
        upkeep=upkeep,
        duties=[sweep_evictions(conversations, interval_seconds=settings.eviction_sweep_seconds), upkeep.run()],
    )


def _open_working_set(settings: MemorySettings, parts: AsyncExitStack) -> WorkingSet:
    redis = open_redis(
        settings.redis_url.get_secret_value(),
        connections=settings.redis_connections,
        wait_seconds=settings.redis_timeout_seconds,
    )
    parts.push_async_callback(redis.aclose)
    return WorkingSet(
        redis,
        WorkingSetLimits(
            ttl_seconds=settings.working_set_ttl_seconds,
            most_bytes=settings.working_set_bytes,
            timeout_seconds=settings.redis_timeout_seconds,
            retry_seconds=settings.redis_retry_seconds,
        ),
    )


def _context_limits(settings: MemorySettings) -> ContextLimits:
    return ContextLimits(
        default_tokens=settings.default_context_tokens,
        most_tokens=settings.greatest_context_tokens,
        most_messages=settings.working_set_messages,
    )


if __name__ == "__main__":
    run(NAME, MemorySettings, main)
