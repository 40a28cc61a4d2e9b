"""Whether the user wants text messages, as a tool of the model.

Owns what the tool says. Invariants: it is about the number of the user whose turn it is and no other; saying it again
changes nothing; sms that does not answer costs the turn that call and nothing else.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.model.request import FunctionSpec
from services.chat.options import ReplyOptions
from services.chat.sms.client import SmsClient
from services.chat.tools.tool import Invocation, Toolbox, ToolError
from services.runtime.errors import DeadlineExceeded, ServiceError, Unavailable

SET_TEXT_MESSAGES: Final = FunctionSpec(
    "set_text_messages",
    "Ends text messages (SMS) to the user, or lets them come again: only when the user asks for that.",
    {
        "type": "object",
        "properties": {"wanted": {"type": "boolean", "description": "false: send the user no text messages any more."}},
        "required": ["wanted"],
        "additionalProperties": False,
    },
    # Offered by ourselves, whoever asks: a model that takes no functions is asked without.
    is_optional=True,
)


class SetTextMessages:
    """The tool. A call says what holds from now on: it may be run again."""

    spec = SET_TEXT_MESSAGES
    tool = SET_TEXT_MESSAGES.name
    server_label = ""
    needs_approval = False
    is_exactly_once = True

    def __init__(self, sms: SmsClient) -> None:
        self._sms = sms

    async def run(self, arguments: Mapping[str, Any], invocation: Invocation) -> str:  # noqa: ARG002 - of who calls
        """What holds now, as JSON. Raises ToolError."""
        try:
            is_opted_out = await self._sms.set_consent(is_opted_out=not arguments["wanted"])
        except (Unavailable, DeadlineExceeded) as error:
            raise ToolError("Text messages cannot be set now. Tell the user to try again, or to text STOP.") from error
        except ServiceError as error:
            if error.reason == reasons.ERROR_REASON_PHONE_NOT_VERIFIED:
                raise ToolError("The user has no verified phone number, so that no text messages go there.") from error
            raise ToolError(error.message) from error
        return orjson.dumps({"text_messages_wanted": not is_opted_out}).decode()


class SmsTools:
    """The tools of every reply, by whatever way the user speaks."""

    def __init__(self, sms: SmsClient) -> None:
        self._toolbox = Toolbox([SetTextMessages(sms)])

    @asynccontextmanager
    async def open(self, user_id: str, options: ReplyOptions) -> AsyncIterator[Toolbox]:  # noqa: ARG002 - always
        """The one tool."""
        yield self._toolbox
