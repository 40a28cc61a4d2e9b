"""A suite whose Redis does not answer: it says so at the start, and goes on."""

import tempfile
from pathlib import Path

from tests.e2e.harness import Client, Suite, check_sequence, environment, generation_of, of_kind


async def test_a_suite_without_its_redis_starts_warns_and_answers() -> None:
    with tempfile.TemporaryDirectory(prefix="parley-e2e-", ignore_cleanup_errors=True) as folder:
        suite = await Suite.start(environment(Path(folder), REDIS_URL="redis://127.0.0.1:1/0"))
        try:
            assert [line for line in suite.output if line.startswith(b"WARNING: the Redis of REDIS_URL does not answer")]
            client = await Client(suite.url).register()
            events = await client.streamed("hello")
            check_sequence(events)
            # The first reply finds it out; the next one knows it from the start.
            told = [events[0].data["started"], *of_kind(events, "degraded")]
            assert told[-1]["resumable"] is False
            assert "log" in [part for one in told for part in one["degraded" if one is told[0] else "parts"]]
            # Afterwards it is in the database, as ever.
            assert await client.rest_of(generation_of(events)) == events
            await client.close()
        finally:
            assert await suite.stop() == 0
