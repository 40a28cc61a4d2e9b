"""RPCs that are on their way. Gone when they are there."""

from typing import Any, Never

from parley.memory.v1 import memory_pb2_grpc


class Unfinished(memory_pb2_grpc.MemoryServiceServicer):
    """Each engineer deletes the lines of the RPCs that stand elsewhere now."""

    async def _unfinished(self, request: Any, context: Any) -> Never:
        raise NotImplementedError

    async def _unfinished_stream(self, request: Any, context: Any) -> Any:
        raise NotImplementedError
        yield

    SearchMemories = _unfinished
    GetSummary = _unfinished
    DeleteMemories = _unfinished
    AddMemory = _unfinished
    ListMemories = _unfinished
    GetMemory = _unfinished
    UpdateMemory = _unfinished
    DeleteMemory = _unfinished
    ListMemoryHistory = _unfinished
    ExportMemories = _unfinished_stream
    ImportMemories = _unfinished
