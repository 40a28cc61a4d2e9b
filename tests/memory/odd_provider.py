"""A server of embeddings that answers as a test says, on a real socket: the simulator keeps to the API."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Answer = Callable[[Json], tuple[int, Any]]


@dataclass
class OddProvider:
    """`answer` makes status and body out of a request's body, JSON or a page in bytes; `asked` are the bodies that came."""

    answer: Answer
    base_url: str = ""
    asked: list[Json] = field(default_factory=list)
    answering: set["asyncio.Task[Any]"] = field(default_factory=set)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.answering.add(task)
        task.add_done_callback(self.answering.discard)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            self.asked.append(body)
            status, answered = self.answer(body)
            kind = "text/html" if isinstance(answered, bytes) else "application/json"
            payload = answered if isinstance(answered, bytes) else json.dumps(answered).encode()
            writer.write(
                f"HTTP/1.1 {status} Odd\r\ncontent-type: {kind}\r\ncontent-length: {len(payload)}\r\n"
                "connection: close\r\n\r\n".encode()
            )
            writer.write(payload)
            await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def listed(*vectors: Any) -> Json:
    """An answer of such vectors, in order."""
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"object": "list", "model": "odd", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


@asynccontextmanager
async def odd_provider(answer: Answer) -> AsyncIterator[OddProvider]:
    provider = OddProvider(answer)
    server = await asyncio.start_server(provider.handle, "127.0.0.1", 0)
    async with server:
        provider.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        yield provider
    # The server waits for none of them; what is left open when the loop ends would be told of in some other test.
    if provider.answering:
        await asyncio.wait(provider.answering, timeout=5)
