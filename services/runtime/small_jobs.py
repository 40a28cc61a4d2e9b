"""Small jobs of the model, answered as a whole: a title, a summary, facts out of a talk.

Owns what such a call looks like in either API. Invariant: bounded in time and in what it may cost; nothing is kept at the
provider. It refuses to try again: jobs are repeated by whoever owes them.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import openai
from openai import AsyncOpenAI
from openai.types import responses
from openai.types.chat import ChatCompletion
from openai.types.shared_params import ResponseFormatJSONSchema

from services.runtime.openai import OpenAISettings, Refusal, from_refusal, translated, unavailable

MIN_OUTPUT_TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """What a call cost, as the provider says it; cached ones are among the input, reasoning among the output."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said. `is_cut`: the bound, or the provider's filter, ended it early."""

    text: str = field(repr=False)
    usage: TokenUsage | None
    is_cut: bool


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """The JSON that an answer must be: a strict JSON schema, under a name of letters, digits and `_`."""

    name: str
    schema: Mapping[str, Any]


class SmallJobs:
    """The jobs of one process."""

    def __init__(self, client: AsyncOpenAI, settings: OpenAISettings) -> None:
        self._client = client
        self._timeout_seconds = settings.openai_timeout_seconds
        self._speaks_responses = settings.openai_api == "responses"

    async def complete(
        self, *, model: str, instructions: str, text: str, max_output_tokens: int, schema: AnswerSchema | None = None
    ) -> Answer:
        """The answer, as JSON text where a schema is given, and its cost. Raises ServiceError.

        `max_output_tokens` counts reasoning too: a model that may not finish that says nothing.
        """
        bound = max(max_output_tokens, MIN_OUTPUT_TOKENS)
        ask = self._by_responses if self._speaks_responses else self._by_chat_completions
        with translated(model):
            async with asyncio.timeout(self._timeout_seconds):
                answer = await ask(model, instructions, text, bound, schema)
        try:
            return _of_completion(answer) if isinstance(answer, ChatCompletion) else _of_response(answer, model)
        except (AttributeError, TypeError) as error:
            # The SDK checks nothing: a page of a proxy comes as text, and what is missing in JSON as None.
            raise unavailable(model) from error

    async def _by_responses(
        self, model: str, instructions: str, text: str, bound: int, schema: AnswerSchema | None
    ) -> responses.Response:
        return await self._client.responses.create(
            model=model,
            instructions=instructions,
            input=text,
            max_output_tokens=bound,
            store=False,
            text=openai.omit if schema is None else _response_format(schema),
        )

    async def _by_chat_completions(
        self, model: str, instructions: str, text: str, bound: int, schema: AnswerSchema | None
    ) -> ChatCompletion:
        return await self._client.chat.completions.create(
            model=model,
            messages=[{"role": "system", "content": instructions}, {"role": "user", "content": text}],
            max_tokens=bound,
            response_format=openai.omit if schema is None else _completion_format(schema),
        )


def _of_response(answer: responses.Response, model: str) -> Answer:
    if answer.error is not None:
        refusal = Refusal(None, answer.error.to_dict())
        raise from_refusal(refusal, model) from refusal
    return Answer(answer.output_text, _response_usage(answer), is_cut=answer.status == "incomplete")


def _of_completion(answer: ChatCompletion) -> Answer:
    choice = answer.choices[0] if len(answer.choices) else None
    said = (choice.message.content if choice else None) or ""
    return Answer(said, _completion_usage(answer), is_cut=choice is None or choice.finish_reason != "stop")


def _response_format(schema: AnswerSchema) -> responses.ResponseTextConfigParam:
    return {"format": {"type": "json_schema", "name": schema.name, "schema": dict(schema.schema), "strict": True}}


def _completion_format(schema: AnswerSchema) -> ResponseFormatJSONSchema:
    return {"type": "json_schema", "json_schema": {"name": schema.name, "schema": dict(schema.schema), "strict": True}}


def _response_usage(answer: responses.Response) -> TokenUsage | None:
    usage = answer.usage
    if usage is None:
        return None
    cached, reasoning = usage.input_tokens_details, usage.output_tokens_details
    return TokenUsage(
        usage.input_tokens,
        cached.cached_tokens if cached else 0,
        usage.output_tokens,
        reasoning.reasoning_tokens if reasoning else 0,
    )


def _completion_usage(answer: ChatCompletion) -> TokenUsage | None:
    usage = answer.usage
    if usage is None:
        return None
    cached, reasoning = usage.prompt_tokens_details, usage.completion_tokens_details
    return TokenUsage(
        usage.prompt_tokens,
        (cached.cached_tokens if cached else None) or 0,
        usage.completion_tokens,
        (reasoning.reasoning_tokens if reasoning else None) or 0,
    )
