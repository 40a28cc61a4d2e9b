"""The settings of sms, read once in `__main__` from the environment."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.runtime.openai import OpenAISettings
from services.runtime.settings import PeerSettings, ServerSettings

_E164 = r"^(\+[1-9][0-9]{6,14})?$"


class TwilioSettings(BaseSettings):
    """How Twilio is reached, and how what it sends is told from what others do."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    twilio_account_sid: str = Field(default="", pattern=r"^(AC[0-9a-fA-F]{32})?$")
    """The account, `AC…`."""
    twilio_auth_token: SecretStr = SecretStr("")
    """The account's token: by it we call Twilio, and Twilio signs its webhooks. Without it every webhook is refused."""
    twilio_messaging_service_sid: str = Field(default="", pattern=r"^(MG[0-9a-fA-F]{32})?$")
    """A messaging service that texts are sent by, instead of SMS_NUMBER."""
    twilio_base_url: str = Field(default="https://api.twilio.com", pattern=r"^https?://\S+$")
    """Another address of Twilio's API: a region's, or an emulator's."""
    webhook_signatures: Literal["enforce", "shadow"] = "enforce"
    """`shadow` logs a wrong signature and takes the webhook all the same: while you find out why it is wrong, not longer."""


class SmsSettings(ServerSettings, PeerSettings, OpenAISettings, TwilioSettings):
    """What sms needs beyond what every service does."""

    chat_target: str = Field(min_length=1)
    """gRPC target of chat, which answers incoming texts."""
    public_url: str = Field(default="http://127.0.0.1:8080", pattern=r"^https?://[^\s?#]+$")
    """Where the edge is reached from outside, whatever proxies are between: signatures of webhooks are of this URL and their
    path, and the provider tells of deliveries there."""
    sms_provider: Literal["console", "twilio"] = "console"
    """Who carries texts. `console` writes them down instead of sending them."""
    sms_console_file: Path | None = None
    """Where the console writes texts, one JSON object a line; standard output where it is not set."""
    sms_number: str = Field(default="", pattern=_E164)
    """The number that texts are sent from, in E.164."""
    sms_sender_name: str = Field(default="Parley", min_length=1, max_length=20)
    """What the service calls itself in the texts that it writes by itself."""
    sms_max_segments: int = Field(default=6, ge=1, le=10)
    """Most segments of a text; a reply that is longer is cut at a word. Providers charge by the segment, and take ten."""
    sms_user_texts_per_day: int = Field(default=200, ge=1, le=100_000)
    """Texts that a user may send, and be sent as replies, in 24 hours."""
    sms_number_texts_per_hour: int = Field(default=30, ge=1, le=10_000)
    """Texts of users that a number may be sent in an hour, whoever asks; and as many answers to its own texts, which others
    cannot use up: two machines that answer each other end there."""
    sms_number_codes_per_hour: int = Field(default=5, ge=1, le=1_000)
    """Verification codes that a number may be sent in an hour."""
    send_timeout_seconds: float = Field(default=10, gt=0, le=60)
    """How long the provider may take over one text. So long after a stop can a text still arrive that was under way."""
    send_tries: int = Field(default=8, ge=1, le=20)
    """How often a text is tried that the provider surely did not take; with growing delays."""
    reconcile_seconds: float = Field(default=15, gt=0, le=600)
    """How often texts are looked after whose sending ended without an answer."""
    unknown_after_seconds: float = Field(default=300, ge=1, le=86_400)
    """How long the provider is asked about such a text before it counts as `unknown`."""
    reply_within_seconds: float = Field(default=3600, ge=1, le=86_400)
    """An incoming text that could not be answered within this time is not answered any more."""
    answer_timeout_seconds: float = Field(default=150, gt=0, le=3600)
    """How long chat may take over one reply: longer than its GENERATION_DEADLINE_SECONDS."""
    unmatched_days: float = Field(default=30, gt=0, le=3650)
    """How long texts of numbers that are nobody's are kept."""
    sms_job_concurrency: int = Field(default=16, ge=1, le=200)
    """Jobs of a process at a time: texts being answered, and texts being sent, each."""
    decision_model: str = Field(default="", max_length=200)
    """The model that decides about texts; OPENAI_MODEL where it is empty."""
    decision_output_tokens: int = Field(default=2_000, ge=64, le=32_000)
    """Most tokens of a decision, reasoning included."""
    decision_reply_characters: int = Field(default=320, ge=20, le=1_600)
    """Most characters of the reply in a decision."""
    decisions_per_day: int = Field(default=500, ge=1, le=100_000)
    """Decisions that a user may ask for in 24 hours."""
    calls_limit: int = Field(default=20_000, ge=1, le=1_000_000)
    """Calls that a user may record."""

    @model_validator(mode="after")
    def _check_provider(self) -> Self:
        if self.sms_provider == "twilio":
            if not self.twilio_account_sid or not self.twilio_auth_token.get_secret_value():
                raise ValueError("SMS_PROVIDER=twilio needs TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN")
            if not self.sms_number and not self.twilio_messaging_service_sid:
                raise ValueError("SMS_PROVIDER=twilio needs SMS_NUMBER or TWILIO_MESSAGING_SERVICE_SID")
        return self
