"""The form of the log in Redis: keys, entries, and the scripts that write and fence it.

An entry is a batch of serialized events under the id `<epoch>-<sequence of its last event>`. The first, `<epoch>-0`, has
none: it opens the log, so that one of which nothing was told is not taken for one that is gone. Owns no connection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.chat.log.tape import Tape

# Another number when the form of an entry changes: releases that run side by side never read each other's.
KEY: Final = "parley:chat:log:1:"
CHANNEL: Final = "parley:chat:events:1:"
CONTROL: Final = "parley:chat:control:1"
# The log of a generation that nobody ends outlives its deadline by this.
OUTLIVES_SECONDS: Final = 600

# For each key: epoch, first and last sequence, expiry in ms, whether to look first, position, whether it is the end, events.
# Answers the last sequence that the log holds; -1 when a later epoch writes it.
WRITE: Final = (
    """
local answers = {}
for i, key in ipairs(KEYS) do
  local a = (i - 1) * 8
  local epoch, first, last = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  local id = ARGV[a + 1] .. '-' .. ARGV[a + 3]
  local function add(make)
    if make then
      return redis.pcall('XADD', key, id, 'f', ARGV[a + 2], 'p', ARGV[a + 6], 'x', ARGV[a + 7], 'e', ARGV[a + 8])
    end
    return redis.pcall('XADD', key, 'NOMKSTREAM', id, 'f', ARGV[a + 2], 'p', ARGV[a + 6], 'x', ARGV[a + 7], 'e', ARGV[a + 8])
  end
  local added = ARGV[a + 5] == '0' and add(first == 1)
  if type(added) ~= 'string' then
    local latest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)
    local held_epoch, held = 0, 0
    if latest[1] then
      local e, s = string.match(latest[1][1], '(%d+)-(%d+)')
      held_epoch, held = tonumber(e), tonumber(s)
    end
    if held_epoch > epoch then
      answers[i] = -1
    elseif held + 1 == first and (last >= first or not latest[1]) then
      added = add(true)
      answers[i] = held
    else
      answers[i] = held
    end
  end
  if type(added) == 'string' then
    answers[i] = last
    local ms = tonumber(ARGV[a + 4])
    if ms > 0 then redis.call('PEXPIRE', key, ms) end
    if ms < 0 then redis.call('DEL', key) end
    if ARGV[a + 8] ~= '' then
      redis.call('PUBLISH', '"""
    + CHANNEL
    + """' .. string.sub(key, """
    + str(len(KEY) + 1)
    + """), ARGV[a + 1] .. ' ' .. ARGV[a + 2] .. ' ' .. ARGV[a + 7] .. '\\n' .. ARGV[a + 8])
    end
  end
end
return answers
"""
)
# A take-over: nothing of an earlier epoch is accepted any more. Answers every entry, nothing without a log, -1 when lost.
FENCE: Final = """
local latest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if not latest[1] then return {} end
local epoch, last = string.match(latest[1][1], '(%d+)-(%d+)')
if tonumber(epoch) > tonumber(ARGV[1]) then return -1 end
if tonumber(epoch) < tonumber(ARGV[1]) then
  local first = string.format('%d', tonumber(last) + 1)
  redis.call('XADD', KEYS[1], ARGV[1] .. '-' .. last, 'f', first, 'p', '', 'x', '0', 'e', '')
end
return redis.call('XRANGE', KEYS[1], '-', '+')
"""


# What a line's expiry says where it is not a time: the log goes.
DELETE: Final = -1


class LogLine:
    """How far a generation is logged. `position` travels with the next entry."""

    __slots__ = (
        "epoch",
        "expiry_ms",
        "generation_id",
        "is_last",
        "is_queued",
        "is_unlogged",
        "is_unsure",
        "key",
        "logged",
        "on_lost",
        "on_unlogged",
        "position",
        "tape",
    )

    def __init__(self, generation_id: str, epoch: int, tape: Tape) -> None:
        self.generation_id = generation_id
        self.epoch = epoch
        self.tape = tape
        self.key = KEY + generation_id
        self.logged = 0
        self.position = ""
        self.expiry_ms: int | None = None
        self.is_last = False
        self.is_queued = False
        self.is_unsure = False
        self.is_unlogged = False
        self.on_lost: Callable[[], None] = _nothing
        self.on_unlogged: Callable[[], None] = _nothing

    def delete_at_end(self) -> None:
        """The log goes with its last event: its conversation was deleted."""
        self.expiry_ms = DELETE


def _nothing() -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Logged:
    """What a log holds: every event from the first on, and where the provider's run is after them ("" when unknown)."""

    events: list[bytes]
    position: str
    has_ended: bool


def packed(events: Sequence[bytes]) -> bytes:
    """Events as one value."""
    if len(events) == 1:
        return len(events[0]).to_bytes(4, "big") + events[0]
    return b"".join([len(event).to_bytes(4, "big") + event for event in events])


def unpacked(value: bytes) -> list[bytes]:
    """The events of a value."""
    events, place = [], 0
    while place < len(value):
        size = int.from_bytes(value[place : place + 4], "big")
        events.append(value[place + 4 : place + 4 + size])
        place += 4 + size
    return events


def logged(entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> Logged:
    """The events of a stream's entries. A later entry replaces what it repeats; what lies behind a hole is left out."""
    events: list[bytes] = []
    position, has_ended = "", False
    for _, values in entries:
        fields = dict(zip(values[::2], values[1::2], strict=True))
        first = int(fields[b"f"])
        if first > len(events) + 1:
            break
        del events[first - 1 :]
        events += unpacked(fields[b"e"])
        position = fields[b"p"].decode() or position
        # A take-over's entry says nothing of an end before it.
        has_ended = fields[b"x"] == b"1" or (has_ended and not fields[b"e"])
    return Logged(events, position, has_ended)
