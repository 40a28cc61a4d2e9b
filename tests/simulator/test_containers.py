"""The code interpreter's containers: kept by name, expired, never there."""

from typing import Any

import pytest

from simulator.answers import CodeRun
from simulator.containers import Containers
from simulator.control import Control
from simulator.errors import ApiError
from tests.simulator.strict import RESPONSE, check
from tests.simulator.wire import Wire

ASK = "calculate 2 + 2"


def tool(container: Any) -> dict[str, Any]:
    return {"type": "code_interpreter", "container": container}


async def run(wire: Wire, container: Any, **body: Any) -> Any:
    reply = await wire.post("responses", model="m", input=ASK, tools=[tool(container)], **body)
    return check(RESPONSE, reply.content).output[0]


async def test_a_container_is_used_again_by_its_id(wire: Wire) -> None:
    first = await run(wire, {"type": "auto"})
    assert first.container_id.startswith("cntr_")
    assert (await run(wire, first.container_id)).container_id == first.container_id
    assert (await run(wire, {"type": "auto"})).container_id != first.container_id


async def test_an_expired_container_is_refused_as_tool_and_as_item(wire: Wire, control: Control) -> None:
    call = await run(wire, {"type": "auto"})
    said: list[Any] = [{"role": "user", "content": ASK}, call.model_dump(mode="json"), {"role": "user", "content": ASK}]
    assert (await wire.post("responses", model="m", input=said)).status_code == 200
    assert await control.expire_containers() >= 1
    for body in ({"input": said}, {"input": ASK, "tools": [tool(call.container_id)]}):
        reply = await wire.http.post("responses", json={"model": "m", **body})
        assert (reply.status_code, reply.json()["error"]["message"]) == (400, "Container is expired.")
    assert (await run(wire, {"type": "auto"})).container_id != call.container_id


async def test_a_container_that_never_was_is_not_found(wire: Wire) -> None:
    reply = await wire.http.post("responses", json={"model": "m", "input": ASK, "tools": [tool("cntr_none")]})
    assert (reply.status_code, "cntr_none" in reply.json()["error"]["message"]) == (404, True)


def test_only_so_many_are_remembered() -> None:
    containers = Containers(limit=2)
    answers = [containers.assign((CodeRun("1", "1"),), ()) for _ in range(3)]
    ids = [item.container_id for answer in answers for item in answer if isinstance(item, CodeRun)]
    containers.check([tool(ids[2])], [])
    with pytest.raises(ApiError):
        containers.check([tool(ids[0])], [])
