"""What durable generations are made of, put together: for the composition root."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from services.chat.generation.generations import GenerationLimits, Generations
from services.chat.generation.leases import LeaseClock, Leases
from services.chat.generation.turns import Turns, TurnStores
from services.chat.generation.writing import Writing
from services.chat.generation_store import GenerationStore
from services.chat.lease_store import LeaseStore
from services.chat.log.entries import OUTLIVES_SECONDS
from services.chat.log.event_feed import POLL_SECONDS, EventFeed
from services.chat.log.event_log import EventLog, LogLimits
from services.chat.log.tape import Readers
from services.chat.settings import ChatSettings
from services.chat.turn_store import TurnStore
from services.runtime.database import Database
from services.runtime.duties import beside, repeat
from services.runtime.redis import open_redis

_POOL_SECONDS = 1.0


@dataclass(frozen=True)
class GenerationParts:
    """What the rest of the process needs. At a stop: `generations` drain, then the feed is closed."""

    generations: Generations
    turns: Turns
    feed: EventFeed
    log: EventLog


async def open_generations(  # noqa: PLR0913 - parts of its own
    settings: ChatSettings,
    parts: AsyncExitStack,
    database: Database,
    store: GenerationStore,
    writing: Writing,
    *,
    make_turn_store: Callable[[Leases, EventLog], TurnStore],
) -> GenerationParts:
    """Generations on their database and Redis, with their leases kept and those of others followed, until `parts` closes."""
    url = settings.redis_url.get_secret_value()
    writer = open_redis(url, connections=1, wait_seconds=_POOL_SECONDS)
    redis = open_redis(url, connections=settings.redis_connections, wait_seconds=_POOL_SECONDS)
    parts.push_async_callback(writer.aclose)
    parts.push_async_callback(redis.aclose)
    clock = LeaseClock(settings.lease_seconds)
    log = EventLog(writer, redis, _log_limits(settings), may_tell=clock.is_good)
    lease_store = LeaseStore(database, owner=store.owner, lease_seconds=settings.lease_seconds)
    generations = Generations(store, lease_store, log, writing, _limits(settings))

    def hear(verb: str, generation_id: str) -> None:
        match verb:
            case "stop":
                generations.stop([generation_id])
            case "cancel":
                generations.cancel(generation_id)
            case "sweep":
                leases.sweep_soon()

    feed = EventFeed(redis, store, lease_store, retry_seconds=settings.redis_retry_seconds, on_control=hear)
    leases = Leases(
        lease_store,
        generations,
        log,
        feed,
        clock,
        lease_seconds=settings.lease_seconds,
        renew_seconds=settings.lease_renew_seconds,
    )
    poll = repeat("generation_poll", feed.poll, interval_seconds=POLL_SECONDS)
    await parts.enter_async_context(beside(log.write(), feed.listen(), poll))
    await parts.enter_async_context(leases.kept())
    readers = Readers(heartbeat_seconds=settings.heartbeat_seconds, stall_seconds=settings.reader_stall_seconds)
    stores = TurnStores(make_turn_store(leases, log), store, lease_store)
    turns = Turns(stores, generations, readers, feed, log, rescue=leases.rescue)
    return GenerationParts(generations, turns, feed, log)


def _limits(settings: ChatSettings) -> GenerationLimits:
    return GenerationLimits(
        max_generations=settings.max_generations,
        generation_deadline_seconds=settings.generation_deadline_seconds,
        reader_retention_seconds=settings.reader_retention_seconds,
    )


def _log_limits(settings: ChatSettings) -> LogLimits:
    return LogLimits(
        timeout_seconds=settings.redis_timeout_seconds,
        retry_seconds=settings.redis_retry_seconds,
        running_seconds=settings.generation_deadline_seconds + OUTLIVES_SECONDS,
    )
