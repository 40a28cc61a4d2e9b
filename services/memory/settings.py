"""The settings of memory, read once in `__main__` from the environment."""

from typing import Self

from pydantic import Field, model_validator

from services.runtime.settings import PeerSettings, RedisSettings, ServerSettings


class MemorySettings(ServerSettings, PeerSettings, RedisSettings):
    """What memory needs beyond what every service does."""

    working_set_ttl_seconds: int = Field(default=1800, ge=1, le=86_400)
    """How long the working set keeps a conversation after its last use. Text that was deleted while Redis was away, or
    that Redis brings back from an old file, is there for as long at most."""
    working_set_bytes: int = Field(default=131_072, ge=4_096, le=16_777_216)
    """Largest block of one conversation: 128 KiB hold some 30,000 tokens of English. A larger context is read from Postgres
    each time."""
    working_set_messages: int = Field(default=500, ge=2, le=10_000)
    """How many of the latest messages are looked at for a context, whatever its budget."""
    default_context_tokens: int = Field(default=4_000, ge=1)
    """Tokens of a context when the caller names no budget."""
    greatest_context_tokens: int = Field(default=32_000, ge=1, le=1_000_000)
    """The most tokens that a caller gets; more is cut to it."""
    eviction_sweep_seconds: float = Field(default=10, gt=0, le=600)
    """How often evictions that Redis has not confirmed are tried again."""

    @model_validator(mode="after")
    def _budgets_agree(self) -> Self:
        if self.default_context_tokens > self.greatest_context_tokens:
            raise ValueError("DEFAULT_CONTEXT_TOKENS must not be greater than GREATEST_CONTEXT_TOKENS")
        return self
