"""Calls of the model for upkeep, counted: what remembering costs.

Owns the counters. Invariant: every call that memory makes of a language model is counted under its task, with the tokens
that the provider says it cost.
"""

from typing import Final

from prometheus_client import Counter

from services.runtime.errors import ServiceError, reason_name
from services.runtime.small_jobs import Answer, AnswerSchema, SmallJobs

CALLS: Final = Counter("parley_memory_model_calls", "Calls of the model, by what came of them", ["task", "outcome"])
TOKENS: Final = Counter(
    "parley_memory_model_tokens", "Tokens of the model: input (cached ones included), cached, output", ["task", "kind"]
)


class CountedModel:
    """The model that one task asks: `most_output_tokens` bounds an answer, reasoning included."""

    def __init__(self, jobs: SmallJobs, *, task: str, model: str, most_output_tokens: int) -> None:
        self._jobs = jobs
        self._task = task
        self._most_output_tokens = most_output_tokens
        self.name = model

    async def ask(self, *, instructions: str, text: str, schema: AnswerSchema | None = None) -> Answer:
        """The answer to one call. Raises ServiceError."""
        try:
            answer = await self._jobs.complete(
                model=self.name,
                instructions=instructions,
                text=text,
                max_output_tokens=self._most_output_tokens,
                schema=schema,
            )
        except ServiceError as error:
            CALLS.labels(self._task, reason_name(error.reason)).inc()
            raise
        CALLS.labels(self._task, "cut" if answer.is_cut else "answered").inc()
        if answer.usage is not None:
            TOKENS.labels(self._task, "input").inc(answer.usage.input_tokens)
            TOKENS.labels(self._task, "cached").inc(answer.usage.cached_tokens)
            TOKENS.labels(self._task, "output").inc(answer.usage.output_tokens)
        return answer
