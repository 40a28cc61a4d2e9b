"""Measures what a search finds: R@5, R@10 and R@25, the mean share of a question's gold messages among the first so many.

Owns a corpus and drives the real service with it over gRPC: RecordTurns, then SearchMemories for messages, with the
simulator's embeddings, or with `--no-embeddings` by words alone. The corpus is made here from a seed, or read from
`--corpus`: JSON, a list of dialogues

    [{"messages": [{"id": "…", "role": "user", "text": "…", "time": "2023-05-08T13:56:00Z", "conversation": "…"}, …],
      "questions": [{"query": "…", "gold": ["<id of a message>", …]}, …]}, …]

each dialogue of a user of its own, its messages in order; `conversation` is optional, all one by default.

What its figures are not: a comparison with any other figures. The weights of a search (and those of BM25) were found on ten
long public dialogues, with a language model's embeddings. The corpus made here is small, plain and made of templates: half
of its questions share a word or two with what was said, in other forms, the others none; all stand between distractors of
the same kind and facts that change. The simulator's embeddings know words and their beginnings, no meaning: the questions
that share no word are out of reach by construction. It shows whether a change of the search helps in kind; how good the
search is, only a corpus of real dialogues can tell.

    python -m bench.retrieval
    python -m bench.retrieval --no-embeddings
    python -m bench.retrieval --embedding-model all-MiniLM-L6-v2
    python -m bench.retrieval --corpus dialogues.json
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
from google.protobuf.timestamp_pb2 import Timestamp

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.memory.__main__ import open_memory
from services.memory.settings import MemorySettings
from services.runtime.duties import beside
from services.runtime.log import configure
from services.runtime.migrations import migrate
from services.runtime.server import GrpcServer
from simulator.embedders import Embedder, LocalEmbedder
from simulator.server import running
from suite.databases import ServiceDatabase, prepare_database
from suite.postgres import EmbeddedPostgres
from suite.redis import running_redis
from tests.issuer import Issuer

RANKS = (5, 10, 25)
SECONDS = 300.0
MESSAGES_A_CALL = 50


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a dialogue."""

    id: str
    role: str
    text: str
    time: datetime
    conversation: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the messages that answer it."""

    query: str
    gold: Sequence[str]


@dataclass(slots=True)
class Dialogue:
    """All that one user said, and the questions about it."""

    messages: list[Message] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    user_id: str = field(default_factory=lambda: str(uuid.uuid4()))


def main() -> int:
    """Make or read the corpus, record it, ask, print."""
    options = _options()
    configure("bench", level="ERROR", log_format="text")
    dialogues = _read(options.corpus) if options.corpus else _made(options.seed, options.dialogues, options.weeks)
    if not any(dialogue.questions for dialogue in dialogues):
        print("the corpus asks no questions")
        return 2
    with tempfile.TemporaryDirectory(prefix="parley-retrieval-", ignore_cleanup_errors=True) as folder:
        asyncio.run(_run(options, dialogues, Path(folder)))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="JSON of dialogues; made from the seed by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dialogues", type=int, default=10, help="users of the corpus that is made")
    parser.add_argument("--weeks", type=int, default=30, help="how long each of them talks")
    parser.add_argument("--no-embeddings", action="store_true", help="by words alone")
    parser.add_argument("--embedding-model", help="a sentence-transformers model of this machine (parley[local])")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of memory, as RECALL_TIME_WEIGHT=0"
    )
    return parser.parse_args()


def _read(path: Path) -> list[Dialogue]:
    return [
        Dialogue(
            [Message(**{**one, "time": datetime.fromisoformat(one["time"])}) for one in dialogue["messages"]],
            [Question(one["query"], one["gold"]) for one in dialogue["questions"]],
        )
        for dialogue in json.loads(path.read_text())
    ]


@dataclass(frozen=True, slots=True)
class Topic:
    """Ways to say a thing, and to ask for it in other words. `{}` is what differs from one fact of its kind to the next."""

    said: Sequence[str]
    asked: Sequence[str]
    values: Sequence[str]
    changes: bool = False


TOPICS = (
    Topic(
        ("We finally picked a name for the puppy: {}.", "Say hello to {}, our new puppy!"),
        ("What is the user's dog called?", "Which puppy name did we choose?"),
        ("Bello", "Nacho", "Pepper", "Waffle", "Ziggy"),
    ),
    Topic(
        ("I just moved to {} and the flat is still full of boxes.", "We are living in {} now, the view is lovely."),
        ("Which city does the user live in?", "In which flat, with which view, are we?"),
        ("Lisbon", "Porto", "Graz", "Leeds", "Turin"),
        changes=True,
    ),
    Topic(
        ("I started working as a {} at a small firm.", "They hired me as a {}, I begin on Monday."),
        ("What does the user do for work?", "Whom did they hire me as?"),
        ("surveyor", "translator", "baker", "welder", "librarian"),
        changes=True,
    ),
    Topic(
        ("The doctor says that I must not eat {} any more.", "Turns out {} gives me a rash, so none of that for me."),
        ("What is the user allergic to?", "What gives me a rash when I eat it?"),
        ("peanuts", "shrimp", "celery", "sesame", "lupin"),
    ),
    Topic(
        ("My sister {} is getting married in spring.", "I spent the weekend with my sister {}."),
        ("What is the name of the user's sister?", "Which sister is getting married, or spends weekends with me?"),
        ("Ingrid", "Carmen", "Noor", "Tamsin", "Yuki"),
    ),
    Topic(
        ("I booked the trip: two weeks in {}!", "We just came back from {}, what a holiday."),
        ("Where did the user go on vacation?", "Which holiday trip did I book?"),
        ("Iceland", "Vietnam", "Malta", "Oman", "Peru"),
    ),
    Topic(
        ("I have been learning the {} for a month, my fingers hurt.", "My {} teacher is strict but funny."),
        ("Which instrument does the user play?", "What do I learn with a teacher, with sore fingers?"),
        ("cello", "banjo", "oboe", "accordion", "harp"),
    ),
    Topic(
        ("My car broke down again, so I bought a used {}.", "Picked up the {} from the dealer today."),
        ("What does the user drive?", "What used one did the dealer sell me when mine broke?"),
        ("Skoda", "Fiat", "Volvo", "Dacia", "Mazda"),
        changes=True,
    ),
    Topic(
        ("I am training for the {} in autumn.", "Signed up for the {}, wish me luck!"),
        ("Which race is the user preparing for?", "Which training am I signed up for this autumn?"),
        ("marathon", "triathlon", "regatta", "duathlon", "steeplechase"),
    ),
    Topic(
        ("Reading {} before bed, I cannot put it down.", "My book club chose {} this time."),
        ("What book is the user reading?", "Which book did the club choose for reading in bed?"),
        ("Middlemarch", "Dracula", "Emma", "Ulysses", "Beloved"),
    ),
)
CHATTER = (
    "How do I convert {} miles to kilometres?",
    "Write a short mail that I am late by {} minutes.",
    "What is a good dinner with {} eggs?",
    "Can you explain how magnets work, in {} sentences?",
    "Give me a synonym for tired, number {}.",
    "The dog next door barked {} times last night.",
    "My neighbour moved house, {} boxes on the stairs.",
    "A colleague asked about the job advert from week {}.",
    "Is a car with {} horsepower fast?",
    "What music suits a party of {}?",
    "Which city has {} bridges?",
    "Recommend {} books on gardening.",
)
REPLIES = (
    "Sure, here is a first version; tell me what to change.",
    "Good question. In short: it depends, and here is on what.",
    "That sounds like a full day! Anything that I can do?",
    "Noted. Shall I go on with the list from before?",
    "Here you are. I kept it brief.",
    "Happy to help with that; one moment.",
)


def _made(seed: int, count: int, weeks: int) -> list[Dialogue]:
    chance = random.Random(seed)  # noqa: S311 - nothing here is secret
    return [_dialogue(chance, weeks) for _ in range(count)]


def _dialogue(chance: random.Random, weeks: int) -> Dialogue:
    """A conversation a week, some turns each; in some of them a fact is told in passing."""
    dialogue, began = Dialogue(), datetime(2023, 1, 2, 9, tzinfo=UTC)
    told: dict[int, list[str]] = {}
    plan = chance.sample(range(1, weeks), k=min(weeks - 1, sum(2 if topic.changes else 1 for topic in TOPICS)))
    facts = [index for index, topic in enumerate(TOPICS) for _ in range(2 if topic.changes else 1)]
    by_week = dict(zip(sorted(plan), chance.sample(facts, k=len(plan)), strict=True))
    for week in range(weeks):
        conversation, time_ = str(uuid.UUID(int=chance.getrandbits(128), version=4)), began + timedelta(weeks=week)
        turns = chance.randint(6, 14)
        place = chance.randrange(turns)
        for number in range(turns):
            text = chance.choice(CHATTER).format(chance.randint(2, 60))
            if number == place and week in by_week:
                topic = TOPICS[by_week[week]]
                text = chance.choice(topic.said).format(chance.choice(topic.values))
            moment = time_ + timedelta(minutes=3 * number)
            said = _message(chance, "user", text, moment, conversation)
            reply = _message(chance, "assistant", chance.choice(REPLIES), moment + timedelta(minutes=1), conversation)
            dialogue.messages += [said, reply]
            if number == place and week in by_week:
                told.setdefault(by_week[week], []).append(said.id)
                if chance.random() < 0.5:  # noqa: PLR2004
                    dialogue.questions.append(_dated(chance, by_week[week], said))
    for index, gold in told.items():
        dialogue.questions += [Question(query, gold) for query in TOPICS[index].asked]
    return dialogue


def _message(chance: random.Random, role: str, text: str, moment: datetime, conversation: str) -> Message:
    return Message(str(uuid.UUID(int=chance.getrandbits(128), version=4)), role, text, moment, conversation)


def _dated(chance: random.Random, topic: int, said: Message) -> Question:
    query = chance.choice(TOPICS[topic].asked).rstrip("?")
    return Question(f"{query}, as of {said.time.day} {said.time:%B %Y}?", [said.id])


async def _run(options: argparse.Namespace, dialogues: Sequence[Dialogue], folder: Path) -> None:
    async with AsyncExitStack() as parts:
        server = await EmbeddedPostgres.start(folder / "postgres", settings={"fsync": "off"})
        parts.push_async_callback(server.stop)
        database = await prepare_database(server.admin_url, name="parley_memory", passwords="not-a-secret")
        await asyncio.to_thread(migrate, "services.memory", database.migration_url, service_role=database.service_role)
        redis = await parts.enter_async_context(running_redis(folder / "redis"))
        simulator = await parts.enter_async_context(running(embedder=_embedder(options)))
        given = _settings(options, database, redis.url, simulator.base_url)
        issuer = Issuer()
        driver = _Driver(await _serve(given, issuer, parts), issuer)
        began = time.monotonic()
        for dialogue in dialogues:
            await driver.record(dialogue)
        if not options.no_embeddings:
            await _embedded(database, sum(1 for one in dialogues for message in one.messages if message.text.strip()))
        print(f"recorded and embedded in {time.monotonic() - began:.1f} s")
        await driver.ask(dialogues)


def _embedder(options: argparse.Namespace) -> Embedder | None:
    return LocalEmbedder.load(options.embedding_model) if options.embedding_model else None


def _settings(options: argparse.Namespace, database: ServiceDatabase, redis_url: str, provider: str) -> MemorySettings:
    changed = {name.lower(): value for name, _, value in (one.partition("=") for one in options.set)}
    return MemorySettings.model_validate(
        {
            "listen_address": "127.0.0.1:0",
            "metrics_address": "127.0.0.1:0",
            "database_url": database.url,
            "redis_url": redis_url,
            "redis_timeout_seconds": 2,
            "auth_target": "ipv4:127.0.0.1:1",
            "workload_credential_file": "unused",
            "openai_api_key": "any",
            "openai_base_url": provider,
            "embeddings_enabled": not options.no_embeddings,
            "extraction_enabled": False,
            "summaries_enabled": False,
            # A local model has the length that it has.
            **({"embedding_dimensions": 0} if options.embedding_model else {}),
            **changed,
        }
    )


async def _serve(settings: MemorySettings, issuer: Issuer, parts: AsyncExitStack) -> memory_pb2_grpc.MemoryServiceStub:
    memory = await open_memory(settings, parts)
    await parts.enter_async_context(beside(*memory.duties))
    server = GrpcServer(address=settings.listen_address, mounts=[memory.mount], verifier=issuer.verifier("memory"))
    port = await server.start()
    parts.push_async_callback(server.stop, wait_seconds=0, drain_seconds=1)
    channel = await parts.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
    return memory_pb2_grpc.MemoryServiceStub(channel)


async def _embedded(database: ServiceDatabase, expected: int) -> None:
    """Returns when every message has its embedding."""
    async with await psycopg.AsyncConnection[tuple[Any, ...]].connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        async with asyncio.timeout(SECONDS):
            while await (await connection.execute("select count(*) from embeddings")).fetchone() != (expected,):  # noqa: ASYNC110 - rows tell nobody
                await asyncio.sleep(0.2)


class _Driver:
    """Calls the service as chat and as the users do."""

    def __init__(self, stub: memory_pb2_grpc.MemoryServiceStub, issuer: Issuer) -> None:
        self._stub, self._issuer = stub, issuer

    async def record(self, dialogue: Dialogue) -> None:
        """Records the dialogue, some messages a call; ids that are no UUIDs are given one."""
        conversations: dict[str, list[Message]] = {}
        for message in dialogue.messages:
            conversations.setdefault(message.conversation, []).append(message)
        for name, messages in conversations.items():
            said = [_context_message(dialogue, *numbered) for numbered in enumerate(messages, 1)]
            for start in range(0, len(said), MESSAGES_A_CALL):
                turns = memory_pb2.ConversationTurns(
                    user_id=dialogue.user_id,
                    conversation_id=_uuid(f"{dialogue.user_id}/{name}"),
                    messages=said[start : start + MESSAGES_A_CALL],
                )
                answer = await self._stub.RecordTurns(
                    memory_pb2.RecordTurnsRequest(conversations=[turns]),
                    metadata=self._issuer.as_service("chat", audience="memory"),
                    timeout=30,
                )
                if answer.refused_conversation_ids:
                    raise RuntimeError("the corpus names a message twice")

    async def ask(self, dialogues: Sequence[Dialogue]) -> None:
        """Asks everything, and prints."""
        shares: dict[int, list[float]] = {rank: [] for rank in RANKS}
        taken, ways = list[float](), dict[str, int]()
        for dialogue in dialogues:
            for question in dialogue.questions:
                began = time.perf_counter()
                answer = await self._search(dialogue.user_id, question.query)
                taken.append((time.perf_counter() - began) * 1000)
                found = [one.memory.id for one in answer.memories]
                gold = {_uuid(f"{dialogue.user_id}/{one}") for one in question.gold}
                for rank in RANKS:
                    shares[rank].append(len(gold & set(found[:rank])) / len(gold))
                for one in answer.memories[: RANKS[0]]:
                    ways.update({way: ways.get(way, 0) + 1 for way in one.found_by})
        _print(dialogues, shares, taken, ways)

    async def _search(self, user_id: str, query: str) -> memory_pb2.SearchMemoriesResponse:
        return await self._stub.SearchMemories(
            memory_pb2.SearchMemoriesRequest(query=query, limit=RANKS[-1], kind="message"),
            metadata=self._issuer.as_user(user_id),
            timeout=30,
        )


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def _context_message(dialogue: Dialogue, sequence: int, message: Message) -> memory_pb2.ContextMessage:
    create_time = Timestamp()
    create_time.FromDatetime(message.time)
    return memory_pb2.ContextMessage(
        message_id=_uuid(f"{dialogue.user_id}/{message.id}"),
        sequence=sequence,
        role=message.role,
        text=message.text,
        create_time=create_time,
    )


def _print(
    dialogues: Sequence[Dialogue],
    shares: Mapping[int, Sequence[float]],
    taken: Sequence[float],
    ways: Mapping[str, int],
) -> None:
    ordered = sorted(taken)
    late = ordered[math.ceil(0.95 * len(ordered)) - 1]
    print(f"rows: {sum(len(one.messages) for one in dialogues)} messages of {len(dialogues)} users, {len(taken)} questions")
    print("   ".join(f"R@{rank} {100 * statistics.fmean(found):.1f}" for rank, found in shares.items()))
    print(f"p50 {statistics.median(ordered):.1f} ms, p95 {late:.1f} ms, gRPC and the embeddings included")
    print(f"the first {RANKS[0]} were found by:", ", ".join(f"{way} {count}" for way, count in sorted(ways.items())))


if __name__ == "__main__":
    raise SystemExit(main())
