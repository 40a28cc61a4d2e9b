"""The way to an OpenAI-compatible provider: settings, client, and what its failures mean to us.

Owns the translation of everything that the SDK and its HTTP client can raise into the ServiceError family, and the policy of
waiting and trying again. Invariant: no vendor error, vendor text or key passes this module. It refuses to let the SDK retry:
the SDK would sleep for any Retry-After, past every deadline.
"""

import contextlib
import random
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Literal

import httpx2
import openai
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, ServiceError, Unavailable

ReasoningEffort = Literal["minimal", "low", "medium", "high"]

WRITE_TIMEOUT_SECONDS = 10
POOL_TIMEOUT_SECONDS = 10
MAX_BACKOFF_SECONDS = 30.0
_RETRIED = (reasons.ERROR_REASON_MODEL_RATE_LIMITED, reasons.ERROR_REASON_MODEL_UNAVAILABLE)
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "account_deactivated")
_ACCESS_CODES = (*_QUOTA_CODES, "invalid_api_key")


class OpenAISettings(BaseSettings):
    """How the provider is reached, and what is asked of it where a request does not say."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    openai_api_key: SecretStr
    """Key of the provider."""
    openai_base_url: str = Field(default="https://api.openai.com/v1", pattern=r"^https?://\S+$")
    """Any server that speaks the Responses API."""
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
    """How often a call that failed before its first text is tried again."""
    openai_retry_delay_seconds: float = Field(default=0.5, ge=0, le=30)
    """Wait before the first retry where the provider names none; doubled each time, with jitter."""
    openai_max_connections: int = Field(default=2000, ge=1, le=20_000)
    """Connections of the pool. A streamed reply holds one."""


def open_client(settings: OpenAISettings) -> openai.AsyncOpenAI:
    """A client with a bounded pool that never retries by itself; `await client.close()` ends it.

    It has no read timeout: silence is watched by whoever reads, by one timer a reply instead of one a read.
    """
    limits = httpx2.Limits(
        max_connections=settings.openai_max_connections, max_keepalive_connections=settings.openai_max_connections
    )
    timeout = httpx2.Timeout(
        connect=settings.openai_connect_timeout_seconds,
        read=None,
        write=WRITE_TIMEOUT_SECONDS,
        pool=POOL_TIMEOUT_SECONDS,
    )
    return openai.AsyncOpenAI(
        api_key=settings.openai_api_key.get_secret_value(),
        base_url=settings.openai_base_url,
        max_retries=0,
        timeout=timeout,
        http_client=openai.DefaultAsyncHttpxClient(limits=limits, timeout=timeout),
    )


@contextlib.contextmanager
def translated(model: str) -> Iterator[None]:
    """Turns what the SDK and its HTTP client raise inside into ServiceErrors about `model`."""
    try:
        yield
    except openai.APIStatusError as error:
        raise from_status_error(error, model) from error
    except (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError) as error:
        raise timed_out(model) from error
    except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError) as error:
        raise unavailable(model) from error


def from_status_error(error: openai.APIStatusError, model: str) -> ServiceError:
    """What a refused HTTP request means."""
    status, code = error.status_code, error.code or error.type or ""
    if status == httpx2.codes.TOO_MANY_REQUESTS and code not in _QUOTA_CODES:
        return rate_limited(model, retry_after_seconds(error))
    if code in _ACCESS_CODES or status in (401, 402, 403, 429):
        return access_refused(model)
    if status >= httpx2.codes.INTERNAL_SERVER_ERROR or status in (408, 409):
        return unavailable(model, retry_after_seconds(error))
    return refused(model, "model" if status == httpx2.codes.NOT_FOUND else error.param)


def from_error_code(code: str | None, param: str | None, model: str) -> ServiceError:
    """What an error inside a stream, or of a failed response, means: it has a code and no HTTP status."""
    if code in _ACCESS_CODES:
        return access_refused(model)
    if code == "rate_limit_exceeded":
        return rate_limited(model, None)
    if param or (code or "").startswith(("invalid_", "unsupported_", "context_length_", "model_not_found")):
        return refused(model, param)
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
    """How long to wait before trying again what failed after so many retries; None when it must not be tried again."""
    if error.reason not in _RETRIED or retries >= settings.openai_max_retries:
        return None
    stated = retry_after_seconds(error.__cause__)
    if stated is not None:
        return stated
    backoff = min(settings.openai_retry_delay_seconds * 2.0**retries, MAX_BACKOFF_SECONDS)
    return backoff * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def retry_after_seconds(error: BaseException | None) -> float | None:
    """The wait that the provider asked for, by `retry-after-ms`, or `retry-after` in seconds or as a date."""
    if not isinstance(error, openai.APIStatusError):
        return None
    headers = error.response.headers
    with contextlib.suppress(ValueError):
        return max(0.0, float(headers.get("retry-after-ms", "")) / 1000)
    stated = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(stated))
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(stated).timestamp() - time.time())
    return None


def _delay() -> float:
    return round(random.uniform(1.0, 5.0), 1)  # noqa: S311 - jitter, no secret
