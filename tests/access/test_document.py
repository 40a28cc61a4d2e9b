"""Generated requests against the OpenAPI document, through the edge: no 500, no hang, every answer as the document says.

PARLEY_TEST_REQUESTS says how many are sent at least as each of nobody, a user and an administrator; `make fuzz` sends 2,000.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.access.conftest import running_world
from tests.access.world import Person, World

REQUESTS = int(os.environ.get("PARLEY_TEST_REQUESTS", "150"))
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "response_headers_conformance"),
)
REQUEST_SECONDS = 20
# Never ends by itself; tests/gateway/test_streams.py and tests/chat/test_task_watch.py have it.
ENDLESS = ("/api/v1/tasks:watch",)
# What may end the session or the account that calls, after which everything is refused: asked by somebody of their own. The
# requests name what earlier answers named.
LAST_CALLS = (
    *("/api/v1/auth/logout", "/api/v1/auth/password", "/api/v1/auth/sessions/{session_id}"),
    *("/api/v1/users/{user_id}", "/api/v1/admin/users/{user_id}"),
)
VERBS = ("get", "post", "put", "patch", "delete")


async def operations(world: World) -> dict[str, int]:
    """How many operations each path of the document has."""
    document = (await world.http.get("/openapi.json")).json()
    return {path: sum(verb in item for verb in VERBS) for path, item in document["paths"].items()}


async def generated(
    world: World, folder: Path, person: Person | None, paths: Sequence[str], *, each: int
) -> Mapping[str, Any]:
    """The report on `each` requests to every operation of these paths. Whatever is not as documented fails."""
    report = folder / "report.json"
    # It would register and sign in by itself, and nobody would be somebody.
    (folder / "schemathesis.toml").write_text("[auth]\nauto-signup = false\n")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"{world.suite.url}/openapi.json"),
        *("--url", world.suite.url, "--checks", ",".join(CHECKS), "--phases", "fuzzing", "--no-shrink", "--warnings", "off"),
        *("--max-examples", str(each), "--request-timeout", str(REQUEST_SECONDS), "--suppress-health-check", "all"),
        *("--generation-database", "none", "--report", "json", "--report-json-path", str(report), "--continue-on-failure"),
        *(part for path in paths for part in ("--include-path", path)),
    ]
    if person is not None:
        command += ["--header", f"Authorization:Bearer {person.token}"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said[-12_000:]
    found: dict[str, Any] = json.loads(report.read_text())
    assert found["operations"]["tested"] == found["operations"]["selected"] > 0
    return found


async def nobody(_world: World) -> None:
    """Without identity."""


PEOPLE: Mapping[str, Callable[[World], Awaitable[Person | None]]] = {
    "nobody": nobody,
    "a user": lambda world: world.register(),
    "an administrator": lambda world: world.make_admin(),
}


@pytest.fixture(scope="module")
async def world() -> AsyncIterator[World]:
    """Its own: an administrator's generated requests may delete anybody whom an answer has named."""
    async with running_world() as made:
        yield made


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("who", PEOPLE)
async def test_generated_requests_are_answered_as_the_document_says(world: World, tmp_path: Path, who: str) -> None:
    known = await operations(world)
    # What has no parameters is not asked as often.
    each = -(-2 * REQUESTS // sum(known.values()))
    lasting = sorted(path for path in known if path not in {*ENDLESS, *LAST_CALLS})
    person = await PEOPLE[who](world)
    found = await generated(world, tmp_path, person, lasting, each=each)
    answered = sum(any(phase["accepted"] for phase in one.values()) for one in found["valid_rates"].values())
    if person is not None:
        me = await world.http.get("/api/v1/auth/me", headers=dict(person.headers))
        assert me.status_code == 200, "the identity was good to the end"
    last = await generated(world, tmp_path, await PEOPLE[who](world), sorted(set(LAST_CALLS) & known.keys()), each=each)
    sent = sum(one["test_cases"]["generated"] for one in (found, last))
    assert sent >= REQUESTS
    print(f"as {who}: {sent} requests, {len(lasting)} paths, {answered} operations with answers")  # noqa: T201 - for `make fuzz`
