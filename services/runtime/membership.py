"""A service as a member of the suite: it knows who calls, and can prove to the others who it is.

Every service but auth, which needs nobody for either, is one in this way.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.runtime.channels import open_channel
from services.runtime.duties import beside
from services.runtime.identity import TokenVerifier
from services.runtime.peers import EndedSessionsFeed, RemoteKeys, ServiceTokens, read_credential
from services.runtime.settings import PeerSettings
from services.runtime.tls import Tls


@dataclass(frozen=True, slots=True)
class Membership:
    """`verifier` for those who call this service, `tokens` for those whom it calls."""

    verifier: TokenVerifier
    tokens: ServiceTokens


@asynccontextmanager
async def membership(service: str, settings: PeerSettings) -> AsyncIterator[Membership]:
    """The membership of `service`, with the feed of ended sessions followed until the block ends."""
    async with open_channel(
        settings.auth_target,
        audience="auth",
        tokens=None,
        timeout_seconds=settings.peer_timeout_seconds,
        tls=Tls.from_settings(settings),
    ) as auth:
        tokens = ServiceTokens(auth, workload=service, credential=read_credential(settings.workload_credential_file))
        ended = EndedSessionsFeed(auth, tokens, grace_seconds=settings.ended_sessions_grace_seconds)
        async with beside(ended.follow()):
            yield Membership(TokenVerifier(audience=service, keys=RemoteKeys(auth), ended=ended), tokens)
