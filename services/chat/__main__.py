"""The chat service: settings -> parts -> servicers -> serve."""

import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from parley.chat.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    conversation_pb2,
    conversation_pb2_grpc,
    mcp_server_pb2,
    mcp_server_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
)
from services.chat.admin_servicer import AdminServicer
from services.chat.context import ContextAssembly, ContextLimits
from services.chat.conversation.said_store import SaidStore
from services.chat.conversation.search_store import SearchStore
from services.chat.conversation.session_store import SessionStore
from services.chat.conversation.store import ConversationStore
from services.chat.conversation.title_store import TitleStore
from services.chat.conversation.titles import Titles
from services.chat.conversation_servicer import ConversationServicer
from services.chat.generation.forgetting import Forgetting
from services.chat.generation.generations import Generations
from services.chat.generation.leases import Leases
from services.chat.generation.parts import GenerationParts, open_generations
from services.chat.generation.writing import Writing
from services.chat.generation_store import GenerationStore
from services.chat.log.event_feed import EventFeed
from services.chat.log.event_log import EventLog
from services.chat.mcp.addresses import Addresses
from services.chat.mcp.parts import Mcp, open_mcp
from services.chat.mcp.store import McpServerStore
from services.chat.mcp_servicer import McpServerServicer
from services.chat.memory.client import MemoryClient
from services.chat.memory.recorder import Recorder
from services.chat.memory.recording import Recording
from services.chat.memory_tools import MemoryTools
from services.chat.message_store import MessageStore
from services.chat.model import Model, open_model
from services.chat.preferences import PreferenceClient
from services.chat.purge.purge import open_purge
from services.chat.record_store import RecordStore
from services.chat.request.option_secrets import stored_options
from services.chat.request.reading import RequestReading
from services.chat.servicer import ChatServicer
from services.chat.settings import ChatSettings
from services.chat.sms.client import SmsClient
from services.chat.sms.tools import SmsTools
from services.chat.tasks.feed import TaskFeed
from services.chat.tasks.parts import TaskParts, open_tasks
from services.chat.tasks.servicer import TaskServicer
from services.chat.tools.answering import Answering, ToolLimits
from services.chat.tools.call_store import ToolCallStore
from services.chat.tools.running import ToolRunning
from services.chat.tools.tool import ToolSource
from services.chat.turn_store import TurnStore
from services.chat.unrecorded import Unrecorded
from services.chat.usage.budget import Budget
from services.chat.usage.store import UsageStore
from services.runtime.channels import open_channel
from services.runtime.database import Database, serving_database
from services.runtime.duties import beside
from services.runtime.identity import TokenVerifier
from services.runtime.ids import new_id
from services.runtime.jobs import Jobs
from services.runtime.membership import membership
from services.runtime.peers import ServiceTokens
from services.runtime.process import run
from services.runtime.sealing import Seal
from services.runtime.server import GrpcServer, Mount, serve
from services.runtime.tls import Tls

NAME = "chat"
# Readers are told the end of their reply before their streams are cut.
_TELL_SECONDS = 1.0


@dataclass(frozen=True)
class Chat:
    """The parts of chat that its server needs."""

    mounts: Sequence[Mount]
    generations: Generations
    event_feed: EventFeed
    task_feed: TaskFeed
    mcp: Mcp


async def main(settings: ChatSettings) -> None:
    """Serves until told to stop."""
    url = settings.database_url.get_secret_value()
    async with AsyncExitStack() as parts:
        database = await parts.enter_async_context(serving_database(url, pool_size=settings.database_pool_size))
        member = await parts.enter_async_context(membership(NAME, settings))
        chat = await open_chat(settings, parts, database=database, tokens=member.tokens)
        # Before gRPC says that the process serves, which is what everybody goes by.
        await parts.enter_async_context(chat.mcp.serving(member.verifier, settings))
        await serve(chat_server(settings, chat, member.verifier), settings)


def chat_server(settings: ChatSettings, chat: Chat, verifier: TokenVerifier) -> GrpcServer:
    """The server of chat. With its calls the generations drain."""

    async def drain_generations(drain_seconds: float) -> None:
        chat.task_feed.close()
        chat.mcp.drain(within_seconds=drain_seconds)
        await chat.generations.drain(within_seconds=max(drain_seconds - _TELL_SECONDS, drain_seconds / 2))
        chat.event_feed.close()

    return GrpcServer(
        address=settings.listen_address,
        mounts=chat.mounts,
        verifier=verifier,
        slow_call_seconds=settings.slow_call_seconds,
        on_drain=drain_generations,
    )


async def open_chat(settings: ChatSettings, parts: AsyncExitStack, *, database: Database, tokens: ServiceTokens) -> Chat:
    """Chat on its database, with its jobs and leases kept, until `parts` closes."""
    jobs, unrecorded = Jobs(settings.database_url.get_secret_value()), Unrecorded()
    model = await parts.enter_async_context(open_model(settings))
    usage = UsageStore(database, concurrency=_share(settings, 0.2))
    budget = Budget(usage, tokens_per_day=settings.token_budget_per_day)
    memory = _open_memory(settings, parts, tokens)
    tools = await _open_tools(settings, parts, database)
    # What every turn has comes first, for the provider's cache; and no stranger's server takes a name of ours.
    own: list[ToolSource] = [MemoryTools(memory)] if settings.memory_tools_enabled else []
    if settings.sms_target:
        own.append(_open_sms(settings, parts, tokens))
    sources = [*own, tools.tasks.tools, tools.mcp.tools]
    answering = _answering(settings, database, model, budget, sources)
    context = _context(settings, database, memory)
    writing = Writing(context, answering, model, read_options=partial(stored_options, tools.seal))
    # Before anything that defers jobs.
    _register_jobs(settings, jobs, database, memory=memory, model=model, budget=budget)
    replies = await _open_replies(settings, parts, database, writing, jobs=jobs, unrecorded=unrecorded)
    recorder = Recorder(RecordStore(database), memory, unrecorded)
    await parts.enter_async_context(beside(recorder.follow(), recorder.sweep()))
    await parts.enter_async_context(jobs.working(concurrency=settings.job_concurrency))
    preferences = _open_preferences(settings, parts, tokens)
    reading = RequestReading(settings, preferences=preferences, addresses=tools.addresses, seal=tools.seal)
    purge = await open_purge(parts, database, jobs, replies)
    return Chat(
        mounts=_mounts(
            ChatServicer(replies.turns, reading, budget, purge),
            ConversationServicer(
                ConversationStore(database, jobs), SearchStore(database), SaidStore(database), replies.generations
            ),
            AdminServicer(SessionStore(database)),
            tools.tasks.servicer,
            McpServerServicer(tools.servers, tools.addresses),
        ),
        generations=replies.generations,
        event_feed=replies.feed,
        task_feed=tools.tasks.feed,
        mcp=tools.mcp,
    )


@dataclass(frozen=True)
class _Tools:
    """What the model may use, and what guards it."""

    tasks: TaskParts
    mcp: Mcp
    servers: McpServerStore
    addresses: Addresses
    seal: Seal


async def _open_tools(settings: ChatSettings, parts: AsyncExitStack, database: Database) -> _Tools:
    seal = Seal.from_settings(settings)
    addresses = Addresses(
        allow_private=settings.mcp_allow_private_addresses, timeout_seconds=settings.mcp_connect_timeout_seconds
    )
    parts.callback(addresses.close)
    tasks = await open_tasks(settings, parts, database=database)
    servers = McpServerStore(database, seal)
    mcp = open_mcp(settings, parts, store=servers, addresses=addresses, verbs=tasks.actions.verbs)
    return _Tools(tasks, mcp, servers, addresses, seal)


async def _open_replies(  # noqa: PLR0913 - parts of its own
    settings: ChatSettings,
    parts: AsyncExitStack,
    database: Database,
    writing: Writing,
    *,
    jobs: Jobs,
    unrecorded: Unrecorded,
) -> GenerationParts:
    store = GenerationStore(
        database,
        jobs,
        unrecorded,
        title_jobs=jobs if settings.titles_enabled else None,
        owner=_process_name(),
        lease_seconds=settings.lease_seconds,
        concurrency=_share(settings, 0.3),
    )

    def make_turn_store(leases: Leases, log: EventLog) -> TurnStore:
        return TurnStore(database, store, jobs, rescue=leases.rescue, open_log=log.open, concurrency=_share(settings, 0.4))

    return await open_generations(settings, parts, database, store, writing, make_turn_store=make_turn_store)


def _context(settings: ChatSettings, database: Database, memory: MemoryClient) -> ContextAssembly:
    return ContextAssembly(
        MessageStore(database),
        memory,
        ContextLimits(
            token_budget=settings.context_token_budget,
            memory_token_budget=settings.memory_token_budget,
            timeout_seconds=settings.memory_timeout_seconds,
        ),
    )


def _register_jobs(  # noqa: PLR0913 - one line a job
    settings: ChatSettings, jobs: Jobs, database: Database, *, memory: MemoryClient, model: Model, budget: Budget
) -> None:
    Recording(MessageStore(database), memory).register(jobs)
    Forgetting(model).register(jobs)
    title_model = settings.title_model or settings.openai_model
    Titles(TitleStore(database), model, budget, model_name=title_model).register(jobs)


def _open_memory(settings: ChatSettings, parts: AsyncExitStack, tokens: ServiceTokens) -> MemoryClient:
    timeout_seconds = settings.peer_timeout_seconds
    channel = open_channel(
        settings.memory_target,
        audience="memory",
        tokens=tokens,
        timeout_seconds=timeout_seconds,
        tls=Tls.from_settings(settings),
    )
    parts.push_async_callback(channel.close)
    return MemoryClient(channel, timeout_seconds=timeout_seconds)


def _open_preferences(settings: ChatSettings, parts: AsyncExitStack, tokens: ServiceTokens) -> PreferenceClient:
    timeout_seconds = settings.peer_timeout_seconds
    channel = open_channel(
        settings.auth_target,
        audience="auth",
        tokens=tokens,
        timeout_seconds=timeout_seconds,
        tls=Tls.from_settings(settings),
    )
    parts.push_async_callback(channel.close)
    preferences = PreferenceClient(channel)
    parts.push_async_callback(preferences.close)
    return preferences


def _open_sms(settings: ChatSettings, parts: AsyncExitStack, tokens: ServiceTokens) -> SmsTools:
    timeout_seconds = settings.peer_timeout_seconds
    channel = open_channel(
        settings.sms_target,
        audience="sms",
        tokens=tokens,
        timeout_seconds=timeout_seconds,
        tls=Tls.from_settings(settings),
    )
    parts.push_async_callback(channel.close)
    return SmsTools(SmsClient(channel, timeout_seconds=timeout_seconds))


def _answering(
    settings: ChatSettings, database: Database, model: Model, budget: Budget, sources: Sequence[ToolSource]
) -> Answering:
    store = ToolCallStore(database, concurrency=_share(settings, 0.2))
    return Answering(
        model,
        store,
        ToolRunning(store, timeout_seconds=settings.tool_timeout_seconds),
        budget,
        sources=sources,
        limits=ToolLimits(max_rounds=settings.max_tool_rounds, max_calls=settings.max_tool_calls),
    )


def _mounts(
    chat: ChatServicer,
    conversations: ConversationServicer,
    admin: AdminServicer,
    tasks: TaskServicer,
    mcp: McpServerServicer,
) -> list[Mount]:
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
        Mount(
            admin_pb2_grpc.add_AdminServiceServicer_to_server, admin, admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
        ),
        Mount(
            mcp_server_pb2_grpc.add_McpServerServiceServicer_to_server,
            mcp,
            mcp_server_pb2.DESCRIPTOR.services_by_name["McpServerService"],
        ),
        Mount(task_pb2_grpc.add_TaskServiceServicer_to_server, tasks, task_pb2.DESCRIPTOR.services_by_name["TaskService"]),
    ]


def _share(settings: ChatSettings, share: float) -> int:
    """A part of the connections: what begins, what ends, and all else must not starve each other."""
    return max(1, int(settings.database_pool_size * share))


def _process_name() -> str:
    """Names this start of this process: what another start left behind is not its own."""
    return f"{socket.gethostname()}:{os.getpid()}:{new_id()}"


if __name__ == "__main__":
    run(NAME, ChatSettings, main)
