"""The sms service: settings -> parts -> servicers -> serve."""

from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc

from parley.sms.v1 import call_pb2, call_pb2_grpc, history_pb2, history_pb2_grpc, sms_pb2, sms_pb2_grpc
from services.runtime.channels import open_channel
from services.runtime.database import Database, serving_database
from services.runtime.duties import beside, repeat
from services.runtime.jobs import Jobs
from services.runtime.membership import membership
from services.runtime.openai import open_client
from services.runtime.peers import ServiceTokens
from services.runtime.process import run
from services.runtime.server import GrpcServer, Mount, serve
from services.runtime.small_jobs import SmallJobs
from services.runtime.tls import Tls
from services.sms.answering import Answering
from services.sms.call_servicer import CallServicer
from services.sms.call_store import CallStore
from services.sms.codes import Codes
from services.sms.consent_store import ConsentStore
from services.sms.conversations import Conversations
from services.sms.decision_store import DecisionStore
from services.sms.decisions import DecisionLimits, Decisions
from services.sms.erasure_store import ErasureStore
from services.sms.forgetting import Forgetting
from services.sms.history import History
from services.sms.history_servicer import HistoryServicer
from services.sms.inbox_store import InboxStore
from services.sms.matching import Matching
from services.sms.message_store import MessageStore, TextLimits
from services.sms.outbox_store import OutboxStore
from services.sms.own_number import OwnNumber
from services.sms.people import People
from services.sms.provider.console import ConsoleProvider
from services.sms.provider.provider import Provider
from services.sms.provider.twilio_provider import TwilioAccount, TwilioProvider
from services.sms.seen_numbers import SeenNumberStore
from services.sms.sending import Sending, SendLimits
from services.sms.servicer import SmsParts, SmsServicer
from services.sms.settings import SmsSettings
from services.sms.twilio_webhook import STATUS_PATH, TwilioWebhooks
from services.sms.upkeep import Upkeep

NAME = "sms"
_UPKEEP_SECONDS = 600.0


async def main(settings: SmsSettings) -> None:
    """Serves until told to stop."""
    url = settings.database_url.get_secret_value()
    async with AsyncExitStack() as parts:
        database = await parts.enter_async_context(serving_database(url, pool_size=settings.database_pool_size))
        member = await parts.enter_async_context(membership(NAME, settings))
        sms = await open_sms(settings, parts, database=database, tokens=member.tokens)
        await parts.enter_async_context(beside(*sms.duties))
        server = GrpcServer(
            address=settings.listen_address,
            mounts=sms.mounts,
            verifier=member.verifier,
            slow_call_seconds=settings.slow_call_seconds,
        )
        await serve(server, settings)


@dataclass(frozen=True)
class Sms:
    """The parts of sms that its process needs; the duties run beside serving."""

    mounts: Sequence[Mount]
    inbox: InboxStore
    duties: Sequence[Coroutine[None, None, None]]


async def open_sms(settings: SmsSettings, parts: AsyncExitStack, *, database: Database, tokens: ServiceTokens) -> Sms:
    """Sms on its database, with its jobs worked on, until `parts` closes."""
    jobs = Jobs(settings.database_url.get_secret_value())
    stores = _open_stores(settings, database, jobs)
    people, conversations = _open_peers(settings, parts, tokens)
    provider = _open_provider(settings)
    parts.push_async_callback(provider.close)
    sending = Sending(stores.outbox, provider, _send_limits(settings))
    sending.register(jobs)
    _answering(settings, stores.inbox, people, conversations).register(jobs)
    Matching(stores.calls, people).register(jobs)
    Forgetting(provider).register(jobs)
    webhooks = _webhooks(settings)
    servicer = SmsServicer(_sms_parts(settings, parts, stores, sending=sending, people=people, webhooks=webhooks))
    history = History(conversations, stores.messages, stores.calls, stores.decisions)
    await parts.enter_async_context(jobs.working(concurrency=settings.sms_job_concurrency))
    upkeep = Upkeep(stores.inbox, stores.calls, stores.erasure, unmatched_days=settings.unmatched_days)
    return Sms(
        mounts=_mounts(servicer, CallServicer(stores.calls, webhooks), HistoryServicer(history)),
        inbox=stores.inbox,
        duties=[
            repeat("sms.reconcile", sending.reconcile, interval_seconds=settings.reconcile_seconds),
            repeat("sms.upkeep", upkeep.sweep, interval_seconds=_UPKEEP_SECONDS),
        ],
    )


@dataclass(frozen=True)
class _Stores:
    """All that is in the database."""

    messages: MessageStore
    inbox: InboxStore
    outbox: OutboxStore
    consents: ConsentStore
    seen_numbers: SeenNumberStore
    calls: CallStore
    decisions: DecisionStore
    erasure: ErasureStore


def _open_stores(settings: SmsSettings, database: Database, jobs: Jobs) -> _Stores:
    limits = TextLimits(
        user_per_day=settings.sms_user_texts_per_day,
        number_per_hour=settings.sms_number_texts_per_hour,
        codes_per_hour=settings.sms_number_codes_per_hour,
    )
    return _Stores(
        messages=MessageStore(database, jobs, limits),
        inbox=InboxStore(database, jobs, limits, sender_name=settings.sms_sender_name),
        outbox=OutboxStore(database, jobs),
        consents=ConsentStore(database),
        seen_numbers=SeenNumberStore(database),
        calls=CallStore(database, jobs, most_calls=settings.calls_limit),
        decisions=DecisionStore(database, most_per_day=settings.decisions_per_day),
        erasure=ErasureStore(database, jobs),
    )


def _sms_parts(  # noqa: PLR0913 - what the servicer calls
    settings: SmsSettings,
    parts: AsyncExitStack,
    stores: _Stores,
    *,
    sending: Sending,
    people: People,
    webhooks: TwilioWebhooks,
) -> SmsParts:
    return SmsParts(
        messages=stores.messages,
        inbox=stores.inbox,
        outbox=stores.outbox,
        consents=stores.consents,
        erasure=stores.erasure,
        decisions=_open_decisions(settings, parts, stores.decisions),
        codes=Codes(stores.messages, stores.outbox, sending, sender_name=settings.sms_sender_name),
        people=people,
        own_number=OwnNumber(stores.seen_numbers, people),
        webhooks=webhooks,
        most_segments=settings.sms_max_segments,
    )


def _open_peers(settings: SmsSettings, parts: AsyncExitStack, tokens: ServiceTokens) -> tuple[People, Conversations]:
    timeout_seconds, tls = settings.peer_timeout_seconds, Tls.from_settings(settings)

    def channel(target: str, audience: str) -> grpc.aio.Channel:
        opened = open_channel(target, audience=audience, tokens=tokens, timeout_seconds=timeout_seconds, tls=tls)
        parts.push_async_callback(opened.close)
        return opened

    people = People(channel(settings.auth_target, "auth"), timeout_seconds=timeout_seconds)
    conversations = Conversations(
        channel(settings.chat_target, "chat"),
        answer_timeout_seconds=settings.answer_timeout_seconds,
        timeout_seconds=timeout_seconds,
    )
    return people, conversations


def _open_provider(settings: SmsSettings) -> Provider:
    if settings.sms_provider == "console":
        return ConsoleProvider(settings.sms_console_file)
    account = TwilioAccount(
        account_sid=settings.twilio_account_sid,
        auth_token=settings.twilio_auth_token.get_secret_value(),
        base_url=settings.twilio_base_url,
        number=settings.sms_number,
        messaging_service_sid=settings.twilio_messaging_service_sid,
    )
    status_url = settings.public_url.rstrip("/") + STATUS_PATH
    return TwilioProvider(account, status_url=status_url, timeout_seconds=settings.send_timeout_seconds)


def _open_decisions(settings: SmsSettings, parts: AsyncExitStack, store: DecisionStore) -> Decisions:
    client = open_client(settings)
    parts.push_async_callback(client.close)
    limits = DecisionLimits(
        model=settings.decision_model or settings.openai_model,
        output_tokens=settings.decision_output_tokens,
        reply_characters=settings.decision_reply_characters,
    )
    return Decisions(store, SmallJobs(client, settings), limits)


def _answering(settings: SmsSettings, inbox: InboxStore, people: People, conversations: Conversations) -> Answering:
    return Answering(
        inbox,
        people,
        conversations,
        reply_within_seconds=settings.reply_within_seconds,
        most_segments=settings.sms_max_segments,
    )


def _webhooks(settings: SmsSettings) -> TwilioWebhooks:
    return TwilioWebhooks(
        public_url=settings.public_url,
        auth_token=settings.twilio_auth_token.get_secret_value(),
        account_sid=settings.twilio_account_sid,
        is_shadow=settings.webhook_signatures == "shadow",
    )


def _send_limits(settings: SmsSettings) -> SendLimits:
    return SendLimits(
        tries=settings.send_tries,
        timeout_seconds=settings.send_timeout_seconds,
        unknown_after_seconds=settings.unknown_after_seconds,
    )


def _mounts(sms: SmsServicer, calls: CallServicer, history: HistoryServicer) -> list[Mount]:
    return [
        Mount(sms_pb2_grpc.add_SmsServiceServicer_to_server, sms, sms_pb2.DESCRIPTOR.services_by_name["SmsService"]),
        Mount(call_pb2_grpc.add_CallServiceServicer_to_server, calls, call_pb2.DESCRIPTOR.services_by_name["CallService"]),
        Mount(
            history_pb2_grpc.add_HistoryServiceServicer_to_server,
            history,
            history_pb2.DESCRIPTOR.services_by_name["HistoryService"],
        ),
    ]


if __name__ == "__main__":
    run(NAME, SmsSettings, main)
