"""How each RPC is asked well, and what somebody else is told who asks the same. An RPC that is added needs its line here.

A request is JSON; `{thing}` stands for the id of something of the owner that is made for the call (things.py), and `{new}` for
a word that was never used. `others` says what another user is told who sends the very same request:

    NOT_FOUND   it names something of the owner, which is not there for them
    FORBIDDEN   it names the owner
    THEIRS      it names nobody: they are answered about their own things, and nothing of the owner's is in it

(or other codes, or `ANY` where it depends on what they did before; nothing of the owner's is ever in it).

`good` are the codes that the owner may get: those with which the handler was reached. `shows` is what the owner's answer
must hold, so that its absence in another's means something.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NOT_FOUND, FORBIDDEN, THEIRS = "NOT_FOUND", "PERMISSION_DENIED", "OK"


@dataclass(frozen=True)
class Line:
    """One RPC."""

    request: Mapping[str, Any] = field(default_factory=dict)
    others: str = THEIRS
    good: frozenset[str] = frozenset({"OK"})
    shows: str = ""
    as_user: bool = True
    """For services: whether they call for a user."""


def _line(request: Mapping[str, Any] | None = None, others: str = THEIRS, *, good: str = "OK", shows: str = "",
          as_user: bool = True) -> Line:  # fmt: skip
    return Line(request or {}, others, frozenset(good.split()), shows, as_user)


TURN = {
    "message_id": "{uuid}", "sequence": 1, "role": "user", "text": "Hello {marker}", "create_time": "2024-01-01T00:00:00Z",
}  # fmt: skip
_OPEN_STREAM = "OK DEADLINE_EXCEEDED"
# Only auth may, which makes its own tokens: any other service is refused by the handler. The service's own tests call as auth.
_AUTH_ALONE = "PERMISSION_DENIED"

TABLE: dict[str, Line] = {
    # auth
    "parley.auth.v1.AuthService.ChangePassword": _line({"current_password": "{password}", "new_password": "another {new}"},
                                                       others="UNAUTHENTICATED RESOURCE_EXHAUSTED"),
    "parley.auth.v1.AuthService.GetJwks": _line(),
    "parley.auth.v1.AuthService.GetMe": _line(shows="{owner}"),
    "parley.auth.v1.AuthService.ListSessions": _line(shows="{session}"),
    "parley.auth.v1.AuthService.Login": _line({"username": "{username}", "password": "{password}"}),
    "parley.auth.v1.AuthService.Logout": _line(),
    "parley.auth.v1.AuthService.RefreshTokens": _line({"refresh_token": "{refresh_token}"}),
    "parley.auth.v1.AuthService.Register": _line({"username": "{new}", "email": "{new}@example.com", "password": "long {new}"}),
    "parley.auth.v1.AuthService.RevokeSession": _line({"session_id": "{session}"}, NOT_FOUND),
    "parley.auth.v1.AuthService.SetPassword": _line({"token": "none", "new_password": "long {new}"},
                                                    good="UNAUTHENTICATED INVALID_ARGUMENT NOT_FOUND FAILED_PRECONDITION"),
    "parley.auth.v1.AuthService.StartPhoneVerification": _line({"phone_number": "{phone}"}, good="OK UNAVAILABLE"),
    "parley.auth.v1.AuthService.VerifyCredentials": _line(shows="{owner}"),
    "parley.auth.v1.AuthService.VerifyPhone": _line({"code": "123456"}, others="ANY",
                                                    good="INVALID_ARGUMENT NOT_FOUND FAILED_PRECONDITION PERMISSION_DENIED"),
    "parley.auth.v1.TokenService.ExchangeForUser": _line({"user_id": "{owner}", "audience": "memory"}, as_user=False),
    "parley.auth.v1.TokenService.IssueServiceToken": _line(
        {"workload": "chat", "credential": "{credential}", "audience": "memory"}
    ),
    "parley.auth.v1.TokenService.WatchEndedSessions": _line(good=_OPEN_STREAM, as_user=False),
    "parley.auth.v1.UserService.CreatePasswordToken": _line({"user_id": "{owner}"}),
    "parley.auth.v1.UserService.CreatePreferences": _line({"user_id": "{owner}", "preferences": {"language": "pt"}}, FORBIDDEN),
    "parley.auth.v1.UserService.CreateUser": _line({"username": "{new}", "email": "{new}@example.com"}),
    "parley.auth.v1.UserService.DeletePreferences": _line({"user_id": "{owner}"}, FORBIDDEN),
    "parley.auth.v1.UserService.DeleteUser": _line({"user_id": "{owner}"}, FORBIDDEN),
    "parley.auth.v1.UserService.FindUserByPhone": _line({"phone_number": "{phone}"}, good="NOT_FOUND PERMISSION_DENIED", as_user=False),
    "parley.auth.v1.UserService.GetDeletion": _line({"user_id": "{owner}"}, good="OK NOT_FOUND"),
    "parley.auth.v1.UserService.GetPreferences": _line({"user_id": "{owner}"}, FORBIDDEN),
    "parley.auth.v1.UserService.GetUser": _line({"user_id": "{owner}"}, FORBIDDEN, shows="{owner}"),
    "parley.auth.v1.UserService.ListAuditEvents": _line(),
    "parley.auth.v1.UserService.ListUsers": _line(),
    "parley.auth.v1.UserService.UpdatePreferences": _line({"user_id": "{owner}", "preferences": {"language": "pt"}}, FORBIDDEN),
    "parley.auth.v1.UserService.UpdateUser": _line({"user_id": "{owner}", "user": {"username": "{new}"}}, FORBIDDEN),
    # chat
    "parley.chat.v1.AdminService.ListSessions": _line(),
    "parley.chat.v1.ChatService.CancelGeneration": _line({"generation_id": "{generation}"}, NOT_FOUND),
    "parley.chat.v1.ChatService.CreateCompletion": _line({"message": "Go on", "conversation_id": "{conversation}"}, NOT_FOUND),
    "parley.chat.v1.ChatService.EditMessage": _line(
        {"conversation_id": "{conversation}", "message_id": "{message}", "message": "Anew"}, NOT_FOUND
    ),
    "parley.chat.v1.ChatService.GetGeneration": _line({"generation_id": "{generation}"}, NOT_FOUND, shows="{generation}"),
    "parley.chat.v1.ChatService.GetUsage": _line(),
    "parley.chat.v1.ChatService.ProcessUtterance": _line({"text": "Go on", "conversation_id": "{conversation}"}, NOT_FOUND),
    "parley.chat.v1.ChatService.PurgeUser": _line({"user_id": "{uuid}"}, good=_AUTH_ALONE, as_user=False),
    "parley.chat.v1.ChatService.RegenerateReply": _line(
        {"conversation_id": "{conversation}", "message_id": "{reply}"}, NOT_FOUND
    ),
    "parley.chat.v1.ChatService.StreamCompletion": _line({"message": "Go on", "conversation_id": "{conversation}"}, NOT_FOUND),
    "parley.chat.v1.ChatService.SubscribeGeneration": _line({"generation_id": "{generation}"}, NOT_FOUND),
    "parley.chat.v1.ConversationService.CreateConversation": _line({"title": "Of mine"}),
    "parley.chat.v1.ConversationService.DeleteConversation": _line({"conversation_id": "{conversation}"}, NOT_FOUND),
    "parley.chat.v1.ConversationService.GetConversation": _line(
        {"conversation_id": "{conversation}"}, NOT_FOUND, shows="{conversation}"
    ),
    "parley.chat.v1.ConversationService.GetFullConversation": _line(
        {"conversation_id": "{conversation}"}, NOT_FOUND, shows="{message}"
    ),
    "parley.chat.v1.ConversationService.ListConversations": _line(shows="{conversation}"),
    "parley.chat.v1.ConversationService.ListMessages": _line({"conversation_id": "{conversation}"}, NOT_FOUND, shows="{message}"),
    "parley.chat.v1.ConversationService.ReadTurns": _line({"limit": 10}, shows="{message}"),
    "parley.chat.v1.ConversationService.SearchConversations": _line({"query": "{marker}"}, shows="{conversation}"),
    "parley.chat.v1.ConversationService.UpdateConversation": _line(
        {"conversation_id": "{conversation}", "title": "Anew"}, NOT_FOUND, shows="{conversation}"
    ),
    "parley.chat.v1.McpServerService.CreateMcpServer": _line({"label": "s{new}", "url": "http://127.0.0.1:9/mcp"}),
    "parley.chat.v1.McpServerService.DeleteMcpServer": _line({"mcp_server_id": "{mcp_server}"}, NOT_FOUND),
    "parley.chat.v1.McpServerService.GetMcpServer": _line({"mcp_server_id": "{mcp_server}"}, NOT_FOUND, shows="{mcp_server}"),
    "parley.chat.v1.McpServerService.ListMcpServers": _line(shows="{mcp_server}"),
    "parley.chat.v1.McpServerService.UpdateMcpServer": _line({"mcp_server_id": "{mcp_server}", "enabled": False}, NOT_FOUND),
    "parley.chat.v1.TaskService.CompleteTask": _line({"task_id": "{task}"}, NOT_FOUND, shows="{task}"),
    "parley.chat.v1.TaskService.CreateTask": _line({"title": "Of mine"}),
    "parley.chat.v1.TaskService.DeleteTask": _line({"task_id": "{task}"}, NOT_FOUND),
    "parley.chat.v1.TaskService.GetTask": _line({"task_id": "{task}"}, NOT_FOUND, shows="{task}"),
    "parley.chat.v1.TaskService.ListTasks": _line(shows="{task}"),
    "parley.chat.v1.TaskService.UpdateTask": _line({"task_id": "{task}", "title": "Anew"}, NOT_FOUND, shows="{task}"),
    "parley.chat.v1.TaskService.WatchTasks": _line(good=_OPEN_STREAM),
    # memory
    "parley.memory.v1.MemoryService.AddMemory": _line({"text": "The user likes {new}."}),
    "parley.memory.v1.MemoryService.AssembleContext": _line({"conversation_id": "{uuid}"}),
    "parley.memory.v1.MemoryService.DeleteMemories": _line({"conversation_id": "{uuid}"}),
    "parley.memory.v1.MemoryService.DeleteMemory": _line({"memory_id": "{memory}"}, NOT_FOUND),
    "parley.memory.v1.MemoryService.ExportMemories": _line(shows="{memory}"),
    "parley.memory.v1.MemoryService.GetMemory": _line({"memory_id": "{memory}"}, NOT_FOUND, shows="{memory}"),
    "parley.memory.v1.MemoryService.GetSummary": _line(),
    "parley.memory.v1.MemoryService.ImportMemories": _line(
        {"records": [{"fact": {"id": "{uuid}", "text": "The user knows {new}.", "record_time": "2024-01-01T00:00:00Z"}}]}
    ),
    "parley.memory.v1.MemoryService.InvalidateContext": _line({"conversation_id": "{uuid}"}),
    "parley.memory.v1.MemoryService.ListMemories": _line(shows="{memory}"),
    "parley.memory.v1.MemoryService.ListMemoryHistory": _line({"memory_id": "{memory}"}, NOT_FOUND),
    "parley.memory.v1.MemoryService.PurgeUser": _line({"user_id": "{uuid}"}, good=_AUTH_ALONE, as_user=False),
    "parley.memory.v1.MemoryService.RecordTurn": _line({"conversation_id": "{uuid}", "messages": [TURN]}),
    "parley.memory.v1.MemoryService.RecordTurns": _line(
        {"conversations": [{"user_id": "{owner}", "conversation_id": "{uuid}", "messages": [TURN]}]}, as_user=False
    ),
    "parley.memory.v1.MemoryService.SearchMemories": _line({"query": "{marker}"}, shows="{memory}"),
    "parley.memory.v1.MemoryService.UpdateMemory": _line({"memory_id": "{memory}", "importance": 3}, NOT_FOUND),
    # sms
    "parley.sms.v1.CallService.ListCalls": _line(shows="{call}"),
    "parley.sms.v1.CallService.ReceiveTwilioVoiceStatus": _line(),
    "parley.sms.v1.CallService.RecordCall": _line({"direction": "inbound", "phone_number": "{phone}"}),
    "parley.sms.v1.HistoryService.ListCallHistory": _line({"user_id": "{owner}"}, FORBIDDEN, shows="{call}"),
    "parley.sms.v1.HistoryService.ListConversationHistory": _line({"user_id": "{owner}"}, FORBIDDEN, shows="{message}"),
    "parley.sms.v1.HistoryService.ListHistory": _line({"user_id": "{owner}"}, FORBIDDEN, shows="{call}"),
    "parley.sms.v1.HistoryService.ListSmsHistory": _line({"user_id": "{owner}"}, FORBIDDEN, shows="{text_message}"),
    "parley.sms.v1.SmsService.DecideReply": _line({"text": "Will you come at six?"}),
    "parley.sms.v1.SmsService.GetMessage": _line({"message_id": "{text_message}"}, NOT_FOUND, shows="{text_message}"),
    "parley.sms.v1.SmsService.ListMessages": _line(shows="{text_message}"),
    "parley.sms.v1.SmsService.ListOptOuts": _line(),
    "parley.sms.v1.SmsService.PurgeUser": _line({"user_id": "{uuid}"}, good=_AUTH_ALONE, as_user=False),
    "parley.sms.v1.SmsService.ReceiveTwilioMessage": _line(),
    "parley.sms.v1.SmsService.ReceiveTwilioMessageStatus": _line({"message_id": "{uuid}"}),
    "parley.sms.v1.SmsService.ReceiveTwilioStatus": _line(),
    "parley.sms.v1.SmsService.SendMessage": _line({"phone_number": "{phone}", "text": "Hello {new}"}),
    "parley.sms.v1.SmsService.SendVerificationCode": _line(
        {"phone_number": "{phone}", "code": "123456", "request_id": "{uuid}", "user_id": "{owner}"},
        good=f"OK {_AUTH_ALONE}", as_user=False,
    ),
    "parley.sms.v1.SmsService.SetConsent": _line({"opted_out": False}, good="OK FAILED_PRECONDITION"),
}  # fmt: skip

USER, ADMIN, SERVICE, NOBODY = "user", "admin", "service", "nobody"
# Who may set each field of a request that writes: `user` the caller, for their own things; `admin` administrators alone; `service`
# another service alone; `nobody` what is answered and never taken. Tested: what is not the user's changes nothing when they try.
WRITERS = ("Create", "Update", "Add", "Set", "Register", "Change", "Import", "Complete", "Edit", "Regenerate")
ROLES: dict[str, dict[str, str]] = {
    "parley.auth.v1.AuthService.ChangePassword": dict.fromkeys(("current_password", "new_password"), USER),
    "parley.auth.v1.AuthService.Register": dict.fromkeys(("username", "email", "password"), USER),
    "parley.auth.v1.AuthService.SetPassword": dict.fromkeys(("token", "new_password"), USER),
    "parley.auth.v1.UserService.CreatePasswordToken": {"user_id": ADMIN},
    "parley.auth.v1.UserService.CreateUser": dict.fromkeys(("username", "email", "is_admin"), ADMIN),
    "parley.auth.v1.UserService.UpdateUser": {
        **dict.fromkeys(("user_id", "user.username", "user.email", "update_mask"), USER),
        "user.phone_number": NOBODY, "user.is_active": ADMIN, "user.is_admin": ADMIN,
    },
    **dict.fromkeys(
        ("parley.auth.v1.UserService.CreatePreferences", "parley.auth.v1.UserService.UpdatePreferences"),
        {
            **dict.fromkeys(("user_id", "update_mask", "preferences.language", "preferences.tts_voice"), USER),
            **dict.fromkeys(("preferences.auto_reply_enabled", "preferences.notifications_enabled"), USER),
            **dict.fromkeys(("preferences.conversation_timeout_seconds", "preferences.model"), USER),
            **dict.fromkeys(("preferences.reasoning_effort", "preferences.memory_enabled"), USER),
            "preferences.instructions": USER,
            **dict.fromkeys(("preferences.user_id", "preferences.create_time", "preferences.update_time"), NOBODY),
        },
    ),
    "parley.chat.v1.ChatService.CreateCompletion": dict.fromkeys(
        (
            *("message", "messages", "conversation_id", "request_id", "model", "instructions", "reasoning_effort", "images"),
            *("max_output_tokens", "temperature", "metadata", "user_id", "response_schema", "use_web_search", "use_tasks"),
            *("use_code_interpreter", "mcp_servers", "memory_enabled"),
        ),
        USER,
    ),
    "parley.chat.v1.ChatService.EditMessage": dict.fromkeys(
        ("conversation_id", "message_id", "message", "request_id", "options.*"), USER
    ),
    "parley.chat.v1.ChatService.RegenerateReply": dict.fromkeys(
        ("conversation_id", "message_id", "request_id", "options.*"), USER
    ),
    "parley.chat.v1.ConversationService.CreateConversation": dict.fromkeys(("title", "request_id", "user_id"), USER),
    "parley.chat.v1.ConversationService.UpdateConversation": dict.fromkeys(
        ("conversation_id", "title", "update_mask", "user_id"), USER
    ),
    **dict.fromkeys(
        ("parley.chat.v1.McpServerService.CreateMcpServer", "parley.chat.v1.McpServerService.UpdateMcpServer"),
        dict.fromkeys(
            (
                *("mcp_server_id", "label", "url", "headers", "allowed_tools", "approval", "enabled", "request_id"),
                "update_mask",
            ),
            USER,
        ),
    ),
    "parley.chat.v1.TaskService.CompleteTask": dict.fromkeys(("task_id", "user_id"), USER),
    "parley.chat.v1.TaskService.CreateTask": dict.fromkeys(
        ("title", "description", "due_time", "request_id", "user_id"), USER
    ),
    "parley.chat.v1.TaskService.UpdateTask": dict.fromkeys(
        ("task_id", "title", "description", "completed", "due_time", "update_mask", "user_id"), USER
    ),
    "parley.memory.v1.MemoryService.AddMemory": {
        **dict.fromkeys(("text", "subject", "attribute", "importance", "valid_from_time", "expire_time", "request_id"), USER),
        "stamped_by": SERVICE,
        **dict.fromkeys(("source.conversation_id", "source.message_id"), SERVICE),
    },
    "parley.memory.v1.MemoryService.ImportMemories": {"records": USER},
    "parley.memory.v1.MemoryService.UpdateMemory": dict.fromkeys(
        (
            *("memory_id", "text", "subject", "attribute", "importance", "valid_from_time", "expire_time", "update_mask"),
        ),
        USER,
    ),
    "parley.sms.v1.SmsService.SetConsent": {"opted_out": USER},
}  # fmt: skip
# A value of each field that is not the user's, and where the owner would see that it had been taken.
FORBIDDEN_VALUES: dict[str, Any] = {
    "user.phone_number": "+14155550123",
    "user.is_active": False,
    "user.is_admin": True,
    "preferences.user_id": "{stranger}",
    "preferences.create_time": "2001-01-01T00:00:00Z",
    "preferences.update_time": "2001-01-01T00:00:00Z",
    "stamped_by": "assistant",
    "source.conversation_id": "{uuid}",
    "source.message_id": "{uuid}",
}
