"""What chat is told from outside."""

from importlib.resources import files
from typing import Final, Self

from pydantic import Field, model_validator

from services.chat.mcp_settings import McpSettings
from services.runtime.openai import OpenAISettings
from services.runtime.sealing import SealingSettings
from services.runtime.settings import PeerSettings, RedisSettings, ServerSettings

MOST_DEADLINE_SECONDS: Final = 3600


class ChatSettings(ServerSettings, PeerSettings, RedisSettings, OpenAISettings, SealingSettings, McpSettings):
    """Settings of the chat service."""

    memory_target: str = Field(min_length=1)
    """gRPC target of memory."""
    sms_target: str = ""
    """gRPC target of sms, so that a user can say "don't text me" in a conversation; the model has no such tool without."""
    memory_timeout_seconds: float = Field(default=1.0, gt=0, le=30)
    """How long a turn waits for its context; then it goes on without memory."""
    context_token_budget: int = Field(default=16_000, ge=100, le=1_000_000)
    """Most tokens of earlier messages that the model gets, and of what is remembered beyond them, estimated."""
    memory_token_budget: int = Field(default=1_000, ge=0, le=100_000)
    """Most tokens of memories that the model gets in a turn, estimated, and never more than half of CONTEXT_TOKEN_BUDGET;
    0: none are asked for, nor what is known of the person."""
    memory_tools_enabled: bool = True
    """Whether the model is offered tools to remember, recall and forget, in turns with memory. A model that knows no
    tools at all goes on without them."""
    assistant_instructions: str = Field(
        default_factory=lambda: (files("services.chat") / "prompts" / "assistant.md").read_text(encoding="utf-8"),
        min_length=1,
    )
    """What the assistant obeys where a request says nothing of its own."""
    max_generations: int = Field(default=2000, ge=1, le=20_000)
    """Replies that one process writes at a time."""
    generation_deadline_seconds: float = Field(default=120, gt=0, le=MOST_DEADLINE_SECONDS)
    """How long a reply may take, waiting for the provider included."""
    lease_seconds: float = Field(default=10, ge=0.5, le=120)
    """How long a process is believed to write its replies after its last sign of life."""
    lease_renew_seconds: float = Field(default=3, ge=0.1, le=40)
    """How often it gives one."""
    heartbeat_seconds: float = Field(default=15, ge=0.1, le=300)
    """Longest silence of a stream."""
    reader_retention_seconds: float = Field(default=60, ge=0.1, le=600)
    """How long after its end a reply is kept for readers that are behind; then they are cut."""
    reader_stall_seconds: float = Field(default=30, ge=0.4, le=600)
    """How long a stream may take nothing of what it is sent; then it is cut."""
    token_budget_per_day: int = Field(default=0, ge=0, le=1_000_000_000)
    """Tokens, input and output, that a user may spend a day (UTC); 0: as many as they like. Replies get a bound with it."""
    titles_enabled: bool = True
    """Whether the model is asked for a title after a conversation's first turn; otherwise its beginning is the title."""
    title_model: str | None = Field(default=None, min_length=1)
    """The model that is asked for titles; the service's model by default."""
    max_tool_rounds: int = Field(default=8, ge=1, le=64)
    """Rounds of one reply in which the model may call tools; then it gets one last round without."""
    max_tool_calls: int = Field(default=32, ge=1, le=1000)
    """Calls of tools in one reply; what is beyond is not run, and the model is told so."""
    tool_timeout_seconds: float = Field(default=30, gt=0, le=600)
    """How long one call of a tool may take."""
    max_tasks: int = Field(default=5000, ge=1, le=100_000)
    """Tasks that a user may have, the completed ones included."""
    job_concurrency: int = Field(default=4, ge=1, le=64)
    """Jobs that one process works at a time."""

    @model_validator(mode="after")
    def _lease_outlives_its_renewal(self) -> Self:
        if self.lease_renew_seconds * 2 > self.lease_seconds:
            raise ValueError(
                "LEASE_RENEW_SECONDS must be at most half of LEASE_SECONDS, so that one late renewal is survived"
            )
        if self.openai_max_connections < self.max_generations:
            raise ValueError("OPENAI_MAX_CONNECTIONS must be at least MAX_GENERATIONS: every reply holds a connection")
        return self
