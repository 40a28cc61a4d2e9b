"""The layouts that are known by name: where the five earlier systems keep what, as a mapping file would say it.

All five are FastAPI with SQLAlchemy. Their releases name tables and columns differently, so that each place lists the names
that it may have, the likeliest first; `parley import --dry-run` says which were found. Whatever differs more is said by
`--mapping`, which goes over these place by place.
"""

from collections.abc import Mapping
from typing import Any, Final

_CREATED: Final = ["created_at", "create_time", "created", "createdat", "date_created", "timestamp"]
_UPDATED: Final = ["updated_at", "update_time", "updated", "updatedat", "last_updated", "modified_at"]
_OWNER: Final = ["user_id", "owner_id", "userid", "user", "owner"]
_CONVERSATION: Final = ["conversation_id", "session_id", "chat_id", "thread_id", "chat_session_id"]

_USERS: Final = {
    "table": ["users", "user", "accounts"],
    "columns": {
        "id": ["id", "user_id", "uuid"],
        "username": ["username", "user_name", "login"],
        "email": ["email", "email_address"],
        "password_hash": ["hashed_password", "password_hash", "hashed_pw", "password_digest", "password"],
        "is_active": ["is_active", "active", "enabled"],
        "is_admin": ["is_admin", "is_superuser", "admin", "role"],
        "create_time": [*_CREATED, "date_joined", "registered_at"],
    },
}
_CONVERSATIONS: Final = {
    "table": ["conversations", "conversation", "chat_sessions", "sessions", "chats", "threads"],
    "columns": {
        "id": ["id", *_CONVERSATION, "uuid"],
        "user": _OWNER,
        "title": ["title", "name", "subject"],
        "create_time": [*_CREATED, "started_at"],
        "update_time": [*_UPDATED, "last_activity", "ended_at"],
    },
}
_MESSAGE_COLUMNS: Final = {
    "id": ["id", "message_id", "uuid"],
    "conversation": _CONVERSATION,
    "user": _OWNER,
    "create_time": [*_CREATED, "sent_at", "date"],
    "order": ["sequence", "position", "message_index", "turn", "seq"],
    "model": ["model", "model_name", "model_used"],
    "input_tokens": ["input_tokens", "prompt_tokens", "tokens_in"],
    "output_tokens": ["output_tokens", "completion_tokens", "tokens_out"],
}
# A message a row, or what was said and what was answered in one.
_MESSAGE_ROWS: Final = {
    "role": ["role", "sender", "message_type", "type", "author"],
    "text": ["content", "text", "message", "body", "message_text"],
}
_PAIRS: Final = {
    "prompt": ["user_message", "user_text", "user_input", "input_text", "prompt", "question", "query", "message"],
    "reply": ["assistant_message", "bot_response", "ai_response", "assistant_response", "response_text", "response",
              "reply", "answer"],
    "reply_time": ["responded_at", "response_time", "replied_at"],
}  # fmt: skip
_MESSAGES: Final = {
    "table": ["messages", "message", "chat_messages", "conversation_messages", "chat_history", "message_history", "history"],
    "columns": {**_MESSAGE_COLUMNS, **_MESSAGE_ROWS, **_PAIRS},
}
_TASKS: Final = {
    "table": ["tasks", "task", "todos", "todo", "todo_items"],
    "columns": {
        "id": ["id", "task_id", "uuid"],
        "user": _OWNER,
        "title": ["title", "name", "task", "text"],
        "description": ["description", "details", "notes", "body"],
        "done": ["completed", "is_completed", "complete", "is_complete", "done", "is_done", "status"],
        "due_time": ["due_date", "due_at", "due_time", "due", "deadline"],
        "complete_time": ["completed_at", "complete_time", "done_at"],
        "create_time": _CREATED,
        "update_time": _UPDATED,
    },
}
_PREFERENCES: Final = {
    "table": ["user_preferences", "preferences", "user_settings", "users"],
    "columns": {
        "user": ["user_id", "userid", "id"],
        "language": ["language", "preferred_language", "locale"],
        "tts_voice": ["tts_voice", "voice", "preferred_voice", "voice_id"],
        "auto_reply_enabled": ["auto_reply_enabled", "auto_reply", "sms_auto_reply", "auto_reply_sms"],
        "notifications_enabled": ["notifications_enabled", "notifications", "enable_notifications"],
        "conversation_timeout_seconds": ["conversation_timeout_seconds", "conversation_timeout", "session_timeout"],
        "model": ["model", "preferred_model"],
        "reasoning_effort": ["reasoning_effort"],
        "memory_enabled": ["memory_enabled", "enable_memory"],
        "instructions": ["instructions", "system_prompt", "custom_instructions"],
    },
}
_B_USERS: Final = {
    **_USERS,
    "columns": {**_USERS["columns"], "username": ["username", "user_name", "login", "name"]},  # type: ignore[dict-item]
}
# Turns of one user without a silence of half an hour between them are one conversation, as they were to the user.
_B_TURNS: Final = {
    "table": ["conversations", "conversation", "conversation_history", "conversation_logs", "messages"],
    "silence_seconds": 1800,
    "kind": "spoken",
    "columns": {**_MESSAGE_COLUMNS, **_MESSAGE_ROWS, **_PAIRS},
}
_D_USERS: Final = {
    **_B_USERS,
    # Users of Better Auth are called by a display name; their passwords are no bcrypt and stand in another table.
    "table": ["users", "user"],
}

LAYOUTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "mobile-assistant": {
        "users": _USERS,
        "conversations": _CONVERSATIONS,
        "messages": _MESSAGES,
        "required": ["password_hash"],
        "optional": ["conversations"],
    },
    "conversation-sms": {
        "users": _B_USERS,
        "preferences": _PREFERENCES,
        "messages": _B_TURNS,
        "optional": ["preferences"],
    },
    "memory-chatbot": {
        "users": _USERS,
        "conversations": _CONVERSATIONS,
        "messages": _MESSAGES,
        "required": ["password_hash"],
        "optional": ["conversations"],
    },
    "todo-agent": {
        "users": _D_USERS,
        "conversations": _CONVERSATIONS,
        "messages": _MESSAGES,
        "tasks": _TASKS,
    },
    "small-chatbot": {
        "users": _USERS,
        "conversations": _CONVERSATIONS,
        "messages": _MESSAGES,
        "required": ["password_hash"],
    },
    "other": {},
}
"""A mapping for each system; `other` has none and takes all of it from `--mapping`."""

ROLES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("user", "human", "customer", "client"), "user"),
    **dict.fromkeys(("assistant", "ai", "bot", "model", "agent", "chatbot"), "assistant"),
    # Not loaded: what the system was told is `instructions` here, and what its tools said is part of no message.
    **dict.fromkeys(("system", "developer", "tool", "function"), ""),
}
