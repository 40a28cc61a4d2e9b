"""The RPCs by which memories leave and arrive: check, call, convert.

An export reads one snapshot while its reader takes it. A reader who takes no page for 20 seconds, or is not done within five
minutes, is cut off with DEADLINE_EXCEEDED: so none holds a connection, and the database's past, for ever.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.memory.records import Fact
from services.memory.transfer.conversion import record_of_fact, record_of_message, told
from services.memory.transfer.export_store import ExportLimits, ExportStore
from services.memory.transfer.import_store import ImportStore
from services.runtime.calls import Cutter, current_cutter, current_user_id
from services.runtime.errors import DeadlineExceeded

Context = grpc.aio.ServicerContext[Any, Any]


class TransferRpcs(memory_pb2_grpc.MemoryServiceServicer):
    """ExportMemories and ImportMemories."""

    _exports: ExportStore
    _imports: ImportStore

    async def ExportMemories(
        self, request: memory_pb2.ExportMemoriesRequest, context: Context
    ) -> AsyncIterator[memory_pb2.MemoryRecord]:
        end = memory_pb2.ExportEnd()
        with _patience(self._exports.limits) as patience:
            async with aclosing(self._exports.pages(current_user_id())) as pages:
                async for page in pages:
                    patience.renew()
                    for one in page:
                        if isinstance(one, Fact):
                            end.fact_count += 1
                            yield record_of_fact(one)
                        else:
                            end.message_count += 1
                            yield record_of_message(one)
            yield memory_pb2.MemoryRecord(end=end)

    async def ImportMemories(
        self, request: memory_pb2.ImportMemoriesRequest, context: Context
    ) -> memory_pb2.ImportMemoriesResponse:
        messages, facts = told(request.records)
        imported = await self._imports.take(current_user_id(), messages, facts)
        return memory_pb2.ImportMemoriesResponse(imported_facts=imported.facts, imported_messages=imported.messages)


class _Patience:
    """Cuts a call off that takes too long over a page, or over all of them."""

    def __init__(self, cutter: Cutter, limits: ExportLimits) -> None:
        self._loop = asyncio.get_running_loop()
        self._cutter = cutter
        self._page_seconds = limits.page_seconds
        self._end = self._loop.time() + limits.whole_seconds
        self._timer = self._loop.call_at(self._end, self._cut)

    def renew(self) -> None:
        """A page is to be taken from now on."""
        self._timer.cancel()
        self._timer = self._loop.call_at(min(self._end, self._loop.time() + self._page_seconds), self._cut)

    def cancel(self) -> None:
        """The call has ended."""
        self._timer.cancel()

    def _cut(self) -> None:
        self._cutter.cut(
            DeadlineExceeded(
                "The export was read too slowly. Begin again, over a faster connection.",
                reasons.ERROR_REASON_DEADLINE_PASSED,
            )
        )


@contextmanager
def _patience(limits: ExportLimits) -> Iterator[_Patience]:
    cutter = current_cutter()
    if cutter is None:
        raise RuntimeError("an export runs in a streaming call")
    patience = _Patience(cutter, limits)
    try:
        yield patience
    finally:
        patience.cancel()
