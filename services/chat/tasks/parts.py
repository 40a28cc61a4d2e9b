"""What tasks are made of, put together: for the composition root."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from services.chat.settings import ChatSettings
from services.chat.tasks.change_store import TaskChangeStore
from services.chat.tasks.feed import TaskFeed
from services.chat.tasks.servicer import TaskServicer
from services.chat.tasks.signals import TaskSignals
from services.chat.tasks.store import TaskStore
from services.chat.tasks.tools import TaskTools
from services.chat.tasks.verbs import TaskActions
from services.runtime.database import Database
from services.runtime.redis import open_redis

# More would only wait for each other in the database.
_CHANGES_AT_ONCE = 2
_POOL_SECONDS = 1.0


@dataclass(frozen=True)
class TaskParts:
    """What the rest of the process needs: servicer, tools of the model, verbs, and the feed, which is closed at a stop."""

    servicer: TaskServicer
    tools: TaskTools
    actions: TaskActions
    feed: TaskFeed


async def open_tasks(settings: ChatSettings, parts: AsyncExitStack, *, database: Database) -> TaskParts:
    """Tasks on their database and Redis, with their watchers kept informed, until `parts` closes."""
    # One connection listens, the others tell.
    redis = open_redis(settings.redis_url.get_secret_value(), connections=3, wait_seconds=_POOL_SECONDS)
    parts.push_async_callback(redis.aclose)
    signals = TaskSignals(redis, timeout_seconds=settings.redis_timeout_seconds, retry_seconds=settings.redis_retry_seconds)
    feed = TaskFeed(TaskChangeStore(database), signals, heartbeat_seconds=settings.heartbeat_seconds)
    await parts.enter_async_context(feed.living())
    store = TaskStore(database, max_tasks=settings.max_tasks, concurrency=_CHANGES_AT_ONCE, on_change=feed.note)
    actions = TaskActions(store)
    return TaskParts(TaskServicer(store, feed), TaskTools(actions), actions, feed)
