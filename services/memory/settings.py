"""The settings of memory, read once in `__main__` from the environment."""

from typing import Final, Self

from pydantic import Field, model_validator

from services.runtime.openai import OpenAISettings
from services.runtime.settings import PeerSettings, RedisSettings, ServerSettings

# Vectors stand in their rows, which must fit into a page of Postgres.
MAX_DIMENSIONS: Final = 3_840


class MemorySettings(ServerSettings, PeerSettings, RedisSettings, OpenAISettings):
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
    facts_limit: int = Field(default=20_000, ge=1, le=1_000_000)
    """Facts that a user may have, the closed ones included; earlier versions are not counted."""
    fact_versions_limit: int = Field(default=100, ge=1, le=10_000)
    """Earlier versions that a fact keeps; the oldest go."""
    export_stall_seconds: float = Field(default=20, gt=0, le=25)
    """How long the reader of an export may take over a page of it; an export holds a connection to the database. The whole
    may take five minutes."""
    imported_messages_limit: int = Field(default=200_000, ge=1, le=10_000_000)
    """Messages that a user may have for an import to bring more. What chat tells of is not bounded by it."""
    expiry_sweep_seconds: float = Field(default=300, gt=0, le=86_400)
    """How often facts are looked for that expired and were left behind. They are shown by nothing meanwhile."""
    upkeep_retry_seconds: float = Field(default=1, gt=0, le=60)
    """How long work that is owed is left alone after the model, or the database, failed it; doubled each time."""
    upkeep_longest_pause_seconds: float = Field(default=60, gt=0, le=3600)
    """The longest such pause: so late can the work begin again after an outage."""
    embeddings_enabled: bool = True
    """Whether memories are embedded. What comes while it is off is owed, and made up for when it is on."""
    embedding_model: str = Field(default="text-embedding-3-small", min_length=1, max_length=200)
    """The provider's model. With another one all memories are embedded anew, while search goes on."""
    embedding_dimensions: int = Field(default=512, ge=0, le=MAX_DIMENSIONS)
    """Length of the vectors. 0: the model's own; then nothing is said of it in a request, as models before
    text-embedding-3 and many servers want it."""
    embedding_input_tokens: int = Field(default=2_000, ge=16, le=8_192)
    """Tokens, as we estimate them, of a text that are embedded. Longer ones blur, and are searched by their words."""
    embedding_batch: int = Field(default=256, ge=1, le=2_048)
    """Most texts of one call."""
    embedding_timeout_seconds: float = Field(default=0.4, gt=0, le=30)
    """How long a search waits for the vector of its query; then it goes by words alone. So much less than
    RECALL_TIMEOUT_SECONDS that a slow provider leaves a context the time to read what the words have found."""
    default_memory_tokens: int = Field(default=1_000, ge=1)
    """Tokens of recalled memories in a context when the caller names no budget."""
    greatest_memory_tokens: int = Field(default=8_000, ge=1, le=100_000)
    """The most tokens of recalled memories that a caller gets; more is cut to it."""
    recall_timeout_seconds: float = Field(default=0.8, gt=0, le=30)
    """How long after its beginning a context waits for recalled memories, and for summaries; then it is given without. Less
    than chat's MEMORY_TIMEOUT_SECONDS, or chat goes on without any context."""
    extraction_enabled: bool = True
    """Whether facts are learned from what users say. What comes while it is off is owed, and made up for when it is on."""
    extraction_model: str | None = Field(default=None, min_length=1, max_length=200)
    """The model that proposes facts; OPENAI_MODEL by default. It must be able to answer by a JSON schema."""
    extraction_delay_seconds: float = Field(default=60, ge=0, le=86_400)
    """How long a conversation waits for more to come before it is read for facts: more turns in one call."""
    extraction_messages: int = Field(default=40, ge=2, le=500)
    """Most messages of one call, both sides counted."""
    extraction_tokens: int = Field(default=4_000, ge=200, le=100_000)
    """Tokens of messages in one call, as we estimate them; the instructions and the known facts come on top."""
    extraction_facts: int = Field(default=40, ge=0, le=200)
    """Known facts that the model is shown in a call."""
    extraction_output_tokens: int = Field(default=4_000, ge=100, le=32_000)
    """Most tokens of an answer. Reasoning counts too, and a model that may not finish it says nothing."""
    extraction_timeout_seconds: float = Field(default=60, gt=0, le=600)
    """How long one call may take."""
    extraction_concurrency: int = Field(default=2, ge=1, le=32)
    """Conversations that a process reads at a time."""
    recall_candidates: int = Field(default=100, ge=10, le=1_000)
    """How many memories each way of finding names, before they are put in one order."""
    recall_rank_constant: int = Field(default=20, ge=1, le=1_000)
    """How slowly a memory counts for less with its rank: the k of reciprocal rank fusion."""
    recall_words_weight: float = Field(default=1.0, ge=0, le=100)
    """How much it counts that a memory shares words with a query. 0 switches it off, as with those that follow."""
    recall_meaning_weight: float = Field(default=1.0, ge=0, le=100)
    """How much it counts that it, or one of its sentences, means what the query means."""
    recall_previous_weight: float = Field(default=0.5, ge=0, le=100)
    """How much it counts that the message before it does: an answer is found by its question."""
    recall_facts_weight: float = Field(default=0.5, ge=0, le=100)
    """How much it counts that a fact that fits was learned from it."""
    recall_neighbour_weight: float = Field(default=0.3, ge=0, le=100)
    """How much it counts that a message beside it was found."""
    recall_time_weight: float = Field(default=0.5, ge=0, le=100)
    """How much it counts that it is of the time that the query speaks of."""
    summaries_enabled: bool = True
    """Whether conversations and people are summed up, and contexts hold the summaries."""
    summary_model: str | None = Field(default=None, min_length=1, max_length=200)
    """The model that writes summaries; OPENAI_MODEL by default. A small one will do."""
    summary_after_messages: int = Field(default=24, ge=2, le=10_000)
    """Messages from which on a conversation is summed up: about as many as a context holds."""
    summary_every_messages: int = Field(default=16, ge=2, le=10_000)
    """New messages after which its summary is written anew: one call of the model each time. Fewer than a context holds,
    or there are messages that neither of them tells."""
    summary_delay_seconds: float = Field(default=10, ge=0, le=86_400)
    """How long such a conversation waits for more to come before it is summed up."""
    summary_input_tokens: int = Field(default=6_000, ge=500, le=200_000)
    """Tokens of messages, or of facts, that one call sums up; a longer conversation takes several."""
    summary_output_tokens: int = Field(default=2_000, ge=100, le=32_000)
    """Most tokens of an answer. Reasoning counts too, and a model that may not finish it says nothing."""
    summary_characters: int = Field(default=1_200, ge=200, le=4_000)
    """Longest summary."""
    portrait_delay_seconds: float = Field(default=300, ge=0, le=86_400)
    """How long the person's summary waits after a change: many changes, one call."""

    @model_validator(mode="after")
    def _budgets_agree(self) -> Self:
        if self.default_context_tokens > self.greatest_context_tokens:
            raise ValueError("DEFAULT_CONTEXT_TOKENS must not be greater than GREATEST_CONTEXT_TOKENS")
        if self.default_memory_tokens > self.greatest_memory_tokens:
            raise ValueError("DEFAULT_MEMORY_TOKENS must not be greater than GREATEST_MEMORY_TOKENS")
        return self
