"""The auth service: settings -> parts -> servicers -> serve, with its standing duties beside."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc

from parley.auth.v1 import auth_pb2, auth_pb2_grpc, user_pb2, user_pb2_grpc
from parley.edge import ext_authz_pb2, ext_authz_pb2_grpc
from services.auth.account_store import AccountStore
from services.auth.accounts import Accounts
from services.auth.audit import Audit
from services.auth.audit_store import AuditStore
from services.auth.callers import Origins
from services.auth.deletion_store import DeletionStore
from services.auth.deletions import Deletions
from services.auth.door.exchange import Exchange
from services.auth.door.external import ExternalAccounts
from services.auth.door.external_tokens import ExternalTokens
from services.auth.door.servicer import DoorServicer
from services.auth.door.standing import StandingSessions
from services.auth.door.standing_store import StandingStore
from services.auth.ended_sessions import EndedSessions
from services.auth.failure_store import FailureStore
from services.auth.issuers import read_issuers
from services.auth.key_store import KeyPlan, KeyStore
from services.auth.password_store import PasswordStore
from services.auth.passwords import HashCost, Passwords
from services.auth.phone_store import CodeLimits, PhoneStore
from services.auth.phones import Phones
from services.auth.preference_store import PreferenceStore
from services.auth.purge_client import PurgeClient
from services.auth.servicer import AuthServicer, TokenServicer
from services.auth.session_store import SessionStore
from services.auth.sessions import SessionLimits, Sessions
from services.auth.settings import DAY_SECONDS, AuthSettings, networks
from services.auth.sign_in_delays import KNOWN_SECONDS, WINDOW_SECONDS, FreeFailures, SignInDelays
from services.auth.signing_keys import SigningKeys
from services.auth.sms_client import SmsClient
from services.auth.tokens import LEEWAY_SECONDS, SERVICE_TOKEN_SECONDS, TokenMint
from services.auth.upkeep import BATCH, KEEP_ENDED_SECONDS, Upkeep
from services.auth.user_servicer import UserServicer
from services.auth.user_store import UserStore
from services.auth.users import Users
from services.auth.workloads import Workloads, read_digests
from services.runtime.channels import open_channel
from services.runtime.database import Database, serving_database
from services.runtime.duties import beside
from services.runtime.identity import TokenVerifier
from services.runtime.jobs import Jobs
from services.runtime.process import run
from services.runtime.sealing import Seal
from services.runtime.server import GrpcServer, Mount, serve
from services.runtime.tls import Tls

NAME = "auth"
# Longer than SEND_TIMEOUT_SECONDS by default, so that the answer of sms wins.
_SMS_SECONDS = 15.0
_CODE_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Assembly:
    """The server, and the parts that live as long as the process."""

    server: GrpcServer
    database: Database
    keys: SigningKeys
    ended: EndedSessions
    upkeep: Upkeep
    jobs: Jobs


@asynccontextmanager
async def assembled(settings: AuthSettings) -> AsyncIterator[Assembly]:
    """The server, ready to start, with the standing duties running; ends and closes everything afterwards."""
    url = settings.database_url.get_secret_value()
    async with serving_database(url, pool_size=settings.database_pool_size) as database:
        passwords = Passwords(
            HashCost.of(settings),
            threads=settings.password_hash_threads,
            most_waiting=settings.password_hash_queue,
            wait_seconds=settings.password_hash_wait_seconds,
        )
        try:
            async with AsyncExitStack() as parts:
                auth = _compose(settings, parts, database, passwords)
                await auth.keys.refresh()
                await auth.ended.poll()
                duties = beside(auth.ended.follow_database(), auth.upkeep.keep_keys(), auth.upkeep.keep_clean())
                await parts.enter_async_context(duties)
                await parts.enter_async_context(auth.jobs.working(concurrency=settings.job_concurrency))
                yield auth
        finally:
            await passwords.close()


@dataclass(frozen=True, slots=True)
class _Stores:
    """What several parts share, or is swept."""

    audit: AuditStore
    deletions: DeletionStore
    failures: FailureStore
    passwords: PasswordStore
    phones: PhoneStore
    sessions: SessionStore


def _open_stores(settings: AuthSettings, database: Database, jobs: Jobs) -> _Stores:
    return _Stores(
        audit=AuditStore(database),
        deletions=DeletionStore(database, jobs, told_seconds=_longest_token_seconds(settings)),
        failures=FailureStore(database, window_seconds=WINDOW_SECONDS),
        passwords=PasswordStore(database),
        phones=PhoneStore(database, _code_limits(settings)),
        sessions=SessionStore(database),
    )


def _sweeps(settings: AuthSettings, stores: _Stores) -> dict[str, Callable[[], Awaitable[int]]]:
    kept = settings.audit_retention_seconds
    return {
        "sessions": partial(stores.sessions.sweep, keep_seconds=KEEP_ENDED_SECONDS, batch=BATCH),
        "password_tokens": partial(stores.passwords.sweep, batch=BATCH),
        "phone_verifications": partial(stores.phones.sweep, batch=BATCH),
        "code_counts": partial(stores.phones.sweep_counts, batch=BATCH),
        "sign_in_failures": partial(stores.failures.sweep, keep_seconds=KNOWN_SECONDS, batch=BATCH),
        "audit_events": partial(stores.audit.sweep, keep_seconds=kept, batch=BATCH),
        "deletions": partial(stores.deletions.sweep, keep_seconds=kept, batch=BATCH),
    }


def _compose(settings: AuthSettings, parts: AsyncExitStack, database: Database, passwords: Passwords) -> Assembly:
    jobs, seal = Jobs(settings.database_url.get_secret_value()), Seal.from_settings(settings)
    stores = _open_stores(settings, database, jobs)
    keys = SigningKeys(KeyStore(database), _key_plan(settings), seal)
    ended = EndedSessions(stores.sessions, remember_seconds=_longest_token_seconds(settings))
    mint = TokenMint(keys, access_seconds=settings.access_token_lifetime_seconds)
    limits = _session_limits(settings)
    sessions = Sessions(stores.sessions, mint, ended, limits=limits)
    delays = SignInDelays(stores.failures, seal, _free_failures(settings))
    accounts = Accounts(AccountStore(database), stores.passwords, passwords, sessions, delays)
    origins = Origins(networks(settings.edge_networks), proxies=settings.edge_proxies)
    channels = _open_channels(settings, parts)
    purges = PurgeClient(channels, mint, timeout_seconds=settings.purge_timeout_seconds)
    deletions = Deletions(stores.deletions, purges, ended, delays)
    deletions.register(jobs)
    phones = Phones(stores.phones, SmsClient(channels.get("sms"), mint, timeout_seconds=_SMS_SECONDS), seal)
    tokens = TokenServicer(Workloads(read_digests(settings.workload_digests_file)), accounts, mint, ended)
    users = UserServicer(
        accounts=accounts,
        audit=Audit(stores.audit),
        deletions=deletions,
        origins=origins,
        preferences=PreferenceStore(database),
        users=Users(UserStore(database), stores.passwords, sessions, token_seconds=settings.password_token_lifetime_seconds),
    )
    standing = StandingSessions(StandingStore(database), mint, ended, limits)
    door = _door(_exchange(settings, database, accounts, passwords, standing), origins)
    mounts = [*_mounts(AuthServicer(accounts, phones, sessions, keys, origins), tokens, users), door]
    upkeep = Upkeep(_sweeps(settings, stores), keys, sweep_interval_seconds=settings.sweep_interval_seconds)
    return Assembly(_server(settings, mounts, keys, ended), database, keys, ended, upkeep, jobs)


def _server(settings: AuthSettings, mounts: Sequence[Mount], keys: SigningKeys, ended: EndedSessions) -> GrpcServer:
    async def send_followers_away(_drain_seconds: float) -> None:
        ended.close()

    return GrpcServer(
        address=settings.listen_address,
        mounts=mounts,
        verifier=TokenVerifier(audience=NAME, keys=keys, ended=ended),
        slow_call_seconds=settings.slow_call_seconds,
        on_drain=send_followers_away,
    )


def _open_channels(settings: AuthSettings, parts: AsyncExitStack) -> dict[str, grpc.aio.Channel]:
    """The services that auth calls, those that are deployed. It proves itself with each call: it is nobody's workload."""
    tls = Tls.from_settings(settings)
    targets = {"chat": settings.chat_target, "memory": settings.memory_target, "sms": settings.sms_target}
    channels = {
        name: open_channel(target, audience=name, tokens=None, timeout_seconds=settings.purge_timeout_seconds, tls=tls)
        for name, target in targets.items()
        if target
    }
    for channel in channels.values():
        parts.push_async_callback(channel.close)
    return channels


def _free_failures(settings: AuthSettings) -> FreeFailures:
    return FreeFailures(
        pair=settings.sign_in_free_failures,
        address=settings.sign_in_free_failures_per_address,
        name=settings.sign_in_free_failures_per_name,
    )


def _code_limits(settings: AuthSettings) -> CodeLimits:
    return CodeLimits(
        lifetime_seconds=settings.phone_code_lifetime_seconds,
        attempts=_CODE_ATTEMPTS,
        resend_seconds=settings.phone_code_resend_seconds,
        window_seconds=DAY_SECONDS,
        most_sent=settings.phone_codes_per_day,
        most_to_number=2 * settings.phone_codes_per_day,
    )


def _mounts(auth: AuthServicer, token: TokenServicer, user: UserServicer) -> list[Mount]:
    services = auth_pb2.DESCRIPTOR.services_by_name
    return [
        Mount(auth_pb2_grpc.add_AuthServiceServicer_to_server, auth, services["AuthService"]),
        Mount(auth_pb2_grpc.add_TokenServiceServicer_to_server, token, services["TokenService"]),
        Mount(user_pb2_grpc.add_UserServiceServicer_to_server, user, user_pb2.DESCRIPTOR.services_by_name["UserService"]),
    ]


def _door(exchange: Exchange, origins: Origins) -> Mount:
    add = ext_authz_pb2_grpc.add_AuthorizationServicer_to_server
    return Mount(add, DoorServicer(exchange, origins), ext_authz_pb2.DESCRIPTOR.services_by_name["Authorization"])


def _exchange(
    settings: AuthSettings, database: Database, accounts: Accounts, passwords: Passwords, standing: StandingSessions
) -> Exchange:
    path, store = settings.external_issuers_file, AccountStore(database)
    tokens = ExternalTokens([] if path is None else read_issuers(path))
    external = ExternalAccounts(tokens, StandingStore(database), store, passwords)
    return Exchange(accounts, store, external, standing)


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
