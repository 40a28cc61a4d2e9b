"""The RPCs of UserService: accounts, their deletion and the audit log; preferences stand in preference_servicer.py.

Owns who may set which field, by what the contract says of each. Invariant: a user reaches the own account in person, an
administrator everybody's; a service that acts for a user reaches neither.
"""

import hashlib
from typing import Any, Final

import grpc

from parley.auth.v1 import auth_pb2, user_pb2
from parley.options.v1 import options_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.accounts import Accounts
from services.auth.audit import Audit
from services.auth.callers import Origins, named_user, own_session, require_service
from services.auth.deletions import Deletions
from services.auth.messages import deletion_message, event_message, token_message, user_message
from services.auth.preference_servicer import PreferenceRpcs, preferences_message
from services.auth.preference_store import PreferenceStore
from services.auth.records import UserFilter
from services.auth.users import Users
from services.runtime.calls import current_caller
from services.runtime.errors import FieldViolation, PermissionDenied, invalid_request
from services.runtime.paging import cut_page, decode_page_token, page_size
from services.runtime.rules import field_rules

Context = grpc.aio.ServicerContext[Any, Any]
_USERS: Final = "users"
_AUDIT: Final = "audit"
_CHANGES: Final = dict(user_pb2.UserChange.DESCRIPTOR.fields_by_name)
_LONGEST_SHOWN_PATH: Final = 60


class UserServicer(PreferenceRpcs):
    """parley.auth.v1.UserService."""

    def __init__(  # noqa: PLR0913 - collaborators
        self,
        *,
        accounts: Accounts,
        audit: Audit,
        deletions: Deletions,
        origins: Origins,
        preferences: PreferenceStore,
        users: Users,
    ) -> None:
        self._accounts = accounts
        self._audit = audit
        self._deletions = deletions
        self._origins = origins
        self._preferences = preferences
        self._users = users

    async def CreateUser(self, request: user_pb2.CreateUserRequest, context: Context) -> user_pb2.CreateUserResponse:
        account, token = await self._users.create(
            username=request.username,
            email=request.email,
            is_admin=request.is_admin,
            origin=self._origins.of(context.peer()),
        )
        return user_pb2.CreateUserResponse(user=user_message(account), password_token=token_message(token))

    async def ListUsers(self, request: user_pb2.ListUsersRequest, context: Context) -> user_pb2.ListUsersResponse:
        wanted, size = _filter(request), page_size(request.page_size)
        # By its digest: the token stays short, however long the prefix is.
        prefix = hashlib.sha256(wanted.prefix.encode()).hexdigest()[:16]
        list_name = f"{_USERS}:{prefix}:{wanted.is_active}:{wanted.is_admin}"
        key = decode_page_token(list_name, request.page_token, kinds=(str,))
        found = await self._users.list_users(wanted, before_id=None if key is None else str(key[0]), limit=size + 1)
        page, next_token = cut_page(found, size, list_name=list_name, key=lambda account: (account.id,))
        return user_pb2.ListUsersResponse(users=map(user_message, page), next_page_token=next_token)

    async def GetUser(self, request: user_pb2.GetUserRequest, context: Context) -> auth_pb2.User:
        user_id, session_id = own_session()
        named = named_user(request.user_id)
        if named == user_id:
            return user_message(await self._accounts.own_account(user_id, session_id))
        return user_message(await self._users.read(named))

    async def UpdateUser(self, request: user_pb2.UpdateUserRequest, context: Context) -> auth_pb2.User:
        own_session()
        values = _changes(request)
        account = await self._users.update(named_user(request.user_id), values, self._origins.of(context.peer()))
        return user_message(account)

    async def DeleteUser(self, request: user_pb2.DeleteUserRequest, context: Context) -> user_pb2.Deletion:
        own_session()
        deletion = await self._deletions.delete(named_user(request.user_id), self._origins.of(context.peer()))
        return deletion_message(deletion)

    async def GetDeletion(self, request: user_pb2.GetDeletionRequest, context: Context) -> user_pb2.Deletion:
        return deletion_message(await self._deletions.read(request.user_id.lower()))

    async def CreatePasswordToken(
        self, request: user_pb2.CreatePasswordTokenRequest, context: Context
    ) -> user_pb2.PasswordToken:
        origin = self._origins.of(context.peer())
        return token_message(await self._users.create_password_token(request.user_id.lower(), origin))

    async def ListAuditEvents(
        self, request: user_pb2.ListAuditEventsRequest, context: Context
    ) -> user_pb2.ListAuditEventsResponse:
        user_id, kind, size = request.user_id.lower(), request.kind, page_size(request.page_size)
        list_name = f"{_AUDIT}:{user_id}:{kind}"
        key = decode_page_token(list_name, request.page_token, kinds=(str,))
        before_id = None if key is None else str(key[0])
        found = await self._audit.list_events(user_id=user_id, kind=kind, before_id=before_id, limit=size + 1)
        page, next_token = cut_page(found, size, list_name=list_name, key=lambda event: (event.id,))
        return user_pb2.ListAuditEventsResponse(events=map(event_message, page), next_page_token=next_token)

    async def FindUserByPhone(
        self, request: user_pb2.FindUserByPhoneRequest, context: Context
    ) -> user_pb2.FindUserByPhoneResponse:
        require_service("sms")
        user_id = await self._users.find_by_phone(request.phone_number)
        preferences = preferences_message(await self._preferences.read(user_id))
        return user_pb2.FindUserByPhoneResponse(user_id=user_id, preferences=preferences)


def _filter(request: user_pb2.ListUsersRequest) -> UserFilter:
    return UserFilter(
        prefix=request.prefix.lower(),
        is_active=request.is_active if request.HasField("is_active") else None,
        is_admin=request.is_admin if request.HasField("is_admin") else None,
    )


def _changes(request: user_pb2.UpdateUserRequest) -> dict[str, Any]:
    """The new values of the fields that an update names, each of which this caller may set.

    Raises PermissionDenied (FIELD_NOT_ALLOWED) before anything else, and InvalidArgument for a mask that names no field of
    an account, or one without a value.
    """
    is_set = {field.name for field, _ in request.user.ListFields()}
    named = set(request.update_mask.paths) if request.HasField("update_mask") else is_set
    for name in sorted(named & _CHANGES.keys()):
        _require_allowed(name)
    unknown = [
        FieldViolation("update_mask", f"`{path[:_LONGEST_SHOWN_PATH]}` cannot be changed")
        for path in named - _CHANGES.keys()
    ]
    absent = [
        FieldViolation(f"user.{name}", "must have a value: it is named by update_mask")
        for name in sorted(named & _CHANGES.keys())
        if name not in is_set or getattr(request.user, name) == ""
    ]
    if unknown or absent:
        raise invalid_request([*unknown[:10], *absent])
    return {name: getattr(request.user, name) for name in named}


def _require_allowed(name: str) -> None:
    match field_rules(_CHANGES[name]).changed_by:
        case options_pb2.ACCESS_UNSPECIFIED:
            return
        case options_pb2.ACCESS_ADMIN if "admin" in current_caller().roles:
            return
    raise PermissionDenied(
        f"You may not change {name} here.", reasons.ERROR_REASON_FIELD_NOT_ALLOWED, metadata={"field": name}
    )
