"""The secrets of a reply's options beside its row: sealed for whoever takes the reply over.

Owns the form and what the seal is bound to: the user, so that a value copied to another user's row opens nowhere.
"""

from typing import Final

import orjson

from services.chat.options import ReplyOptions
from services.chat.records import Generation
from services.runtime.sealing import Seal

_PLACE: Final = b"parley.chat.generations.sealed_secrets:"


def seal_secrets(seal: Seal, options: ReplyOptions, *, user_id: str) -> bytes | None:
    """What `ReplyOptions.to_stored` leaves out, encrypted; None where there is nothing."""
    secrets = options.secrets()
    return seal.seal(orjson.dumps(secrets), context=_PLACE + user_id.encode()) if secrets else None


def stored_options(seal: Seal, generation: Generation) -> ReplyOptions:
    """The options of a generation as they were when it began. Raises SealError when its secrets cannot be opened."""
    secrets = {}
    if generation.sealed_secrets is not None:
        secrets = orjson.loads(seal.open(generation.sealed_secrets, context=_PLACE + generation.user_id.encode()))
    return ReplyOptions.from_stored(generation.options, secrets)
