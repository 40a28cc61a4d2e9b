"""The working set in Redis: the latest part of each conversation in use, for half an hour after its last use.

Owns one key a conversation, which holds a block and the version of the turns that it was made of. Invariants: a block
is used only when its version is the one that Postgres names, so an old block is unreachable, also when Redis comes back
with data of yesterday; a block never replaces one of a newer version, so what was read before a deletion cannot be
written after it; a block is never larger than `most_bytes`. It refuses to be needed: without Redis every answer is "not
here".

A block is text: its version, its first sequence with the size of the turn before that, and then a line of JSON a turn,
oldest first. So Redis can compare the version and append turns without parsing anything.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.memory.context import Block
from services.memory.turns import ConversationKey, Turn
from services.runtime.breaker import Breaker

ASKED: Final = Counter(
    "parley_memory_working_set", "Operations on the working set, by what came of them", ["operation", "outcome"]
)

# Another number when the form of a block changes: releases that run side by side never read each other's.
_PREFIX: Final = "parley:memory:working-set:1"
# The block of a conversation of which nothing is held: its turns begin beyond the greatest sequence there is.
_NOTHING_HELD: Final = b"2147483647 0\n"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

_READ: Final = """
local head = ARGV[1] .. '\\n'
if redis.call('GETRANGE', KEYS[1], 0, #head - 1) ~= head then return false end
return redis.call('GETEX', KEYS[1], 'EX', ARGV[2])
"""
_PUT: Final = """
local held = tonumber(string.match(redis.call('GETRANGE', KEYS[1], 0, 20), '^%d+') or 0)
if held > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. '\\n' .. ARGV[2], 'EX', ARGV[3])
return 1
"""
_APPEND: Final = """
local head = ARGV[1] .. '\\n'
local block = redis.call('GET', KEYS[1])
if not block or string.sub(block, 1, #head) ~= head then return 0 end
if #block + #ARGV[3] > tonumber(ARGV[5]) then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('SET', KEYS[1], ARGV[2] .. '\\n' .. string.sub(block, #head + 1) .. ARGV[3], 'EX', ARGV[4])
return 1
"""
# Well within the time that one operation may take.
_DELETED_AT_ONCE: Final = 100
_DELETE: Final = "return redis.call('DEL', KEYS[1]) + 1"


@dataclass(frozen=True, slots=True)
class WorkingSetLimits:
    """`timeout_seconds` bounds one operation, connecting included; `retry_seconds` is the pause after a failure."""

    ttl_seconds: int
    most_bytes: int
    timeout_seconds: float
    retry_seconds: float


@dataclass(frozen=True, slots=True)
class Growth:
    """What a conversation grew by at its end; `from_version` is None for one of which nothing was known before."""

    key: ConversationKey
    from_version: int | None
    version: int
    turns: Sequence[Turn]


class WorkingSet:
    """Blocks by conversation. Nothing here raises because of Redis: what failed is counted, and logged once."""

    def __init__(self, redis: Redis, limits: WorkingSetLimits) -> None:
        self._limits = limits
        self._breaker = Breaker("working_set", retry_seconds=limits.retry_seconds)
        self._redis = redis

    async def read(self, key: ConversationKey, version: int) -> Block | None:
        """The block of exactly this version, kept for another `ttl_seconds`; None when it is not here."""
        answered, block = await self._run("read", _READ, key, version, self._limits.ttl_seconds)
        if answered:
            ASKED.labels("read", "miss" if block is None else "hit").inc()
        return None if block is None else _decoded(block)

    async def put(self, key: ConversationKey, version: int, block: Block) -> None:
        """Holds this block, unless a newer one is held or it is too large."""
        encoded = _encoded(block)
        if len(encoded) <= self._limits.most_bytes:
            await self._run("put", _PUT, key, version, encoded, self._limits.ttl_seconds)

    async def follow(self, grown: Sequence[Growth]) -> None:
        """Adds what conversations grew by to their blocks, in one round trip; drops a block that gets too large.

        Nothing happens where the block of `from_version` is not here: the next reader puts a new one.
        """
        commands = [command for growth in grown if (command := self._following(growth)) is not None]
        if commands:
            await self._ask("follow", commands)

    def _following(self, growth: Growth) -> tuple[Any, ...] | None:
        limits = self._limits
        if growth.from_version is None:
            encoded = _encoded(Block(1, 0, growth.turns[::-1]))
            is_too_large = len(encoded) > limits.most_bytes
            return None if is_too_large else (_PUT, key_of(growth.key), growth.version, encoded, limits.ttl_seconds)
        lines = _lines(growth.turns)
        version = (growth.from_version, growth.version)
        return _APPEND, key_of(growth.key), *version, lines, limits.ttl_seconds, limits.most_bytes

    async def evict(self, evicted: Mapping[ConversationKey, int]) -> bool:
        """Forgets, of each conversation, every block from before its version, and what readers under way would still put.

        One round trip. A block that holds nothing, of that version, stands in their place until it expires. False when
        Redis did not answer.
        """
        ttl = self._limits.ttl_seconds
        commands = [(_PUT, key_of(key), version, _NOTHING_HELD, ttl) for key, version in evicted.items()]
        return not commands or await self._ask("evict", commands) is not None

    async def delete(self, keys: Sequence[str]) -> bool:
        """Deletes blocks by the names that `key_of` gives, so that not even their names are left. False without an answer.

        A reader under way could still put one: for users who are purged, and called again later.
        """
        for batch in (keys[start : start + _DELETED_AT_ONCE] for start in range(0, len(keys), _DELETED_AT_ONCE)):
            if await self._ask("delete", [(_DELETE, key) for key in batch]) is None:
                return False
        return True

    async def _run(self, operation: str, script: str, key: ConversationKey, *arguments: bytes | int) -> tuple[bool, Any]:
        """Whether Redis answered, and what."""
        answers = await self._ask(operation, [(script, key_of(key), *arguments)])
        return (False, None) if answers is None else (True, answers[0])

    async def _ask(self, operation: str, commands: Sequence[tuple[Any, ...]]) -> list[Any] | None:
        """What Redis answered to these scripts, each with its one key, in one round trip; None when it did not."""
        if not self._breaker.allows():
            ASKED.labels(operation, "skipped").inc(len(commands))
            return None
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                answers = await self._evaluated(commands)
        except (RedisError, OSError, TimeoutError) as error:
            self._breaker.failed(error)
            ASKED.labels(operation, "error").inc(len(commands))
            return None
        self._breaker.succeeded()
        if operation != "read":
            for answer in answers:
                ASKED.labels(operation, "done" if answer else "stale").inc()
        return answers

    async def _evaluated(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        # Not by their digests: a few hundred bytes cost nothing, and a Redis that lost its scripts needs no second try.
        if len(commands) == 1:
            script, key, *arguments = commands[0]
            return [await self._redis.eval(script, 1, key, *arguments)]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for script, key, *arguments in commands:
                pipeline.eval(script, 1, key, *arguments)
            return list(await pipeline.execute())


def key_of(key: ConversationKey) -> str:
    """The name under which Redis holds the block of a conversation."""
    return f"{_PREFIX}:{key.user_id}:{key.conversation_id}"


def _encoded(block: Block) -> bytes:
    head = f"{block.first_sequence} {block.preceding_tokens}\n".encode()
    return head + _lines(reversed(list(block.newest_first)))


def _lines(turns: Iterable[Turn]) -> bytes:
    """Oldest first. Turns without text have no part in a block."""
    return b"".join(orjson.dumps(_values(turn), option=orjson.OPT_APPEND_NEWLINE) for turn in turns if turn.text)


def _values(turn: Turn) -> tuple[object, ...]:
    microseconds = (turn.create_time - _EPOCH) // _MICROSECOND
    return turn.message_id, turn.sequence, turn.role, turn.text, turn.revision, microseconds, turn.token_count


def _decoded(stored: bytes) -> Block:
    _, extent, *lines = stored.split(b"\n")
    first_sequence, preceding_tokens = map(int, extent.split())
    return Block(first_sequence, preceding_tokens, _newest_first(lines))


def _newest_first(lines: list[bytes]) -> Iterator[Turn]:
    """Parsed as far as they are read: a small budget does not pay for a long block."""
    for line in reversed(lines):
        if line:
            message_id, sequence, role, text, revision, microseconds, token_count = orjson.loads(line)
            create_time = _EPOCH + microseconds * _MICROSECOND
            yield Turn(message_id, sequence, role, text, revision, create_time, token_count)
