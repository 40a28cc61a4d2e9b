"""Measures searching and recording in a memory of a million messages, with row-level security on.

Owns the database that it fills: an embedded Postgres in a folder of its own, or in `--data` to fill it once and measure
often. What is measured is services/memory itself, in this process and on the service's plain role: a whole search (both
rankings, the rows of the winners, each in its transaction), and the recording of a turn of two messages, Redis included. Not
measured is the model's time: the vector of a query is given. gRPC adds about a millisecond. The lists of words are made
before, by what upkeep calls; how long that takes is printed.

The rows lie as they would have come: the messages of all users mixed, so that none of a user's are together on disk. Vectors
are noise, with neighbours of the queries planted; texts are drawn from a vocabulary whose words are as uneven as English
ones, replies longer than questions; a part of the user's messages has vectors of its sentences. The exact order is computed
here, from the rows as they are read back. Nothing here says how relevant what is found is: see bench/retrieval.py.

    python -m bench.memory_scale --rows 100000
    python -m bench.memory_scale --rows 1000000 --data /tmp/scale
"""

import argparse
import asyncio
import itertools
import math
import os
import random
import statistics
import struct
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import mul
from pathlib import Path
from typing import Any

import psutil
import psycopg

from services.memory.__main__ import open_memory
from services.memory.postings.chore import index
from services.memory.postings.store import SEGMENT_MESSAGES, PostingStore
from services.memory.recall.fusion import Weights
from services.memory.recall.search import Recall, RecallLimits
from services.memory.recall.store import Extent, RecallStore
from services.memory.records import body_hash
from services.memory.settings import MemorySettings
from services.memory.turns import ConversationKey, Turn
from services.runtime.database import open_database
from services.runtime.migrations import migrate
from suite.databases import ServiceDatabase, prepare_database, with_target
from suite.postgres import EmbeddedPostgres
from suite.redis import running_redis

DIMENSIONS = 384
MODEL = f"noise@{DIMENSIONS}"
NAME = "parley_memory"
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
CONVERSATION, CHUNK, FACT_EVERY, PLANTED_EVERY = 40, 20_000, 25, 500
# Memories of a user, and which share of all rows belongs to users of that size.
SIZES = ((10_000, 0.3), (2_000, 0.3), (300, 0.3), (40, 0.1))
VOCABULARY, QUERY_WORDS, WORDS_OF_A_SENTENCE = 30_000, (2, 10), 8


def main() -> int:
    """Fill where it is empty, measure, print."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="parley-scale-", ignore_cleanup_errors=True) as folder:
        asyncio.run(_run(options, Path(folder)))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="messages; facts come on top, one of 25 messages")
    parser.add_argument("--searches", type=int, default=400, help="of each of the two kinds of users")
    parser.add_argument("--turns", type=int, default=300, help="to record")
    parser.add_argument("--exact", type=int, default=20, help="queries whose exact order is computed")
    parser.add_argument("--shared-buffers", default="4GB", help="Postgres's own cache; its default is 128MB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, help="folder of the database, kept")
    return parser.parse_args()


async def _run(options: argparse.Namespace, folder: Path) -> None:
    settings = {"shared_buffers": options.shared_buffers, "max_wal_size": "4GB"}
    server = await EmbeddedPostgres.start(options.data or folder / "postgres", settings=settings)
    try:
        database = await prepare_database(server.admin_url, name=NAME, passwords="not-a-secret")
        await asyncio.to_thread(migrate, "services.memory", database.migration_url, service_role=database.service_role)
        corpus = Corpus(options.rows, options.seed)
        await _fill(with_target(server.admin_url, database=NAME), corpus)
        await _index(database, corpus)
        async with running_redis(folder / "redis") as redis:
            await _measure(options, corpus, database, redis.url, database_pid=server.pid)
        print(
            "load of the machine, 1 and 5 minutes:", *(f"{load:.1f}" for load in os.getloadavg()[:2]), "of", os.cpu_count()
        )
    finally:
        await server.stop()


@dataclass(frozen=True, slots=True)
class User:
    """A user, by the number of messages that are remembered, and what was planted: a query's vector."""

    id: str
    memories: int
    probe: bytes = field(repr=False)


class Corpus:
    """What is remembered, the same for the same seed."""

    def __init__(self, rows: int, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - nothing here is secret
        self._noise = _Noise(self.chance)
        syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
        self.words = ["".join(self.chance.choices(syllables, k=self.chance.randint(2, 4))) for _ in range(VOCABULARY)]
        self._weights = list(itertools.accumulate(1 / (rank + 15) for rank in range(VOCABULARY)))
        self.users = [
            User(self.id(), size, self._noise.vector())
            for size, share in SIZES
            for _ in range(max(1, round(rows * share / size)))
        ]

    def id(self) -> str:
        """A UUID."""
        return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    def text(self, words: int) -> str:
        """So many words."""
        return " ".join(self.chance.choices(self.words, cum_weights=self._weights, k=words))

    def vector(self, near: bytes | None = None) -> bytes:
        """Noise, or something near."""
        noise = self._noise.vector()
        if near is None:
            return noise
        share = self.chance.uniform(0.2, 0.9)
        pairs = zip(_floats(near), _floats(noise), strict=True)
        return _packed([share * one + (1 - share) * other for one, other in pairs])

    def order(self) -> list[User]:
        """Whose message comes when."""
        turns = [user for user in self.users for _ in range(user.memories)]
        self.chance.shuffle(turns)
        return turns


class _Noise:
    """Vectors of noise at the price of a few microseconds: each number is one of 256 quantiles of a normal distribution."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        normal = statistics.NormalDist(0, 1 / math.sqrt(DIMENSIONS))
        halves = [struct.pack(">e", normal.inv_cdf((index + 0.5) / 256)) for index in range(256)]
        self._high, self._low = (bytes(half[part] for half in halves) for part in (0, 1))

    def vector(self) -> bytes:
        """In halfvec's binary form; its length is 1 within some percent."""
        numbers = self._chance.randbytes(DIMENSIONS)
        mixed = bytearray(2 * DIMENSIONS)
        mixed[0::2], mixed[1::2] = numbers.translate(self._high), numbers.translate(self._low)
        return struct.pack(">HH", DIMENSIONS, 0) + bytes(mixed)


def _packed(numbers: Sequence[float]) -> bytes:
    length = math.sqrt(sum(number * number for number in numbers))
    return struct.pack(f">HH{DIMENSIONS}e", DIMENSIONS, 0, *(number / length for number in numbers))


def _floats(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f">{DIMENSIONS}e", vector[4:])


def _text_form(vector: bytes) -> str:
    return f"[{','.join(f'{number:.6g}' for number in _floats(vector))}]"


# The types under which psycopg writes what COPY takes as bytes: a vector is its own binary form.
_COLUMNS = {
    "conversations": {"user_id": "uuid", "conversation_id": "uuid", "version": "int8", "last_sequence": "int4"},
    "turns": {
        "user_id": "uuid",
        "conversation_id": "uuid",
        "sequence": "int4",
        "message_id": "uuid",
        "role": "text",
        "body": "text",
        "revision": "int4",
        "token_count": "int4",
        "create_time": "timestamptz",
    },
    "facts": {
        "user_id": "uuid",
        "id": "uuid",
        "body": "text",
        "body_hash": "bytea",
        "stamped_by": "text",
        "origin": "text",
        "record_time": "timestamptz",
    },
    "fact_sources": {"user_id": "uuid", "fact_id": "uuid", "conversation_id": "uuid", "message_id": "uuid"},
    "embeddings": {
        "user_id": "uuid",
        "item_id": "uuid",
        "kind": "text",
        "conversation_id": "uuid",
        "sequence": "int4",
        "model": "text",
        "body": "bytea",
        "pieces": "bytea",
    },
}


async def _fill(url: str, corpus: Corpus) -> None:
    """As the superuser: COPY is not for tables with row-level security."""
    async with await psycopg.AsyncConnection[tuple[Any, ...]].connect(url, autocommit=True) as connection:
        row = await (await connection.execute("select exists (select from turns)")).fetchone()
        if row == (True,):
            print("the database is filled already")
            return
        began = time.monotonic()
        found = await (await connection.execute("select cast(cast('halfvec' as regtype) as oid)::bigint")).fetchone()
        if found is None:
            raise RuntimeError("the database has no halfvec")
        filler = _Filler(connection, corpus, vector_type=found[0])
        order = corpus.order()
        for start in range(0, len(order), CHUNK):
            await filler.write(order[start : start + CHUNK])
        await connection.execute("vacuum analyze")
        print(f"filled with {len(order)} messages in {time.monotonic() - began:.0f} s", flush=True)


async def _index(database: ServiceDatabase, corpus: Corpus) -> None:
    """As after the first search of each user who has said much."""
    began, opened = time.monotonic(), open_database(database.url, pool_size=1)
    for user in corpus.users:
        if user.memories >= SEGMENT_MESSAGES:
            await index(PostingStore(opened), user.id)
    await opened.close()
    print(f"lists of words made in {time.monotonic() - began:.0f} s", flush=True)


class _Filler:
    def __init__(self, connection: "psycopg.AsyncConnection[tuple[Any, ...]]", corpus: Corpus, *, vector_type: int) -> None:
        self._connection, self._corpus, self._vector_type = connection, corpus, vector_type
        self._said: dict[str, int] = {}
        self._conversations: dict[str, str] = {}
        self._minutes = 0

    async def write(self, users: Sequence[User]) -> None:
        rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in _COLUMNS}
        for user in users:
            self._add(user, rows)
        async with self._connection.transaction():
            for table, columns in _COLUMNS.items():
                await self._copy(table, columns, rows[table])

    def _add(self, user: User, rows: dict[str, list[tuple[Any, ...]]]) -> None:
        corpus, chance = self._corpus, self._corpus.chance
        said = self._said.get(user.id, 0)
        self._said[user.id] = said + 1
        self._minutes += 1
        if said % CONVERSATION == 0:
            self._conversations[user.id] = corpus.id()
            rows["conversations"].append((user.id, self._conversations[user.id], 1, CONVERSATION))
        conversation_id, sequence, message_id = self._conversations[user.id], said % CONVERSATION + 1, corpus.id()
        is_user = sequence % 2 == 1
        words = max(3, int(chance.lognormvariate(2.5, 0.7) if is_user else chance.lognormvariate(4.0, 0.7)))
        text, moment = corpus.text(words), BEGAN + timedelta(minutes=self._minutes)
        role = "user" if is_user else "assistant"
        rows["turns"].append((user.id, conversation_id, sequence, message_id, role, text, 0, 2 * words, moment))
        near = user.probe if said % PLANTED_EVERY == 0 else None
        sentences = words // WORDS_OF_A_SENTENCE if is_user else 0
        pieces = self._array([corpus.vector() for _ in range(min(8, sentences))]) if sentences > 1 else None
        whole = corpus.vector(near)
        rows["embeddings"].append((user.id, message_id, "turn", conversation_id, sequence, MODEL, whole, pieces))
        if said % FACT_EVERY == 0:
            fact_id, body = corpus.id(), f"{corpus.text(8)} {said}"
            rows["facts"].append((user.id, fact_id, body, body_hash(body), "user", "extracted", moment))
            rows["fact_sources"].append((user.id, fact_id, conversation_id, message_id))
            rows["embeddings"].append((user.id, fact_id, "fact", None, None, MODEL, corpus.vector(), None))

    def _array(self, vectors: Sequence[bytes]) -> bytes:
        """Postgres's binary form of halfvec[]: one dimension, no nulls, from 1 on."""
        head = struct.pack(">IIIII", 1, 0, self._vector_type, len(vectors), 1)
        return head + b"".join(struct.pack(">I", len(vector)) + vector for vector in vectors)

    async def _copy(self, table: str, columns: dict[str, str], rows: Iterable[tuple[Any, ...]]) -> None:
        statement = f"copy {table} ({', '.join(columns)}) from stdin (format binary)"
        async with self._connection.cursor().copy(statement.encode()) as copy:
            copy.set_types(list(columns.values()))
            for row in rows:
                await copy.write_row([_typed(*pair) for pair in zip(columns.values(), row, strict=True)])


def _typed(kind: str, value: Any) -> Any:
    return uuid.UUID(value) if kind == "uuid" and value is not None else value


async def _measure(
    options: argparse.Namespace, corpus: Corpus, database: ServiceDatabase, redis_url: str, *, database_pid: int
) -> None:
    embedder = _Given()
    given = {
        "listen_address": "127.0.0.1:0",
        "metrics_address": "127.0.0.1:0",
        "database_url": database.url,
        "redis_url": redis_url,
        "redis_timeout_seconds": 2,
        "auth_target": "ipv4:127.0.0.1:1",
        "workload_credential_file": "unused",
        "openai_api_key": "unused",
        "embeddings_enabled": False,
    }
    async with AsyncExitStack() as parts:
        memory = await open_memory(MemorySettings.model_validate(given), parts)
        for duty in memory.duties:
            duty.close()
        searched = open_database(database.url, pool_size=4)
        parts.push_async_callback(searched.close)
        store = RecallStore(searched)
        recall = Recall(store, embedder, RecallLimits(100, Weights(1, 1, 0.5, 0.5, 0.3, 0.5, 20), at_once=4))
        await _report_rows(database, corpus)
        await _measure_searches(options, corpus, recall, embedder, database_pid)
        await _measure_exactness(options, corpus, store, database)
        await _measure_turns(options, corpus, memory.conversations.record)


class _Given:
    """Stands where the embedder does: the vector is known."""

    is_enabled, model_name, vector = True, MODEL, ""

    async def embed_query(self, _text: str) -> str:
        return self.vector


async def _report_rows(database: ServiceDatabase, corpus: Corpus) -> None:
    sizes = {size: sum(user.memories == size for user in corpus.users) for size, _ in SIZES}
    print("users:", ", ".join(f"{count} with {size} messages" for size, count in sizes.items()))
    async with await psycopg.AsyncConnection[tuple[Any, ...]].connect(database.migration_url) as connection:
        await connection.execute("select set_config('parley.scope', 'service', true)")
        for table in ("turns", "facts", "embeddings", "segments", "postings"):
            # A partitioned table has no size itself, and one without partitions has no tree.
            tree = f"select coalesce(sum(pg_total_relation_size(relid)), 0) from pg_partition_tree('{table}')"  # noqa: S608 - of ours
            size = f"greatest(({tree}), pg_total_relation_size('{table}'))"
            count = f"select count(*), pg_size_pretty({size}) from {table}"  # noqa: S608 - of ours
            row = await (await connection.execute(count.encode())).fetchone()
            if row is not None:
                print(f"{table}: {row[0]} rows, {row[1]} with indexes")


async def _measure_searches(
    options: argparse.Namespace, corpus: Corpus, recall: Recall, embedder: _Given, database_pid: int
) -> None:
    """Each user's first search meets what the caches hold of others; it counts like any."""
    large = [user for user in corpus.users if user.memories == SIZES[0][0]]
    # As often as somebody writes: a user with twice the memories asks twice as often.
    mixed = corpus.chance.choices(corpus.users, weights=[user.memories for user in corpus.users], k=options.searches)
    any_user = corpus.chance.choices(corpus.users, k=options.searches)
    kinds = (
        ("warming up (not counted)", any_user),
        ("search, any user", any_user),
        ("search, users by their messages", mixed),
        (f"search, users with {SIZES[0][0]} messages", corpus.chance.choices(large, k=options.searches)),
    )
    for label, users in kinds:
        taken, began = list[float](), _cpu_seconds(database_pid)
        for user in users:
            embedder.vector = _text_form(user.probe)
            query = corpus.text(corpus.chance.randint(*QUERY_WORDS))
            taken.append(await _timed(recall.search(user.id, query, limit=10)))
        _print(label, taken)
        print(f"  CPU of Postgres: {1000 * _spent(began, _cpu_seconds(database_pid)) / len(users):.1f} ms a search")


async def _measure_exactness(
    options: argparse.Namespace, corpus: Corpus, store: RecallStore, database: ServiceDatabase
) -> None:
    """The 25 nearest messages as the service orders them, and as Python does from all rows of the user."""
    users = sorted(corpus.users, key=lambda user: -user.memories)[: options.exact]
    shares = []
    for user in users:
        nearest = await store.by_meaning(Extent(user.id, 25, kind="message"), _text_form(user.probe), model=MODEL)
        got = {one.score for one in nearest[:25]}
        exact = await _exact_scores(database, user)
        # By distance: two at the same one have no order.
        shares.append(sum(any(abs(one - score) < 1e-5 for score in got) for one in exact[:25]) / 25)  # noqa: PLR2004
    print(f"recall of the 25 nearest against the exact order, {len(users)} users: {statistics.fmean(shares):.3f}")


async def _exact_scores(database: ServiceDatabase, user: User) -> list[float]:
    probe = _floats(user.probe)
    async with await psycopg.AsyncConnection[tuple[Any, ...]].connect(database.url) as connection:
        await connection.execute("select set_config('parley.user_id', %s, true)", [user.id])
        cursor = await connection.execute(
            "select cast(body as text), cast(pieces as text[]) from embeddings where user_id = %s and kind = 'turn'",
            [user.id],
        )
        rows = await cursor.fetchall()
    return sorted((max(_product(probe, one) for one in (body, *(pieces or ()))) for body, pieces in rows), reverse=True)


def _product(probe: Sequence[float], vector: str) -> float:
    return math.fsum(map(mul, probe, map(float, vector[1:-1].split(","))))


async def _measure_turns(
    options: argparse.Namespace, corpus: Corpus, record: Callable[[ConversationKey, Sequence[Turn]], Awaitable[int]]
) -> None:
    taken = []
    for user in corpus.chance.choices(corpus.users, weights=[one.memories for one in corpus.users], k=options.turns):
        key = ConversationKey(user.id, corpus.id())
        turns = [_turn(corpus, 1, "user", 15), _turn(corpus, 2, "assistant", 120)]
        taken.append(await _timed(record(key, turns)))
    _print("recording a turn of two messages", taken)


def _turn(corpus: Corpus, sequence: int, role: str, words: int) -> Turn:
    return Turn(corpus.id(), sequence, role, corpus.text(words), 0, datetime.now(UTC), 2 * words)


def _cpu_seconds(pid: int) -> dict[int, float]:
    """Of each of a server's processes: what a search costs on a machine that is busy with something else too."""
    times = {child.pid: child.cpu_times() for child in psutil.Process(pid).children()}
    return {child: one.user + one.system for child, one in times.items()}


def _spent(before: dict[int, float], after: dict[int, float]) -> float:
    """Between two looks, without what has ended meanwhile: that was no connection of ours."""
    return sum(seconds - before.get(child, 0.0) for child, seconds in after.items())


async def _timed(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


def _print(label: str, taken: Sequence[float]) -> None:
    ordered = sorted(taken)
    median, late = statistics.median(ordered), ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]
    print(f"{label}: p50 {median:.1f} ms, p95 {late:.1f} ms, longest {ordered[-1]:.1f} ms, n {len(ordered)}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
