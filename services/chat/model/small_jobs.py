"""Small jobs of the model, answered as a whole: a title, say.

Invariant: bounded in time; nothing is kept at the provider. It refuses to try again: jobs are repeated by their queue.
"""

import asyncio

from openai import AsyncOpenAI

from services.chat.records import Usage
from services.runtime.openai import OpenAISettings, Refusal, from_refusal, translated

MIN_OUTPUT_TOKENS = 16


class SmallJobs:
    """The jobs of one process."""

    def __init__(self, client: AsyncOpenAI, settings: OpenAISettings) -> None:
        self._client = client
        self._timeout_seconds = settings.openai_timeout_seconds
        self._speaks_responses = settings.openai_api == "responses"

    async def complete(
        self, *, model: str, instructions: str, text: str, max_output_tokens: int
    ) -> tuple[str, Usage | None]:
        """The answer and its cost. Raises ServiceError."""
        bound = max(max_output_tokens, MIN_OUTPUT_TOKENS)
        ask = self._by_responses if self._speaks_responses else self._by_chat_completions
        with translated(model):
            async with asyncio.timeout(self._timeout_seconds):
                return await ask(model, instructions, text, bound)

    async def _by_responses(self, model: str, instructions: str, text: str, bound: int) -> tuple[str, Usage | None]:
        answer = await self._client.responses.create(
            model=model, instructions=instructions, input=text, max_output_tokens=bound, store=False
        )
        if answer.error is not None:
            refusal = Refusal(None, answer.error.to_dict())
            raise from_refusal(refusal, model) from refusal
        usage = answer.usage
        if usage is None:
            return answer.output_text, None
        cached, reasoning = usage.input_tokens_details, usage.output_tokens_details
        return answer.output_text, Usage(
            usage.input_tokens,
            cached.cached_tokens if cached else 0,
            usage.output_tokens,
            reasoning.reasoning_tokens if reasoning else 0,
        )

    async def _by_chat_completions(self, model: str, instructions: str, text: str, bound: int) -> tuple[str, Usage | None]:
        answer = await self._client.chat.completions.create(
            model=model,
            messages=[{"role": "system", "content": instructions}, {"role": "user", "content": text}],
            max_tokens=bound,
        )
        said = (answer.choices[0].message.content if answer.choices else None) or ""
        usage = answer.usage
        if usage is None:
            return said, None
        cached, reasoning = usage.prompt_tokens_details, usage.completion_tokens_details
        return said, Usage(
            usage.prompt_tokens,
            (cached.cached_tokens if cached else None) or 0,
            usage.completion_tokens,
            (reasoning.reasoning_tokens if reasoning else None) or 0,
        )
