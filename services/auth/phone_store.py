"""Every SQL statement about the verification of phone numbers. One public method is one transaction.

Races are settled by the row of the user who verifies and by the unique constraint on verified numbers. Locks are taken
in the order of a deletion: the user's row, then the verification.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import case, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from services.auth.records import Account, Origin
from services.auth.refusals import taken
from services.auth.schema import code_counts, phone_verifications, preferences, users
from services.auth.statements import ACCOUNT, after, note_event, to_account
from services.runtime.database import Database, interval

_COLUMNS, _COUNTS = phone_verifications.c, code_counts.c
_ONE_NUMBER = text("select pg_advisory_xact_lock(hashtextextended('auth phone ' || :phone_number, 0))")


@dataclass(frozen=True, slots=True)
class CodeLimits:
    """How long a code is good, how often it may be tried, how soon and how often another may be sent in a window of time."""

    lifetime_seconds: float
    attempts: int
    resend_seconds: float
    window_seconds: float
    most_sent: int
    most_to_number: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A code that is waited for, and the language of its reader; `is_refused`: it comes too soon or too often."""

    expire_time: datetime
    wait_seconds: float
    language: str
    is_refused: bool


@dataclass(frozen=True, slots=True)
class Tried:
    """A code that may be tried now: what it must be, and how many tries are left after this one."""

    phone_number: str = field(repr=False)
    code_digest: bytes = field(repr=False)
    attempts_left: int


class PhoneStore:
    """Verifications, one a user."""

    def __init__(self, database: Database, limits: CodeLimits) -> None:
        self._database = database
        self._limits = limits

    async def start(self, user_id: str, *, phone_number: str, number_key: bytes, code_digest: bytes) -> Waiting | None:
        """Puts a code in the place of an earlier one, unless it is too soon or too often; None where the user is gone.

        Codes to one number are counted by its keyed hash whoever asks for them, and stay counted when those who asked turn
        to another number or delete their account, so that nobody is flooded from several accounts.
        """
        user = select(preferences.c.language).select_from(users.outerjoin(preferences)).where(users.c.id == user_id)
        async with self._database.service_transaction() as connection:
            await connection.execute(_ONE_NUMBER, {"phone_number": phone_number})
            found = (await connection.execute(user.with_for_update(of=users, key_share=True))).one_or_none()
            if found is None:
                return None
            sent = (await connection.execute(self._sent(number_key))).scalar_one_or_none() or 0
            expire_time: datetime | None = None
            if sent < self._limits.most_to_number:
                putting = self._putting(user_id, phone_number, code_digest)
                expire_time = (await connection.execute(putting)).scalar_one_or_none()
            if expire_time is None:
                wait = func.greatest(func.extract("epoch", _COLUMNS.resend_time - func.now()), 0)
                left = await connection.execute(select(wait).where(_COLUMNS.user_id == user_id))
                # Beyond the pause between two codes it is the count of the window that refuses.
                seconds = float(left.scalar_one_or_none() or 0) or self._limits.window_seconds
                return Waiting(datetime.now(UTC), seconds, "", is_refused=True)
            await connection.execute(self._counting(number_key))
        return Waiting(expire_time, self._limits.resend_seconds, found.language or "", is_refused=False)

    def _sent(self, number_key: bytes) -> Any:
        since = func.now() - interval(self._limits.window_seconds)
        return select(_COUNTS.sent_count).where(_COUNTS.number_key == number_key, _COUNTS.window_time > since)

    def _counting(self, number_key: bytes) -> Any:
        is_over = _COUNTS.window_time <= func.now() - interval(self._limits.window_seconds)
        values = {
            "sent_count": case((is_over, 1), else_=_COUNTS.sent_count + 1),
            "window_time": case((is_over, func.now()), else_=_COUNTS.window_time),
        }
        counting = insert(code_counts).values(number_key=number_key)
        return counting.on_conflict_do_update(index_elements=["number_key"], set_=values)

    def _putting(self, user_id: str, phone_number: str, code_digest: bytes) -> Any:
        limits = self._limits
        is_over = _COLUMNS.window_time <= func.now() - interval(limits.window_seconds)
        values = {
            "phone_number": phone_number,
            "code_digest": code_digest,
            "attempts_left": limits.attempts,
            "resend_time": after(limits.resend_seconds),
            "expire_time": after(limits.lifetime_seconds),
        }
        counted = {
            "sent_count": case((is_over, 1), else_=_COLUMNS.sent_count + 1),
            "window_time": case((is_over, func.now()), else_=_COLUMNS.window_time),
        }
        putting = insert(phone_verifications).values(**values, user_id=user_id)
        putting = putting.on_conflict_do_update(
            index_elements=["user_id"],
            set_=values | counted,
            where=(_COLUMNS.resend_time <= func.now()) & (is_over | (_COLUMNS.sent_count < limits.most_sent)),
        )
        return putting.returning(_COLUMNS.expire_time)

    async def not_sent(self, user_id: str, code_digest: bytes, *, is_sure: bool) -> None:
        """The code could not be sent: another may be asked for at once. That it was asked for stays counted.

        Where that is not sure the code is good all the same: it may arrive.
        """
        mine = (_COLUMNS.user_id == user_id) & (_COLUMNS.code_digest == code_digest)
        async with self._database.transaction(user_id=user_id) as connection:
            values = {"resend_time": func.now()} | ({"code_digest": None} if is_sure else {})
            await connection.execute(update(phone_verifications).where(mine).values(values))

    async def take_attempt(self, user_id: str) -> Tried | None:
        """Uses one of the tries of the code up, whether it will be right or not; None where there is none to try."""
        good = (_COLUMNS.attempts_left > 0) & (_COLUMNS.expire_time > func.now()) & _COLUMNS.code_digest.is_not(None)
        taking = update(phone_verifications).where(_COLUMNS.user_id == user_id, good)
        taking = taking.values(attempts_left=_COLUMNS.attempts_left - 1)
        returned = taking.returning(_COLUMNS.phone_number, _COLUMNS.code_digest, _COLUMNS.attempts_left)
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(returned)).one_or_none()
        return None if row is None else Tried(row.phone_number, row.code_digest, row.attempts_left)

    async def finish(self, user_id: str, tried: Tried, origin: Origin) -> Account | None:
        """Makes the number the user's verified one, and the code worth nothing; None where it was used meanwhile.

        Raises AlreadyExists (PHONE_TAKEN): of two accounts that verify one number at once one gets it.
        """
        using = update(phone_verifications).where(
            _COLUMNS.user_id == user_id,
            _COLUMNS.code_digest == tried.code_digest,
            _COLUMNS.phone_number == tried.phone_number,
        )
        # As whoever changes the number would lock it: a lesser lock would have to be raised.
        holding = select(users.c.id).where(users.c.id == user_id).with_for_update()
        changing = update(users).where(users.c.id == user_id)
        changing = changing.values(phone_number=tried.phone_number, update_time=func.now()).returning(*ACCOUNT)
        async with self._database.service_transaction() as connection:
            await connection.execute(holding)
            if not (await connection.execute(using.values(code_digest=None))).rowcount:
                return None
            try:
                account = to_account((await connection.execute(changing)).one())
            except IntegrityError as error:
                raise taken(error, username="", email="") from None
            await note_event(connection, "phone_verified", user_id=user_id, origin=origin)
        return account

    async def sweep(self, *, batch: int) -> int:
        """Deletes up to `batch` verifications whose window of time is over; returns how many."""
        past = func.now() - interval(self._limits.window_seconds)
        old = select(_COLUMNS.user_id).where(_COLUMNS.window_time < past, _COLUMNS.expire_time < func.now())
        chosen = old.limit(batch).with_for_update(skip_locked=True).scalar_subquery()
        async with self._database.service_transaction() as connection:
            return (await connection.execute(delete(phone_verifications).where(_COLUMNS.user_id.in_(chosen)))).rowcount

    async def sweep_counts(self, *, batch: int) -> int:
        """Deletes up to `batch` counts of numbers whose window of time is over; returns how many."""
        old = select(_COUNTS.number_key).where(_COUNTS.window_time < func.now() - interval(self._limits.window_seconds))
        chosen = old.limit(batch).with_for_update(skip_locked=True).scalar_subquery()
        async with self._database.service_transaction() as connection:
            return (await connection.execute(delete(code_counts).where(_COUNTS.number_key.in_(chosen)))).rowcount
