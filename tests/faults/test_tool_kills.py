"""Chat killed between the change that a tool made and the reply that tells of it: the change is there once."""

import asyncio
import signal

import grpc
import pytest

from simulator.control import ScriptedAnswer, ScriptedCall
from tests.chat.service import text_of
from tests.chat.test_tasks import titles
from tests.faults.stand import Stand

USER = "0199aaaa-0000-7000-8000-000000000002"


async def until_added(stand: Stand) -> None:
    """Waits for the round after the call: by then the task is there."""
    for _ in range(300):
        if (await stand.simulator.control.status()).held:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the model was not asked again")


@pytest.mark.parametrize("background", ["on", "off"])
async def test_a_task_is_added_once_though_the_process_dies_before_the_reply(stand: Stand, background: str) -> None:
    await stand.simulator.control.script(
        ScriptedAnswer(function_calls=[ScriptedCall(name="add_task", arguments={"title": "Once"})]),
        ScriptedAnswer(text="Added it.", hold_after_tokens=1),
    )
    dying = await stand.start(OPENAI_BACKGROUND=background)
    user = dying.user(USER)
    stream = asyncio.create_task(user.stream("Add it", use_tasks=True, request_id="once"))
    await until_added(stand)
    # The provider's position is logged with the first text: from there the run is resumed.
    await asyncio.sleep(0.5)
    assert await titles(user) == ["Once"]
    dying.tell(signal.SIGKILL)
    await dying.exit_code()
    with pytest.raises(grpc.aio.AioRpcError):
        await stream
    await stand.simulator.control.release()
    other = await stand.start(OPENAI_BACKGROUND=background)
    # Without the provider's background mode the reply is closed as interrupted, and the next attempt asks the model anew.
    await stand.simulator.control.script(*([ScriptedAnswer(text="Added it.")] if background == "off" else []))
    events = await other.user(USER).stream("Add it", use_tasks=True, request_id="once")
    assert events[-1].WhichOneof("event") == "completed"
    assert text_of(events) == "Added it."
    told = [one.tool_call_finished.status for one in events if one.HasField("tool_call_finished")]
    assert told == ["succeeded"]
    assert await titles(other.user(USER)) == ["Once"]
