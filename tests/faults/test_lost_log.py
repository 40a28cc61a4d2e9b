"""The log and the process that writes a reply are lost together: no reader is told another reply's events as its own."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from parley.chat.v1 import chat_pb2
from simulator.control import ScriptedAnswer, ScriptedCall
from suite.redis import start_redis
from tests.chat.service import checked, text_of
from tests.chat.test_tasks import titles
from tests.faults.stand import USER, Stand, soon


async def test_what_nobody_can_read_on_is_closed_and_the_repeat_goes_on_after_the_tools(
    stand: Stand, tmp_path: Path
) -> None:
    redis = await start_redis(tmp_path / "redis")
    if not redis.is_real:
        await redis.stop()
        pytest.skip("fakeredis forgets its port")
    settings = {"REDIS_URL": redis.url, "REDIS_RETRY_SECONDS": "0.2", "OPENAI_BACKGROUND": "on"}
    asked: dict[str, Any] = {"use_tasks": True, "request_id": "one"}
    await stand.simulator.control.script(
        ScriptedAnswer(text="Adding it.", function_calls=[ScriptedCall(name="add_task", arguments={"title": "Once"})]),
        ScriptedAnswer(text="one two three four five six", hold_after_tokens=3),
        ScriptedAnswer(text="Something quite different.", times=2),
    )
    first, second = await asyncio.gather(stand.start(**settings), stand.start(**settings))
    events: list[chat_pb2.CompletionEvent] = []
    call = first.user(USER).open_stream("Add it", **asked)
    async for event in call:
        events.append(event)
        if text_of(events).endswith("three"):
            break
    # Signs of life tell the database how far the reply is.
    await asyncio.sleep(0.5)
    await redis.stop()
    first.tell(signal.SIGKILL)
    await first.exit_code()
    redis = await start_redis(tmp_path / "redis")
    try:
        user = second.user(USER)
        generation_id = events[0].started.generation_id

        async def is_closed() -> bool:
            asked = chat_pb2.GetGenerationRequest(generation_id=generation_id)
            found = await user.chat.GetGeneration(asked, metadata=user.metadata, timeout=10)
            return bool(found.status != "running")

        await soon(is_closed, within_seconds=10)
        rest = chat_pb2.SubscribeGenerationRequest(generation_id=generation_id, after_sequence=events[-1].sequence)
        read_on = [one async for one in user.chat.SubscribeGeneration(rest, metadata=user.metadata, timeout=10)]
        assert text_of(read_on) == ""
        again = checked([one async for one in user.open_stream("Add it", **asked)])
        assert again[0].started.generation_id != generation_id
        assert again[-1].completed.message.text == text_of(again) == "Adding it.\n\nSomething quite different."
        assert await titles(user) == ["Once"]
    finally:
        await redis.stop()
        await stand.simulator.control.release()
