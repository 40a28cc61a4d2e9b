"""The RPCs of UserService: what users prefer.

Owns the reading of masks and the conversion. Only the user's own preferences are reached; a service that acts for the user
reads them and changes nothing.
"""

from collections.abc import Iterable
from typing import Any, Final

import grpc

from parley.auth.v1 import user_pb2, user_pb2_grpc
from services.auth.callers import own_session, require_self
from services.auth.preference_store import PreferenceStore
from services.auth.records import Preferences
from services.runtime.calls import current_user_id
from services.runtime.errors import FieldViolation, invalid_request

Context = grpc.aio.ServicerContext[Any, Any]
_OUTPUT_ONLY: Final = frozenset({"user_id", "create_time", "update_time"})
_FIELDS: Final = tuple(name for name in user_pb2.Preferences.DESCRIPTOR.fields_by_name if name not in _OUTPUT_ONLY)
_LONGEST_SHOWN_PATH: Final = 60


class UserServicer(user_pb2_grpc.UserServiceServicer):
    """parley.auth.v1.UserService."""

    def __init__(self, store: PreferenceStore) -> None:
        self._store = store

    async def CreatePreferences(self, request: user_pb2.CreatePreferencesRequest, context: Context) -> user_pb2.Preferences:
        user_id = _own(request.user_id)
        return _message(await self._store.create(user_id, _values(request.preferences, _FIELDS)))

    async def GetPreferences(self, request: user_pb2.GetPreferencesRequest, context: Context) -> user_pb2.Preferences:
        require_self(request.user_id)
        return _message(await self._store.read(current_user_id()))

    async def UpdatePreferences(self, request: user_pb2.UpdatePreferencesRequest, context: Context) -> user_pb2.Preferences:
        user_id = _own(request.user_id)
        return _message(await self._store.update(user_id, _values(request.preferences, _changed(request))))

    async def DeletePreferences(
        self, request: user_pb2.DeletePreferencesRequest, context: Context
    ) -> user_pb2.DeletePreferencesResponse:
        await self._store.delete(_own(request.user_id))
        return user_pb2.DeletePreferencesResponse()


def _own(named: str) -> str:
    """The caller, who calls in person and whom the path names."""
    user_id, _ = own_session()
    require_self(named)
    return user_id


def _changed(request: user_pb2.UpdatePreferencesRequest) -> Iterable[str]:
    """The fields that an update names: by its mask, or by being set."""
    if not request.HasField("update_mask"):
        return _set_fields(request.preferences).intersection(_FIELDS)
    unknown = sorted(set(request.update_mask.paths).difference(_FIELDS))
    if unknown:
        raise invalid_request(
            [FieldViolation("update_mask", f"`{path[:_LONGEST_SHOWN_PATH]}` cannot be changed") for path in unknown[:10]]
        )
    return request.update_mask.paths


def _values(preferences: user_pb2.Preferences, names: Iterable[str]) -> dict[str, Any]:
    """The columns for these fields. An empty text says as little as an absent one."""
    said = {name for name in _set_fields(preferences) if getattr(preferences, name) != ""}
    return {name: getattr(preferences, name) if name in said else None for name in names}


def _set_fields(preferences: user_pb2.Preferences) -> set[str]:
    return {field.name for field, _ in preferences.ListFields()}


def _message(preferences: Preferences) -> user_pb2.Preferences:
    found = {name: value for name in _FIELDS if (value := getattr(preferences, name)) is not None}
    message = user_pb2.Preferences(user_id=preferences.user_id, **found)
    if preferences.create_time is not None and preferences.update_time is not None:
        message.create_time.FromDatetime(preferences.create_time)
        message.update_time.FromDatetime(preferences.update_time)
    return message
