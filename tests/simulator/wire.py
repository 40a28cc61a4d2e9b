"""The API without the SDK: raw bodies, so that strictness is checked on what was really sent."""

from typing import Any

import httpx2

from tests.simulator.strict import EVENT, check


class Wire:
    """One client of the API."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def post(self, path: str, **body: Any) -> httpx2.Response:
        return await self.http.post(path, json=body)

    async def stream(self, path: str, **body: Any) -> list[tuple[str | None, str]]:
        """The (event, data) pairs of a whole stream."""
        async with self.http.stream("POST", path, json={**body, "stream": True}) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            return frames((await reply.aread()).decode())

    async def events(self, **body: Any) -> list[Any]:
        """The events of a streamed response, each checked strictly, its name and its sequence number too."""
        received = await self.stream("responses", **body)
        parsed = [check(EVENT, data) for _, data in received]
        assert [name for name, _ in received] == [event.type for event in parsed]
        assert [event.sequence_number for event in parsed] == list(range(len(parsed)))
        return parsed


def frames(text: str) -> list[tuple[str | None, str]]:
    """The (event, data) pairs of an SSE text."""
    pairs = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        pairs.append((fields.get("event"), fields["data"]))
    return pairs
