"""The memory service: settings -> parts -> servicer -> serve."""

from __future__ import annotations

from contextlib import AsyncExitStack

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.memory.conversation_memory import ContextLimits, ConversationMemory
from services.memory.evictions import EvictionSweep
from services.memory.servicer import MemoryServicer
from services.memory.settings import MemorySettings
from services.memory.store import TurnStore
from services.memory.working_set import WorkingSet, WorkingSetLimits, open_redis
from services.runtime.channels import open_channel
from services.runtime.database import open_database
from services.runtime.identity import TokenVerifier
from services.runtime.peers import EndedSessionsFeed, RemoteKeys, ServiceTokens, read_credential
from services.runtime.process import run
from services.runtime.server import GrpcServer, Mount, serve

NAME = "memory"


async def main(settings: MemorySettings) -> None:
    """Serves until told to stop."""
    async with AsyncExitStack() as parts:
        memory = await open_memory(settings, parts)
        verifier = await _verifier(settings, parts)
        await parts.enter_async_context(EvictionSweep(memory, interval_seconds=settings.eviction_sweep_seconds))
        server = GrpcServer(
            address=settings.listen_address,
            mounts=[mount(memory)],
            verifier=verifier,
            slow_call_seconds=settings.slow_call_seconds,
        )
        await serve(server, settings)


def mount(memory: ConversationMemory) -> Mount:
    """MemoryService, to be served."""
    service = memory_pb2.DESCRIPTOR.services_by_name["MemoryService"]
    return Mount(memory_pb2_grpc.add_MemoryServiceServicer_to_server, MemoryServicer(memory), service)


async def open_memory(settings: MemorySettings, parts: AsyncExitStack) -> ConversationMemory:
    """Memory on its database and Redis, which close with `parts`. Refuses a role that could step around isolation."""
    database = open_database(settings.database_url.get_secret_value(), pool_size=settings.database_pool_size)
    parts.push_async_callback(database.close)
    await database.check_role()
    redis = open_redis(
        settings.redis_url.get_secret_value(),
        connections=settings.redis_connections,
        timeout_seconds=settings.redis_timeout_seconds,
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


async def _verifier(settings: MemorySettings, parts: AsyncExitStack) -> TokenVerifier:
    auth = open_channel(settings.auth_target, audience="auth", tokens=None, timeout_seconds=settings.peer_timeout_seconds)
    parts.push_async_callback(auth.close)
    tokens = ServiceTokens(auth, workload=NAME, credential=read_credential(settings.workload_credential_file))
    ended = await parts.enter_async_context(
        EndedSessionsFeed(auth, tokens, grace_seconds=settings.ended_sessions_grace_seconds)
    )
    return TokenVerifier(audience=NAME, keys=RemoteKeys(auth), ended=ended)


if __name__ == "__main__":
    run(NAME, MemorySettings, main)
