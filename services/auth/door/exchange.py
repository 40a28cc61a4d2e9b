"""Trades credentials for an access token.

A call with credentials that are remembered costs one look at the account's row, which sees a new password, a deactivation
and a lost role at once.
"""

import math
import time
from typing import Final

from services.auth.account_store import AccountStore
from services.auth.accounts import Accounts, require_active
from services.auth.door.external import ExternalAccounts
from services.auth.door.standing import Shown, StandingSessions
from services.auth.records import Origin
from services.auth.sign_in_delays import network

_LONGEST_USER_AGENT: Final = 200
_ANYWHERE: Final = ""


class Exchange:
    """Names and passwords, and tokens of other issuers, for tokens of ours."""

    def __init__(
        self, accounts: Accounts, store: AccountStore, external: ExternalAccounts, standing: StandingSessions
    ) -> None:
        self._accounts = accounts
        self._store = store
        self._external = external
        self._standing = standing

    async def password(self, name: str, password: str, origin: Origin) -> str:
        """An access token for a name and its password. Raises what `Accounts.check_password` raises."""
        # A guess from elsewhere is not compared with what is remembered: it must meet the delays before it learns anything.
        place = f"{network(origin.address)}"
        known = await self._store.find_credentials(name)
        if known is not None and (token := self._standing.remembered(known.account, password, place=place)) is not None:
            return token
        credentials, _ = await self._accounts.check_password(name=name, password=password, origin=origin)
        shown = Shown("basic", "HTTP Basic", password, math.inf, place)
        return await self._standing.token(credentials.account, shown, origin)

    async def external(self, token: str, origin: Origin) -> str:
        """An access token for another issuer's token, which it does not outlive.

        Raises Unauthenticated (TOKEN_INVALID, TOKEN_EXPIRED), PermissionDenied (EXTERNAL_IDENTITY_UNKNOWN, USER_INACTIVE)
        and Unavailable while the issuer's keys cannot be had.
        """
        identity, account = await self._external.identify(token, origin)
        require_active(account)
        if (ours := self._standing.remembered(account, token, place=_ANYWHERE)) is not None:
            return ours
        name = f"a token of {identity.issuer}"[:_LONGEST_USER_AGENT]
        shown = Shown("external", name, token, identity.expire_time - time.time(), _ANYWHERE)
        return await self._standing.token(account, shown, origin)
