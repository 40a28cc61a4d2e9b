"""The README's commands, run as they stand there."""

import asyncio
import re
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.harness import Suite, environment
from tests.suite_process import ROOT

EDGE = "http://127.0.0.1:8080"
PAPERS = ("README.md", "CONTRIBUTING.md", "AGENTS.md", "docs/decisions.md", "docs/memory.md", "docs/sms.md")


def first_words(readme: Path) -> str:
    """The block of commands that holds a conversation."""
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", readme.read_text(), re.DOTALL)
    return next(block for block in blocks if block.startswith(f"EDGE={EDGE}"))


@pytest.fixture
async def as_it_comes(tmp_path: Path) -> AsyncIterator[Suite]:
    """A suite with the limits that it has by default, which the other tests do not."""
    settings = {name: value for name, value in environment(tmp_path).items() if not name.startswith("LIMIT_")}
    suite = await Suite.start(settings)
    yield suite
    assert await suite.stop() == 0


async def test_the_first_words_hold_a_conversation(as_it_comes: Suite) -> None:
    script = first_words(ROOT / "README.md").replace(EDGE, as_it_comes.url)
    shell = await asyncio.create_subprocess_exec("bash", "-euo", "pipefail", "-c", script, stdout=PIPE, stderr=STDOUT)
    said = (await asyncio.wait_for(shell.communicate(), 60))[0].decode()
    assert shell.returncode == 0, said
    assert '"completed":{' in said
    assert "Your name is Ana." in said
    assert '"tool":"add_task"' in said
    assert '"title":"buy groceries"' in said
    assert "Your favourite tea is genmaicha." in said
    assert '"found_by":[' in said
    history = said.partition("The user lives in Porto.")[2]
    assert '"text":"The user lives in Lisbon."' in history
    assert '{"end":{"message_count":' in history
    assert '"deleted_facts":' in history
    # The rest of a stream begins behind the event that was named.
    assert "id: 3\ndata: " in said.partition("buy groceries")[2]
    assert '"citation":{"url":"https://news.example.com/search+the+web+for+seals"' in said
    assert '"message_count":6' in said
    assert said.endswith(('{"deleted_messages":6}\n', '{"deleted_messages":8}\n'))


def test_make_names_every_target_that_the_papers_name() -> None:
    papers = "".join((ROOT / name).read_text() for name in PAPERS)
    told = set(re.findall(r"(?:^ *|`|&& )make ([a-z][a-z-]+)", papers, re.MULTILINE))
    known = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert told <= known
