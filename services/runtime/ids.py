"""Ids of new rows."""

import secrets
import time
import uuid


def new_id() -> str:
    """A UUIDv7: the time in milliseconds, then chance, so that new rows land at the end of every index."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))


def is_id(text: str) -> bool:
    """Whether this is a UUID as we write them: in lower case, with dashes."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
