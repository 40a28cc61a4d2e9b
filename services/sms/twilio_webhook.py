"""What Twilio tells us: forms, their signatures, and what they say in our words.

Owns the check that a webhook is Twilio's. The signature is of the URL that Twilio was given and the form's fields; the
URL is the configured one, never what a request says of itself, so that proxies and Host headers change nothing. Every
other field is passed over: Twilio adds new ones.
"""

import datetime as dt
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal
from urllib.parse import parse_qsl

import structlog
from google.api import httpbody_pb2
from twilio.request_validator import RequestValidator, get_signature_algorithm

from services.runtime.errors import FieldViolation, invalid_request
from services.runtime.rules import CONTROL_CHARACTERS
from services.sms.provider.twilio_provider import status_of
from services.sms.records import CallReport, DeliveryReport, IncomingText
from services.sms.refusals import signature_wrong

log = structlog.get_logger(__name__)

MESSAGE_PATH: Final = "/webhooks/twilio/sms"
STATUS_PATH: Final = "/webhooks/twilio/sms-status"
VOICE_PATH: Final = "/webhooks/twilio/voice-status"
_SIGNATURE: Final = "x-twilio-signature"
_SIGNATURE_SETTINGS: Final = "x-twilio-webhooks-signature-settings"
_FORM_TYPE: Final = "application/x-www-form-urlencoded"
_MOST_FIELDS: Final = 200
# A form is read before its signature can be checked, whoever sends it. Twilio's longest text has 1,600 characters, which
# take 19 KB where all are escaped.
_MOST_BYTES: Final = 32_768
# Base64 of a SHA-1 or a SHA-256.
_SIGNATURE_FORM: Final = re.compile(r"[A-Za-z0-9+/]{27}=|[A-Za-z0-9+/]{43}=")
_NUMBER: Final = re.compile(r"\+?[A-Za-z0-9]{2,20}")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_MOST_TEXT: Final = 10_000
_MOST_SECONDS: Final = 86_400 * 7
_CALL_STATUSES: Final[Mapping[str, str]] = {
    "queued": "queued", "initiated": "queued", "ringing": "ringing", "in-progress": "in_progress", "answered": "in_progress",
    "completed": "completed", "busy": "busy", "no-answer": "no_answer", "canceled": "canceled", "failed": "failed",
}  # fmt: skip
TWIML: Final = b'<?xml version="1.0" encoding="UTF-8"?><Response></Response>'


def empty_twiml() -> httpbody_pb2.HttpBody:
    """The answer to every webhook: nothing is to be done."""
    return httpbody_pb2.HttpBody(content_type="text/xml; charset=utf-8", data=TWIML)


class Form:
    """The fields of a form, as they came. A field that came twice has its first value; its signature is of both."""

    def __init__(self, body: httpbody_pb2.HttpBody) -> None:
        if body.content_type.partition(";")[0].strip().lower() not in {_FORM_TYPE, ""}:
            raise _wrong("form", f"must be {_FORM_TYPE}")
        if len(body.data) > _MOST_BYTES:
            raise _wrong("form", f"is longer than {_MOST_BYTES} bytes")
        try:
            pairs = parse_qsl(
                body.data.decode("utf-8"), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"
            )
        except ValueError:
            raise _wrong("form", "does not parse as a form of UTF-8 fields") from None
        self._fields: dict[str, list[str]] = {}
        for name, value in pairs:
            self._fields.setdefault(name, []).append(value)

    def __iter__(self) -> Any:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def getlist(self, name: str) -> list[str]:
        """Every value of a field: what the signature is of."""
        return self._fields[name]

    def get(self, name: str) -> str:
        """A field's first value; empty for none."""
        return self._fields.get(name, [""])[0]


class TwilioWebhooks:
    """Reads webhooks. Without a token none is Twilio's. In shadow a wrong signature is logged, and passed over."""

    def __init__(self, *, public_url: str, auth_token: str, account_sid: str, is_shadow: bool) -> None:
        self._public_url = public_url.rstrip("/")
        self._validator: Any = RequestValidator(auth_token) if auth_token else None  # type: ignore[no-untyped-call]
        self._account_sid = account_sid
        self._is_shadow = is_shadow

    def read(self, body: httpbody_pb2.HttpBody, path: str, metadata: Mapping[str, str]) -> Form:
        """The form of a webhook at this path. Raises PermissionDenied (WEBHOOK_SIGNATURE_WRONG), InvalidArgument."""
        # Before the form is read, which costs more than all the rest, and anybody may send one.
        is_possible = self._validator is not None and _SIGNATURE_FORM.fullmatch(metadata.get(_SIGNATURE, "")) is not None
        if not is_possible:
            self._refuse(path)
        form = Form(body)
        if is_possible and not self._is_signed(form, path, metadata):
            self._refuse(path)
        return form

    def _refuse(self, path: str) -> None:
        """Raises PermissionDenied; in shadow it only says so."""
        log.warning("webhook.signature_wrong", path=path, is_shadow=self._is_shadow)
        if not self._is_shadow:
            raise signature_wrong()

    def _is_signed(self, form: Form, path: str, metadata: Mapping[str, str]) -> bool:
        if self._account_sid and form.get("AccountSid") not in {"", self._account_sid}:
            return False
        signature = metadata.get(_SIGNATURE, "")
        algorithm = get_signature_algorithm(metadata.get(_SIGNATURE_SETTINGS, ""))  # type: ignore[no-untyped-call]
        return bool(self._validator.validate(self._public_url + path, form, signature, algorithm))


def read_text(form: Form) -> IncomingText:
    """An incoming text. Raises InvalidArgument."""
    return IncomingText(
        provider_message_id=_id(form, "MessageSid"),
        phone_number=_number(form, "From"),
        # Nobody meant to say what neither Postgres nor chat would take.
        text=CONTROL_CHARACTERS.sub("", form.get("Body"))[:_MOST_TEXT],
        opt_out_type=form.get("OptOutType"),
    )


def read_report(form: Form, message_id: str) -> DeliveryReport | None:
    """What a status callback says; None where that is nothing about a delivery."""
    status = status_of(form.get("MessageStatus") or form.get("SmsStatus"))
    if status is None:
        return None
    error_code = form.get("ErrorCode")
    return DeliveryReport(
        provider_message_id=_id(form, "MessageSid"),
        status=status,
        error_code=error_code if error_code.isdigit() and error_code != "0" else "",
        message_id=message_id.lower() or None,
    )


def read_call(form: Form) -> CallReport | None:
    """What a voice status callback says; None where it tells of no state that we know."""
    status = _CALL_STATUSES.get(form.get("CallStatus"))
    if status is None:
        return None
    direction: Literal["inbound", "outbound"] = "inbound" if form.get("Direction") == "inbound" else "outbound"
    seconds = form.get("CallDuration") or form.get("Duration")
    return CallReport(
        provider_call_id=_id(form, "CallSid"),
        direction=direction,
        phone_number=_number(form, "From" if direction == "inbound" else "To"),
        status=status,
        duration_seconds=min(int(seconds), _MOST_SECONDS) if _SECONDS.fullmatch(seconds) else 0,
        start_time=_time(form.get("Timestamp")),
    )


def _id(form: Form, name: str) -> str:
    value = form.get(name)
    if not _ID.fullmatch(value):
        raise _wrong(name, "must be an id of Twilio's")
    return value


def _number(form: Form, name: str) -> str:
    # A short code, or the name of a sender, is no number of E.164 and comes all the same.
    value = form.get(name)
    if not _NUMBER.fullmatch(value):
        raise _wrong(name, "must be a phone number")
    return value


def _time(text: str) -> dt.datetime | None:
    """A moment as Twilio writes it, of RFC 2822; None for anything else."""
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def _wrong(field: str, description: str) -> Exception:
    return invalid_request([FieldViolation(field, description)])
