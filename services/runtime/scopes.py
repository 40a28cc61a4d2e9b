"""How a transaction begins: in one round trip, saying whose rows it may see and write. Row-level security sees to it."""

import re

# Two statements in one go, which take no parameters.
_AS_USER = "begin; select set_config('parley.user_id', '{user_id}', true)"
# A reader locks no row: whoever takes the pages may pause for longer.
_AS_READER = (
    "begin isolation level repeatable read, read only; select set_config('parley.user_id', '{user_id}', true),"
    " set_config('idle_in_transaction_session_timeout', '30s', true)"
)
AS_SERVICE = "begin; select set_config('parley.scope', 'service', true)"
"""For the service's own work across users."""
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def as_user(user_id: str) -> str:
    """For the rows of one user."""
    return _confined(_AS_USER, user_id)


def as_reader(user_id: str) -> str:
    """For the rows of one user as they are when it begins, to be read only."""
    return _confined(_AS_READER, user_id)


def _confined(begin: str, user_id: str) -> str:
    if not _UUID.fullmatch(user_id):
        raise ValueError("a user's id is a UUID")
    return begin.format(user_id=user_id)
