"""The memory service: settings -> parts -> servicer -> serve."""

from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from openai import AsyncOpenAI

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.memory.assembly import Assembly, AssemblyLimits
from services.memory.consequences import Consequences
from services.memory.conversation_memory import ContextLimits, ConversationMemory
from services.memory.embedding.embedder import Embedder, EmbeddingLimits
from services.memory.embedding.store import EmbeddingStore
from services.memory.embedding.upkeep import Embedding
from services.memory.erasure.purge import Purge, PurgeStore
from services.memory.erasure.store import ErasureStore
from services.memory.evictions import sweep_evictions
from services.memory.extraction.extraction import Extraction, ExtractionLimits
from services.memory.extraction.store import UnreadStore
from services.memory.facts.expiry import expiry_chore, sweep_expired
from services.memory.facts.held import FactLimits
from services.memory.facts.store import FactStore
from services.memory.model_calls import CountedModel
from services.memory.postings.chore import index_chore
from services.memory.postings.store import PostingStore
from services.memory.recall.fusion import Weights
from services.memory.recall.search import Recall, RecallLimits
from services.memory.recall.store import RecallStore
from services.memory.servicer import MemoryServicer
from services.memory.settings import MemorySettings
from services.memory.store import TurnStore
from services.memory.summaries.limits import SummaryLimits
from services.memory.summaries.store import SummaryStore
from services.memory.summaries.writer import SummaryWriter
from services.memory.transfer.export_store import ExportLimits, ExportStore
from services.memory.transfer.import_store import ImportLimits, ImportStore
from services.memory.upkeep.runner import Chore, Pauses, Upkeep
from services.memory.upkeep.store import Task, UpkeepStore
from services.memory.working_set import WorkingSet, WorkingSetLimits
from services.runtime.database import Database, serving_database
from services.runtime.duties import beside
from services.runtime.membership import membership
from services.runtime.openai import open_client
from services.runtime.process import run
from services.runtime.purging import Fence, take_down
from services.runtime.redis import open_redis
from services.runtime.server import GrpcServer, Mount, serve
from services.runtime.small_jobs import SmallJobs

NAME = "memory"
# What a piece of upkeep needs beside the model.
_DATABASE_SECONDS = 20


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
    client = open_client(settings)
    parts.push_async_callback(client.close)
    embedder = _open_embedder(settings, client)
    delays: dict[Task, float] = {"embed": 0, "extract": settings.extraction_delay_seconds}
    heads = max(1, settings.database_pool_size // 4)
    turns = TurnStore(database, Consequences(delays, _summary_limits(settings)), concurrency=heads)
    working_set, fence = _open_working_set(settings, parts), Fence(database)
    conversations = ConversationMemory(turns, working_set, _context_limits(settings))
    summaries = SummaryStore(database, _summary_limits(settings))
    facts = _open_facts(settings, database)
    jobs = SmallJobs(client, settings)
    embedding = Embedding(EmbeddingStore(database), UpkeepStore(database), embedder)
    chores = [
        *embedding.chores(call_seconds=settings.openai_timeout_seconds),
        expiry_chore(facts),
        index_chore(PostingStore(database)),
        *_extraction_chores(settings, database, facts, jobs),
        *_summary_chores(settings, summaries, jobs),
    ]
    upkeep = _open_upkeep(settings, database, chores)
    recall = _open_recall(settings, database, embedder)
    servicer = MemoryServicer(
        assembly=_open_assembly(settings, conversations, recall, summaries),
        memory=conversations,
        erasure=ErasureStore(database),
        exports=ExportStore(database, ExportLimits(page_seconds=settings.export_stall_seconds)),
        facts=facts,
        imports=_open_imports(settings, database),
        purge=Purge(fence, PurgeStore(database), working_set),
        recall=recall,
        summaries=summaries,
    )
    evictions = sweep_evictions(conversations, interval_seconds=settings.eviction_sweep_seconds)
    expiry = sweep_expired(facts, interval_seconds=settings.expiry_sweep_seconds)
    duties = [evictions, expiry, embedding.renew(), take_down(fence), upkeep.run()]
    return Memory(_mount(servicer), conversations, upkeep, duties)


def _mount(servicer: MemoryServicer) -> Mount:
    service = memory_pb2.DESCRIPTOR.services_by_name["MemoryService"]
    return Mount(memory_pb2_grpc.add_MemoryServiceServicer_to_server, servicer, service)


def _open_upkeep(settings: MemorySettings, database: Database, chores: Sequence[Chore]) -> Upkeep:
    pauses = Pauses(settings.upkeep_retry_seconds, settings.upkeep_longest_pause_seconds)
    return Upkeep(UpkeepStore(database), chores, pauses)


def _open_facts(settings: MemorySettings, database: Database) -> FactStore:
    limits = FactLimits(facts=settings.facts_limit, versions=settings.fact_versions_limit)
    return FactStore(database, limits, portray_delay_seconds=settings.portrait_delay_seconds)


def _open_imports(settings: MemorySettings, database: Database) -> ImportStore:
    limits = ImportLimits(
        messages=settings.imported_messages_limit,
        facts=settings.facts_limit,
        versions=settings.fact_versions_limit,
    )
    return ImportStore(database, limits, portray_delay_seconds=settings.portrait_delay_seconds)


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


def _open_embedder(settings: MemorySettings, client: AsyncOpenAI) -> Embedder:
    return Embedder(
        client if settings.embeddings_enabled else None,
        model=settings.embedding_model,
        limits=EmbeddingLimits(
            dimensions=settings.embedding_dimensions,
            input_tokens=settings.embedding_input_tokens,
            batch=settings.embedding_batch,
            timeout_seconds=settings.openai_timeout_seconds,
            query_timeout_seconds=settings.embedding_timeout_seconds,
        ),
    )


def _open_recall(settings: MemorySettings, database: Database, embedder: Embedder) -> Recall:
    weights = Weights(
        words=settings.recall_words_weight,
        meaning=settings.recall_meaning_weight,
        previous=settings.recall_previous_weight,
        facts=settings.recall_facts_weight,
        neighbour=settings.recall_neighbour_weight,
        time=settings.recall_time_weight,
        rank_constant=settings.recall_rank_constant,
    )
    # Each takes two connections at once; half of the pool is for everybody else.
    at_once = max(1, settings.database_pool_size // 4)
    return Recall(RecallStore(database), embedder, RecallLimits(settings.recall_candidates, weights, at_once))


def _open_assembly(
    settings: MemorySettings, conversations: ConversationMemory, recall: Recall, summaries: SummaryStore
) -> Assembly:
    limits = AssemblyLimits(
        default_memory_tokens=settings.default_memory_tokens,
        most_memory_tokens=settings.greatest_memory_tokens,
        recall_seconds=settings.recall_timeout_seconds,
        summaries_seconds=settings.recall_timeout_seconds,
    )
    return Assembly(conversations, recall, summaries if settings.summaries_enabled else None, limits)


def _summary_limits(settings: MemorySettings) -> SummaryLimits:
    return SummaryLimits(
        after_messages=settings.summary_after_messages,
        every_messages=settings.summary_every_messages,
        delay_seconds=settings.summary_delay_seconds,
        portrait_delay_seconds=settings.portrait_delay_seconds,
        most_input_tokens=settings.summary_input_tokens,
        most_characters=settings.summary_characters,
    )


def _extraction_chores(settings: MemorySettings, database: Database, facts: FactStore, jobs: SmallJobs) -> Sequence[Chore]:
    if not settings.extraction_enabled:
        return []
    model = CountedModel(
        jobs,
        task="extract",
        model=settings.extraction_model or settings.openai_model,
        most_output_tokens=settings.extraction_output_tokens,
    )
    limits = ExtractionLimits(
        messages=settings.extraction_messages,
        tokens=settings.extraction_tokens,
        facts=settings.extraction_facts,
        timeout_seconds=settings.extraction_timeout_seconds,
        concurrency=settings.extraction_concurrency,
    )
    return [Extraction(UnreadStore(database), facts, model, limits).chore()]


def _summary_chores(settings: MemorySettings, store: SummaryStore, jobs: SmallJobs) -> Sequence[Chore]:
    if not settings.summaries_enabled:
        return []

    def model(task: str) -> CountedModel:
        name = settings.summary_model or settings.openai_model
        return CountedModel(jobs, task=task, model=name, most_output_tokens=settings.summary_output_tokens)

    writer = SummaryWriter(store, _summary_limits(settings), conversations=model("summarize"), people=model("portray"))
    return writer.chores(timeout_seconds=settings.openai_timeout_seconds + _DATABASE_SECONDS)


def _context_limits(settings: MemorySettings) -> ContextLimits:
    return ContextLimits(
        default_tokens=settings.default_context_tokens,
        most_tokens=settings.greatest_context_tokens,
        most_messages=settings.working_set_messages,
    )


if __name__ == "__main__":
    run(NAME, MemorySettings, main)
