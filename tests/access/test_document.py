"""Generated requests against the OpenAPI document, through the edge: no 500, no hang, every answer as the document says.

PARLEY_TEST_REQUESTS=2000 sends about so many of each kind; `make fuzz` does.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.access.world import World

REQUESTS = int(os.environ.get("PARLEY_TEST_REQUESTS", "150"))
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "response_headers_conformance"),
)
REQUEST_SECONDS = 20
# Never ends by itself; tests/gateway/test_streams.py and tests/chat/test_task_watch.py have it.
ENDLESS = {"/api/v1/tasks:watch"}
# After these the identity is no good any more, and what follows would test nothing.
LAST_CALLS = {"/api/v1/auth/logout", "/api/v1/auth/password"}


async def paths(world: World) -> dict[str, list[str]]:
    """The document's paths, with their methods."""
    document = (await world.http.get("/openapi.json")).json()
    return {path: [verb for verb in item if verb in {"get", "post", "put", "patch", "delete"}]
            for path, item in document["paths"].items()}  # fmt: skip


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("who", ["nobody", "a user", "an administrator"])
async def test_generated_requests_are_answered_as_the_document_says(world: World, tmp_path: Path, who: str) -> None:
    person = {"a user": await world.register(), "an administrator": await world.make_admin()}.get(who)
    found = await paths(world)
    skipped = ENDLESS | (LAST_CALLS if person else set())
    operations = sum(len(verbs) for path, verbs in found.items() if path not in skipped)
    report = tmp_path / "report.json"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"{world.suite.url}/openapi.json"),
        *("--url", world.suite.url, "--checks", ",".join(CHECKS), "--phases", "fuzzing", "--seed", "1", "--no-shrink"),
        *("--max-examples", str(max(1, -(-REQUESTS // operations))), "--request-timeout", str(REQUEST_SECONDS)),
        *("--generation-database", "none", "--suppress-health-check", "all", "--continue-on-failure", "--warnings", "off"),
        *("--report", "json", "--report-json-path", str(report)),
        *(part for path in sorted(skipped) for part in ("--exclude-path", path)),
    ]
    if person:
        command += ["--header", f"Authorization:Bearer {person.token}"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said[-12_000:]
    print(f"{who}: {json.loads(report.read_text()).get('summary')}")  # noqa: T201 - what `make fuzz` is run for
    if person:
        me = await world.http.get("/api/v1/auth/me", headers=dict(person.headers))
        assert me.status_code == 200, "the identity was good to the end"
