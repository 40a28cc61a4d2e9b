"""The statement that begins a new turn, and what it is given.

Owns one statement for all that the beginning of a turn writes: the conversation (created, or locked and grown), the messages
and the generation. It returns no row, and writes nothing, when the conversation is not there.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from services.chat.turn_end import as_driver_text

_OPENED: Final = "returning id, user_id, message_count, rewritten_sequence, rewritten_revision"
_CREATED: Final = (
    "insert into conversations (id, user_id, title, message_count, last_message_time, kind)"
    " values (cast(:conversation_id as uuid), cast(:user_id as uuid), :title, :count, now(), :kind)"
)
_GROWN: Final = (
    "update conversations set message_count = message_count + :count, last_message_time = now(), update_time = now(),"
    " title = case when is_titled_by_user or title <> '' then title else :title end"
    " where id = cast(:conversation_id as uuid) and user_id = cast(:user_id as uuid)"
)
# The reply is the last of the messages; the metadata are those of the one before it.
_REST: Final = (
    " spoken as (insert into messages (id, user_id, conversation_id, sequence, role, text, metadata, status, model,"
    "  generation_id)"
    "  select said.id, opened.user_id, opened.id, opened.message_count - :count + said.place, said.role, said.text,"
    "  case when said.place = :count - 1 then cast(:metadata as jsonb) else '{}' end,"
    "  case when said.place = :count then 'generating' else 'complete' end,"
    "  case when said.place = :count then :model end,"
    "  case when said.place = :count then cast(:generation_id as uuid) end"
    "  from opened, unnest(cast(:message_ids as uuid[]), cast(:roles as text[]), cast(:texts as text[]))"
    "  with ordinality as said (id, role, text, place)),"
    " begun as (insert into generations (id, user_id, conversation_id, user_message_id, reply_message_id, request_id,"
    "  request_digest, attempt, model, options, sealed_secrets, owner, lease_expire_time)"
    "  select cast(:generation_id as uuid), user_id, id, cast(:user_message_id as uuid), cast(:reply_id as uuid),"
    "  :request_id, :request_digest, 1, :model, cast(:options as jsonb), :sealed_secrets, :owner,"
    "  now() + make_interval(secs => :lease_seconds) from opened)"
    " select message_count, now(), rewritten_sequence, rewritten_revision from opened"
)
BEGIN_CREATING: Final = as_driver_text(f"with opened as ({_CREATED} {_OPENED}),{_REST}")
"""Begins a turn in a conversation that begins with it; takes `beginning_values`."""
BEGIN_GROWING: Final = as_driver_text(f"with opened as ({_GROWN} {_OPENED}),{_REST}")
"""Begins a turn in a conversation of the user's; takes `beginning_values`."""


def beginning_values(
    said: Sequence[tuple[str, str]], ids: Sequence[str], *, metadata: Mapping[str, str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What the statements take of the messages: those that are said, with their ids and that of the reply."""
    return {
        "count": len(ids),
        "message_ids": list(ids),
        "roles": [*(role for role, _ in said), "assistant"],
        "texts": [*(text for _, text in said), ""],
        "user_message_id": ids[-2],
        "reply_id": ids[-1],
        "metadata": orjson.dumps(dict(metadata)).decode(),
        "options": orjson.dumps(dict(options)).decode(),
    }
