"""Whose account somebody has who is known by another issuer: the linked one, or what the issuer's entry allows.

An account that is created has a name made of issuer and subject, so that two first calls at once make one account, and a
password that nobody knows.
"""

import hashlib
import re
import secrets
from typing import Final

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.account_store import AccountStore
from services.auth.door.external_tokens import ExternalTokens
from services.auth.door.records import ExternalIdentity
from services.auth.door.standing_store import StandingStore
from services.auth.issuers import JwksIssuer, SessionIssuer
from services.auth.passwords import Passwords
from services.auth.records import Account, Origin
from services.runtime.errors import PermissionDenied

log = structlog.get_logger(__name__)
_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]{1,189}")
_NAME_DIGITS: Final = 20


class ExternalAccounts:
    """Accounts by tokens of other issuers."""

    def __init__(self, tokens: ExternalTokens, store: StandingStore, accounts: AccountStore, passwords: Passwords) -> None:
        self._tokens = tokens
        self._store = store
        self._accounts = accounts
        self._passwords = passwords

    async def identify(self, token: str, origin: Origin) -> tuple[ExternalIdentity, Account]:
        """Who the token speaks of, and their account here.

        Raises what `ExternalTokens.verify` raises, and PermissionDenied (EXTERNAL_IDENTITY_UNKNOWN).
        """
        identity, issuer = await self._tokens.verify(token)
        account = await self._store.find_external(identity) or await self._first(identity, issuer, origin)
        if account is None:
            raise PermissionDenied(
                f"Your identity at {identity.issuer} belongs to no account here: ask an administrator.",
                reasons.ERROR_REASON_EXTERNAL_IDENTITY_UNKNOWN,
                metadata={"issuer": identity.issuer},
            )
        return identity, account

    async def _first(self, identity: ExternalIdentity, issuer: JwksIssuer | SessionIssuer, origin: Origin) -> Account | None:
        if identity.email is None or not _EMAIL.fullmatch(identity.email):
            return None
        if issuer.accounts == "link":
            known = await self._accounts.find_credentials(identity.email)
            if known is None:
                return None
            await self._store.link(identity, known.account.id)
        elif issuer.accounts == "create":
            await self._create(identity, identity.email, origin)
        else:
            return None
        account = await self._store.find_external(identity)
        if account is not None:
            log.info("auth.external_identity_linked", user_id=account.id, how=issuer.accounts)
        return account

    async def _create(self, identity: ExternalIdentity, email: str, origin: Origin) -> None:
        # Whoever has no account for good comes with every call: a hash each would take the time of all who sign in.
        if await self._accounts.find_credentials(email) is not None:
            return
        # A hash like any other: how long a sign-in with this name takes must not tell where the account came from.
        nobodys = await self._passwords.hash(secrets.token_urlsafe())
        await self._store.create_linked(
            identity, username=_username(identity), email=email, password_hash=nobodys, origin=origin
        )


def _username(identity: ExternalIdentity) -> str:
    digest = hashlib.sha256(f"{identity.issuer}\n{identity.subject}".encode()).hexdigest()
    return f"user-{digest[:_NAME_DIGITS]}"
