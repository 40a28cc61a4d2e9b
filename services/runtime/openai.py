"""The way to an OpenAI-compatible provider: settings, client, and what its failures mean to us.

Owns the translation of everything that the SDK and its HTTP client can raise into the ServiceError family, and the policy of
waiting and trying again. Invariant: no vendor error, vendor text or key passes this module. It refuses to let the SDK retry:
the SDK would sleep for any Retry-After, past every deadline.
"""

import contextlib
import json
import random
import ssl
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx2
import openai
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, ServiceError, Unavailable

ReasoningEffort = Literal["minimal", "low", "medium", "high"]
ProviderApi = Literal["responses", "chat_completions"]
BackgroundUse = Literal["auto", "on", "off"]

WRITE_TIMEOUT_SECONDS = 10
POOL_TIMEOUT_SECONDS = 10
MAX_UNARY_CONNECTIONS = 100
MAX_STATED_WAIT_SECONDS = 86_400.0
MAX_BACKOFF_SECONDS = 30.0
MIN_STATED_WAIT_SECONDS = 0.2
_RETRIED = (reasons.ERROR_REASON_MODEL_RATE_LIMITED, reasons.ERROR_REASON_MODEL_UNAVAILABLE)
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "account_deactivated")
_REQUEST_CODES = (
    *("invalid_", "unsupported_", "context_length_", "model_not_found"),
    *("bio_policy", "misalignment_policy", "data_residency_"),
)
_ACCESS_CODES = (*_QUOTA_CODES, "invalid_api_key")
# What the SDK lets through of a body that is no JSON, holds a number that is none, or is nested for ever.
_UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError, OverflowError, RecursionError)


class OpenAISettings(BaseSettings):
    """How the provider is reached, and what is asked of it where a request does not say."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    openai_api_key: SecretStr
    """Key of the provider."""
    openai_base_url: str = Field(default="https://api.openai.com/v1", pattern=r"^https?://\S+$")
    """Any server that speaks the API that `openai_api` names."""
    openai_api: ProviderApi = "responses"
    """The API of the server: `chat_completions` for one without the Responses API; then nothing runs at the provider (no
    web search, code interpreter or MCP servers of its own) and no run there outlives our process."""
    openai_background: BackgroundUse = "auto"
    """Which replies run at the provider by themselves, so that another process of ours can go on with them: `auto` the
    long ones (web search, code interpreter, the provider's MCP calls, high effort), `on` all, `off` none. Their first token
    comes later, and the provider keeps them until we delete them, at the end of the turn."""
    openai_model: str = Field(default="gpt-5-mini", min_length=1, max_length=200)
    """The model of a request that names none."""
    openai_max_output_tokens: int | None = Field(default=None, ge=16, le=128_000)
    """Most tokens of a reply, reasoning included; the model's own bound by default."""
    openai_temperature: float | None = Field(default=None, ge=0, le=2)
    """Sampling temperature; not sent by default, since reasoning models refuse it."""
    openai_reasoning_effort: ReasoningEffort | None = None
    """How much the model may think; not sent by default, since models that do not reason refuse it."""
    openai_timeout_seconds: float = Field(default=60, gt=0, le=3600)
    """Longest silence of the provider, before or between two pieces of a reply."""
    openai_connect_timeout_seconds: float = Field(default=5, gt=0, le=60)
    """How long connecting may take."""
    openai_max_retries: int = Field(default=2, ge=0, le=10)
    """How often a call that failed before its first text is tried again. A limit (429) for which the provider states a wait
    is waited for as often as the reply's deadline allows."""
    openai_retry_delay_seconds: float = Field(default=0.5, ge=0, le=30)
    """Wait before the first retry where the provider names none; doubled each time, with jitter."""
    openai_max_connections: int = Field(default=2000, ge=1, le=20_000)
    """Connections of the pool. A streamed reply holds one."""


def open_client(settings: OpenAISettings, *, tls: ssl.SSLContext | None = None) -> openai.AsyncOpenAI:
    """A client for unary jobs: its pool is bounded and it never retries by itself; `await client.close()` ends it.

    Streamed replies of the chat have a faster way of their own. `tls` saves making another context (a tenth of a second).
    """
    limits = httpx2.Limits(
        max_connections=min(settings.openai_max_connections, MAX_UNARY_CONNECTIONS),
        max_keepalive_connections=MAX_UNARY_CONNECTIONS,
    )
    timeout = httpx2.Timeout(
        connect=settings.openai_connect_timeout_seconds,
        read=settings.openai_timeout_seconds,
        write=WRITE_TIMEOUT_SECONDS,
        pool=POOL_TIMEOUT_SECONDS,
    )
    return openai.AsyncOpenAI(
        api_key=settings.openai_api_key.get_secret_value(),
        base_url=settings.openai_base_url,
        max_retries=0,
        timeout=timeout,
        http_client=openai.DefaultAsyncHttpxClient(limits=limits, timeout=timeout, verify=tls or True),
    )


@contextlib.contextmanager
def translated(model: str) -> Iterator[None]:
    """Turns what the SDK and its HTTP client raise inside into ServiceErrors about `model`."""
    try:
        yield
    except openai.APIStatusError as error:
        refusal = Refusal(error.status_code, {"error": error.body}, error.response.headers)
        raise from_refusal(refusal, model) from refusal
    except (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError) as error:
        raise timed_out(model) from error
    except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, *_UNREADABLE) as error:
        raise unavailable(model) from error


class Refusal(Exception):
    """The provider's own error, the cause of a ServiceError. Its text is for our decisions, never for a caller or a log.

    `status` is None inside a stream, where an error has a code only.
    """

    def __init__(self, status: int | None, body: object, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        told: Any = body.get("error") if isinstance(body, dict) and body.get("error") is not None else body
        told = told if isinstance(told, dict) else {"message": told}
        self.status = status
        self.code = _text(told.get("code")) or _text(told.get("type"))
        self.parameter = _text(told.get("param")) or None
        self.retry_after_seconds = stated_wait_seconds(headers or {})
        self._words = f"{self.code} {self.parameter} {_text(told.get('message'))}".lower()

    def mentions(self, *words: str) -> bool:
        """Whether the provider used one of these words (lowercase)."""
        return any(word in self._words for word in words)


def from_refusal(refusal: Refusal, model: str) -> ServiceError:
    """What the provider's error means. Raise it from the refusal: how long to wait is read there."""
    status, code = refusal.status, refusal.code
    if status is None:
        return _from_code(refusal, model)
    if status == httpx2.codes.TOO_MANY_REQUESTS and code not in _QUOTA_CODES:
        return rate_limited(model, refusal.retry_after_seconds)
    if code in _ACCESS_CODES or status in (401, 402, 403, 429):
        return access_refused(model)
    if status >= httpx2.codes.INTERNAL_SERVER_ERROR or status in (408, 409):
        return unavailable(model, refusal.retry_after_seconds)
    return refused(model, "model" if status == httpx2.codes.NOT_FOUND else refusal.parameter)


def from_error_code(code: str | None, param: str | None, model: str) -> ServiceError:
    """What an error inside a stream, or of a failed response, means: it has a code and no HTTP status."""
    return from_refusal(Refusal(None, {"code": code, "param": param}), model)


def _from_code(refusal: Refusal, model: str) -> ServiceError:
    code = refusal.code
    if code in _ACCESS_CODES:
        return access_refused(model)
    if code == "rate_limit_exceeded":
        return rate_limited(model, None)
    if "image" in code:
        return refused(model, refusal.parameter or "images")
    if refusal.parameter or code.startswith(_REQUEST_CODES):
        return refused(model, refusal.parameter)
    return unavailable(model)


def rate_limited(model: str, delay_seconds: float | None) -> ResourceExhausted:
    """The provider limits us."""
    return ResourceExhausted(
        f"The provider of {model} limits us at the moment. Try again later.",
        reasons.ERROR_REASON_MODEL_RATE_LIMITED,
        metadata={"model": model},
        retry_delay_seconds=_delay() if delay_seconds is None else delay_seconds,
    )


def unavailable(model: str, delay_seconds: float | None = None) -> Unavailable:
    """The provider failed, or broke the stream."""
    return Unavailable(
        f"The provider of {model} failed. Try again.",
        reasons.ERROR_REASON_MODEL_UNAVAILABLE,
        metadata={"model": model},
        retry_delay_seconds=_delay() if delay_seconds is None else delay_seconds,
    )


def access_refused(model: str) -> Unavailable:
    """The provider refused our key or account."""
    return Unavailable(
        f"The provider of {model} refuses this service's access. An operator must act.",
        reasons.ERROR_REASON_MODEL_ACCESS_REFUSED,
        metadata={"model": model},
    )


def refused(model: str, parameter: str | None) -> InvalidArgument:
    """The provider refused the model or a parameter of the request."""
    named = parameter or "request"
    return InvalidArgument(
        f"The provider refuses `{named}` as asked of {model}. Change it, leave it out, or use another model.",
        reasons.ERROR_REASON_MODEL_REFUSED_REQUEST,
        metadata={"parameter": named, "model": model},
    )


def timed_out(model: str) -> DeadlineExceeded:
    """The provider was silent for too long, or the reply took longer than it may."""
    return DeadlineExceeded(
        f"The provider of {model} took too long. Try again.",
        reasons.ERROR_REASON_MODEL_TIMED_OUT,
        metadata={"model": model},
        retry_delay_seconds=_delay(),
    )


def retry_wait_seconds(error: ServiceError, *, retries: int, settings: OpenAISettings) -> float | None:
    """How long to wait before trying again what failed after so many retries; None when it must not be tried again.

    A stated wait for a limit is always an answer (see `is_stated_limit`): the caller's deadline bounds those.
    """
    stated = error.__cause__.retry_after_seconds if isinstance(error.__cause__, Refusal) else None
    if stated is not None and is_stated_limit(error):
        # Never at once, and not all together.
        return max(stated, MIN_STATED_WAIT_SECONDS) + random.uniform(0, 0.1)  # noqa: S311 - jitter, no secret
    if error.reason not in _RETRIED or retries >= settings.openai_max_retries:
        return None
    if stated is not None:
        return stated
    return backoff_seconds(retries, settings)


def is_stated_limit(error: ServiceError) -> bool:
    """Whether the provider limits us and says for how long: that is to be waited for, and is no failed try."""
    cause = error.__cause__
    limited = error.reason == reasons.ERROR_REASON_MODEL_RATE_LIMITED
    return limited and isinstance(cause, Refusal) and cause.retry_after_seconds is not None


def backoff_seconds(tries: int, settings: OpenAISettings) -> float:
    """The wait after so many tries, with jitter."""
    backoff = min(settings.openai_retry_delay_seconds * 2.0**tries, MAX_BACKOFF_SECONDS)
    return backoff * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def stated_wait_seconds(headers: Mapping[str, str]) -> float | None:
    """The wait that the provider asked for, by `retry-after-ms`, or `retry-after` in seconds or as a date."""
    with contextlib.suppress(ValueError):
        return _wait(float(headers.get("retry-after-ms", "")) / 1000)
    stated = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return _wait(float(stated))
    with contextlib.suppress(ValueError):
        return _wait(parsedate_to_datetime(stated).timestamp() - time.time())
    return None


def _wait(seconds: float) -> float:
    return min(max(0.0, seconds), MAX_STATED_WAIT_SECONDS)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _delay() -> float:
    return round(random.uniform(1.0, 5.0), 1)  # noqa: S311 - jitter, no secret
