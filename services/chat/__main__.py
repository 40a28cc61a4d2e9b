"""The chat service: settings -> parts -> servicers -> serve."""

import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from parley.chat.v1 import chat_pb2, chat_pb2_grpc, conversation_pb2, conversation_pb2_grpc
from services.chat.context import ContextAssembly
from services.chat.conversation_servicer import ConversationServicer
from services.chat.conversation_store import ConversationStore
from services.chat.generation_store import GenerationStore
from services.chat.generations import GenerationLimits, Generations
from services.chat.memory import MemoryClient
from services.chat.message_store import MessageStore
from services.chat.model import Model
from services.chat.recording import Recording
from services.chat.records import new_id
from services.chat.requests import RequestReading
from services.chat.servicer import ChatServicer
from services.chat.settings import ChatSettings
from services.chat.turn_store import TurnStore
from services.chat.turns import Turns
from services.runtime.channels import open_channel
from services.runtime.database import Database, serving_database
from services.runtime.identity import TokenVerifier
from services.runtime.jobs import Jobs
from services.runtime.membership import membership
from services.runtime.openai import open_client
from services.runtime.peers import ServiceTokens
from services.runtime.process import run
from services.runtime.server import GrpcServer, Mount, serve

NAME = "chat"
# Readers are told the end of their reply before their streams are cut.
_TELL_SECONDS = 1.0


@dataclass(frozen=True)
class Chat:
    """The parts of chat that its server needs."""

    mounts: Sequence[Mount]
    generations: Generations


async def main(settings: ChatSettings) -> None:
    """Serves until told to stop."""
    url = settings.database_url.get_secret_value()
    async with AsyncExitStack() as parts:
        database = await parts.enter_async_context(serving_database(url, pool_size=settings.database_pool_size))
        member = await parts.enter_async_context(membership(NAME, settings))
        chat = await open_chat(settings, parts, database=database, tokens=member.tokens)
        await serve(chat_server(settings, chat, member.verifier), settings)


def chat_server(settings: ChatSettings, chat: Chat, verifier: TokenVerifier) -> GrpcServer:
    """The server of chat. With its calls the generations drain."""

    async def drain_generations(drain_seconds: float) -> None:
        await chat.generations.drain(within_seconds=max(drain_seconds - _TELL_SECONDS, drain_seconds / 2))

    return GrpcServer(
        address=settings.listen_address,
        mounts=chat.mounts,
        verifier=verifier,
        slow_call_seconds=settings.slow_call_seconds,
        on_drain=drain_generations,
    )


async def open_chat(settings: ChatSettings, parts: AsyncExitStack, *, database: Database, tokens: ServiceTokens) -> Chat:
    """Chat on its database, with its jobs and leases kept, until `parts` closes."""
    jobs = Jobs(settings.database_url.get_secret_value())
    store = GenerationStore(
        database,
        jobs,
        owner=_process_name(),
        lease_seconds=settings.lease_seconds,
        concurrency=_share(settings, 0.3),
    )
    messages, memory = MessageStore(database), _open_memory(settings, parts, tokens)
    context = ContextAssembly(
        messages,
        memory,
        token_budget=settings.context_token_budget,
        timeout_seconds=settings.memory_timeout_seconds,
    )
    generations = await _open_generations(settings, parts, store, context)
    Recording(messages, memory).register(jobs)
    await parts.enter_async_context(jobs.working(concurrency=settings.job_concurrency))
    beginnings = TurnStore(database, store, concurrency=_share(settings, 0.4))
    turns = Turns(beginnings, store, generations, heartbeat_seconds=settings.heartbeat_seconds)
    reading = RequestReading(settings, instructions=settings.assistant_instructions)
    conversations = ConversationServicer(ConversationStore(database, jobs), generations)
    return Chat(mounts=_mounts(ChatServicer(turns, reading), conversations), generations=generations)


def _open_memory(settings: ChatSettings, parts: AsyncExitStack, tokens: ServiceTokens) -> MemoryClient:
    timeout_seconds = settings.peer_timeout_seconds
    channel = open_channel(settings.memory_target, audience="memory", tokens=tokens, timeout_seconds=timeout_seconds)
    parts.push_async_callback(channel.close)
    return MemoryClient(channel, timeout_seconds=timeout_seconds)


async def _open_generations(
    settings: ChatSettings, parts: AsyncExitStack, store: GenerationStore, context: ContextAssembly
) -> Generations:
    client = open_client(settings)
    parts.push_async_callback(client.close)
    limits = GenerationLimits(
        max_generations=settings.max_generations,
        generation_deadline_seconds=settings.generation_deadline_seconds,
        lease_seconds=settings.lease_seconds,
        lease_renew_seconds=settings.lease_renew_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        reader_retention_seconds=settings.reader_retention_seconds,
    )
    generations = Generations(store, context, Model(client, settings), limits)
    await parts.enter_async_context(generations.living())
    return generations


def _mounts(chat: ChatServicer, conversations: ConversationServicer) -> list[Mount]:
    return [
        Mount(
            chat_pb2_grpc.add_ChatServiceServicer_to_server,
            chat,
            chat_pb2.DESCRIPTOR.services_by_name["ChatService"],
        ),
        Mount(
            conversation_pb2_grpc.add_ConversationServiceServicer_to_server,
            conversations,
            conversation_pb2.DESCRIPTOR.services_by_name["ConversationService"],
        ),
    ]


def _share(settings: ChatSettings, share: float) -> int:
    """A part of the connections: what begins, what ends, and all else must not starve each other."""
    return max(1, int(settings.database_pool_size * share))


def _process_name() -> str:
    """Names this start of this process: what another start left behind is not its own."""
    return f"{socket.gethostname()}:{os.getpid()}:{new_id()}"


if __name__ == "__main__":
    run(NAME, ChatSettings, main)
