"""The auth service: settings -> parts -> servicers -> serve, with its standing duties beside."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from parley.auth.v1 import auth_pb2, auth_pb2_grpc, user_pb2, user_pb2_grpc
from parley.edge import ext_authz_pb2, ext_authz_pb2_grpc
from services.auth.account_store import AccountStore
from services.auth.accounts import Accounts
from services.auth.door.exchange import Exchange
from services.auth.door.external import ExternalAccounts
from services.auth.door.external_tokens import ExternalTokens
from services.auth.door.servicer import DoorServicer
from services.auth.door.standing import StandingSessions
from services.auth.door.standing_store import StandingStore
from services.auth.ended_sessions import EndedSessions
from services.auth.issuers import read_issuers
from services.auth.key_store import KeyPlan, KeyStore
from services.auth.passwords import HashCost, Passwords
from services.auth.preference_store import PreferenceStore
from services.auth.servicer import AuthServicer, TokenServicer
from services.auth.session_store import SessionStore
from services.auth.sessions import SessionLimits, Sessions
from services.auth.settings import AuthSettings
from services.auth.signing_keys import SigningKeys
from services.auth.tokens import LEEWAY_SECONDS, SERVICE_TOKEN_SECONDS, TokenMint
from services.auth.upkeep import Upkeep
from services.auth.user_servicer import UserServicer
from services.auth.workloads import Workloads, read_digests
from services.runtime.database import Database, serving_database
from services.runtime.duties import beside
from services.runtime.identity import TokenVerifier
from services.runtime.process import run
from services.runtime.server import GrpcServer, Mount, serve

NAME = "auth"


@dataclass(frozen=True, slots=True)
class Assembly:
    """The server, and the parts that live as long as the process."""

    server: GrpcServer
    database: Database
    keys: SigningKeys
    ended: EndedSessions
    upkeep: Upkeep


@asynccontextmanager
async def assembled(settings: AuthSettings) -> AsyncIterator[Assembly]:
    """The server, ready to start, with the standing duties running; ends and closes everything afterwards."""
    url = settings.database_url.get_secret_value()
    cost = HashCost(settings.argon2_time_cost, settings.argon2_memory_kib, settings.argon2_parallelism)
    async with serving_database(url, pool_size=settings.database_pool_size) as database:
        passwords = Passwords(
            cost,
            threads=settings.password_hash_threads,
            most_waiting=settings.password_hash_queue,
            wait_seconds=settings.password_hash_wait_seconds,
        )
        try:
            auth = _compose(settings, database, passwords)
            await auth.keys.refresh()
            await auth.ended.poll()
            async with beside(auth.ended.follow_database(), auth.upkeep.keep_keys(), auth.upkeep.keep_clean()):
                yield auth
        finally:
            passwords.close()


def _compose(settings: AuthSettings, database: Database, passwords: Passwords) -> Assembly:
    store = SessionStore(database)
    keys = SigningKeys(KeyStore(database), _key_plan(settings))
    ended = EndedSessions(store, remember_seconds=_longest_token_seconds(settings))
    mint = TokenMint(keys, access_seconds=settings.access_token_lifetime_seconds)
    limits = _session_limits(settings)
    sessions = Sessions(store, mint, ended, limits=limits)
    accounts = Accounts(AccountStore(database), passwords, sessions)
    workloads = Workloads(read_digests(settings.workload_digests_file))

    async def send_followers_away(_drain_seconds: float) -> None:
        ended.close()

    server = GrpcServer(
        address=settings.listen_address,
        mounts=[
            *_mounts(
                AuthServicer(accounts, sessions, keys),
                TokenServicer(workloads, accounts, mint, ended),
                UserServicer(PreferenceStore(database)),
            ),
            _door(settings, database, accounts, passwords, StandingSessions(StandingStore(database), mint, ended, limits)),
        ],
        verifier=TokenVerifier(audience=NAME, keys=keys, ended=ended),
        slow_call_seconds=settings.slow_call_seconds,
        on_drain=send_followers_away,
    )
    upkeep = Upkeep(store, keys, sweep_interval_seconds=settings.sweep_interval_seconds)
    return Assembly(server, database, keys, ended, upkeep)


def _mounts(auth: AuthServicer, token: TokenServicer, user: UserServicer) -> list[Mount]:
    services = auth_pb2.DESCRIPTOR.services_by_name
    return [
        Mount(auth_pb2_grpc.add_AuthServiceServicer_to_server, auth, services["AuthService"]),
        Mount(auth_pb2_grpc.add_TokenServiceServicer_to_server, token, services["TokenService"]),
        Mount(user_pb2_grpc.add_UserServiceServicer_to_server, user, user_pb2.DESCRIPTOR.services_by_name["UserService"]),
    ]


def _door(
    settings: AuthSettings, database: Database, accounts: Accounts, passwords: Passwords, standing: StandingSessions
) -> Mount:
    path, store = settings.external_issuers_file, AccountStore(database)
    tokens = ExternalTokens([] if path is None else read_issuers(path))
    external = ExternalAccounts(tokens, StandingStore(database), store, passwords)
    servicer = DoorServicer(Exchange(accounts, store, external, standing))
    add = ext_authz_pb2_grpc.add_AuthorizationServicer_to_server
    return Mount(add, servicer, ext_authz_pb2.DESCRIPTOR.services_by_name["Authorization"])


def _longest_token_seconds(settings: AuthSettings) -> int:
    return max(settings.access_token_lifetime_seconds, SERVICE_TOKEN_SECONDS) + LEEWAY_SECONDS


def _key_plan(settings: AuthSettings) -> KeyPlan:
    return KeyPlan(
        signing_seconds=settings.signing_key_rotation_seconds,
        ahead_seconds=settings.signing_key_publish_ahead_seconds,
        behind_seconds=_longest_token_seconds(settings),
    )


def _session_limits(settings: AuthSettings) -> SessionLimits:
    return SessionLimits(
        lifetime_seconds=settings.refresh_token_lifetime_seconds,
        grace_seconds=settings.refresh_grace_seconds,
        most_open=settings.open_sessions_per_user,
    )


async def main(settings: AuthSettings) -> None:
    """Serves until told to stop."""
    async with assembled(settings) as auth:
        await serve(auth.server, settings)


if __name__ == "__main__":
    run(NAME, AuthSettings, main)
