"""The verbs of tasks as tools of the model, exactly once a call."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from services.chat.model.request import FunctionSpec
from services.chat.options import ReplyOptions
from services.chat.tasks.verbs import TaskActions, TaskVerb
from services.chat.tools.call_store import CallKey
from services.chat.tools.tool import Invocation, Toolbox


class TaskTool:
    """One verb as a tool. Its change and the result of the call are one transaction."""

    server_label: Final = ""
    needs_approval: Final = False
    is_exactly_once: Final = True

    def __init__(self, verb: TaskVerb) -> None:
        self._verb = verb
        self.spec: Final[FunctionSpec] = verb.spec
        self.tool: Final[str] = verb.spec.name

    async def run(self, arguments: Mapping[str, Any], invocation: Invocation) -> str:
        """The result as JSON. Raises ToolError."""
        call = CallKey(invocation.generation_id, invocation.call_id)
        return await self._verb.run(arguments, user_id=invocation.user_id, call=call)


class TaskTools:
    """The tools of replies that may use tasks."""

    def __init__(self, actions: TaskActions) -> None:
        self._toolbox = Toolbox([TaskTool(verb) for verb in actions.verbs])

    @asynccontextmanager
    async def open(self, user_id: str, options: ReplyOptions) -> AsyncIterator[Toolbox]:  # noqa: ARG002 - asked for each call
        """The five tools where the options ask for them."""
        yield self._toolbox if options.use_tasks else Toolbox(())
