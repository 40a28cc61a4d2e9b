"""From records to the contract's messages: completions, generations, messages, conversations; events.py makes the events.

Owns the conversion and nothing else.
"""

import datetime as dt
from collections.abc import Iterator

from google.protobuf import timestamp_pb2

from parley.chat.v1 import admin_pb2, chat_pb2, conversation_pb2
from services.chat.records import (
    Citation,
    CodeRun,
    Conversation,
    Found,
    Generation,
    Message,
    MessageImage,
    Reasoning,
    Session,
    TextLength,
    Timings,
    ToolCall,
    Turn,
    Usage,
)


def to_completion(generation: Generation, user_message: Message, reply: Message) -> chat_pb2.Completion:
    """The answer of the unary call."""
    return chat_pb2.Completion(
        conversation_id=generation.conversation_id,
        message=to_message(reply),
        usage=None if reply.usage is None else to_usage(reply.usage),
        model=generation.model,
        processing_time_ms=0 if reply.timings is None else reply.timings.processing_time_ms,
        create_time=_time(reply.create_time),
        generation_id=generation.id,
        user_message=to_message(user_message),
        tool_calls=[to_tool_call(part) for part in reply.parts if isinstance(part, ToolCall)],
        citations=[to_citation(citation) for citation in reply.citations],
    )


def to_generation(turn: Turn, *, sequence: int) -> chat_pb2.Generation:
    """A generation as the contract has it; `sequence` of its latest event."""
    generation, usage = turn.generation, turn.reply.usage
    is_own = turn.reply.generation_id == generation.id
    return chat_pb2.Generation(
        id=generation.id,
        conversation_id=generation.conversation_id,
        user_message_id=generation.user_message_id,
        message_id=generation.reply_message_id,
        status=generation.status,
        sequence=sequence,
        model=generation.model,
        usage=to_usage(usage) if usage is not None and is_own else None,
        reason=generation.failure.reason if generation.failure is not None else "",
        create_time=_time(generation.create_time),
        end_time=None if generation.end_time is None else _time(generation.end_time),
    )


def to_message(message: Message) -> conversation_pb2.Message:
    """A message as the contract has it."""
    return conversation_pb2.Message(
        id=message.id,
        conversation_id=message.conversation_id,
        sequence=message.sequence,
        role=message.role,
        text=message.text,
        status=message.status,
        incomplete_reason=message.incomplete_reason or "",
        model=message.model or "",
        usage=None if message.usage is None else to_usage(message.usage),
        timings=None if message.timings is None else _timings(message.timings),
        generation_id=message.generation_id or "",
        metadata=message.metadata,
        create_time=_time(message.create_time),
        parts=_parts(message),
        citations=[to_citation(one) for one in message.citations],
        images=[_image(one) for one in message.images],
        version=message.version,
        is_superseded=message.supersede_time is not None,
        memory_ids=message.memory_ids,
    )


def _parts(message: Message) -> Iterator[conversation_pb2.Part]:
    begin = 0
    for part in message.parts:
        match part:
            case TextLength(length):
                text = message.text[begin : begin + length]
                begin += length
                yield conversation_pb2.Part(text=conversation_pb2.TextPart(text=text))
            case Reasoning(text):
                yield conversation_pb2.Part(reasoning=conversation_pb2.ReasoningPart(text=text))
            case ToolCall():
                yield conversation_pb2.Part(tool_call=to_tool_call(part))
            case CodeRun():
                yield conversation_pb2.Part(code_interpreter=to_code_run(part))


def _image(image: MessageImage) -> conversation_pb2.MessageImage:
    return conversation_pb2.MessageImage(url=image.url or "", media_type=image.media_type or "", size_bytes=image.size_bytes)


def to_citation(citation: Citation) -> conversation_pb2.Citation:
    """A citation as the contract has it."""
    return conversation_pb2.Citation(url=citation.url, title=citation.title, start=citation.start, end=citation.end)


def to_tool_call(call: ToolCall) -> conversation_pb2.ToolCall:
    """A call of a tool as the contract has it."""
    return conversation_pb2.ToolCall(
        id=call.id,
        tool=call.tool,
        server_label=call.server_label,
        arguments=call.arguments,
        status=call.status,
        result=call.result,
        error=call.error,
    )


def to_code_run(run: CodeRun) -> conversation_pb2.CodeInterpreterCall:
    """Code that was run, as the contract has it."""
    return conversation_pb2.CodeInterpreterCall(id=run.id, code=run.code, output=run.output, status=run.status)


def to_conversation(conversation: Conversation) -> conversation_pb2.Conversation:
    """A conversation as the contract has it."""
    last = conversation.last_message_time
    return conversation_pb2.Conversation(
        id=conversation.id,
        title=conversation.title,
        message_count=conversation.message_count,
        last_message_time=None if last is None else _time(last),
        create_time=_time(conversation.create_time),
        update_time=_time(conversation.update_time),
    )


def to_session(session: Session) -> admin_pb2.Session:
    """A conversation as administrators see it."""
    last = session.last_message_time
    return admin_pb2.Session(
        conversation_id=session.id,
        user_id=session.user_id,
        message_count=session.message_count,
        last_message_time=None if last is None else _time(last),
        create_time=_time(session.create_time),
    )


def to_found(found: Found) -> conversation_pb2.FoundConversation:
    """A conversation that was found."""
    return conversation_pb2.FoundConversation(
        conversation=to_conversation(found.conversation), message_id=found.message_id or "", excerpt=found.excerpt
    )


def to_usage(usage: Usage) -> conversation_pb2.Usage:
    """Tokens as the contract has them."""
    return conversation_pb2.Usage(
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _timings(timings: Timings) -> conversation_pb2.Timings:
    return conversation_pb2.Timings(
        time_to_first_token_ms=timings.time_to_first_token_ms, processing_time_ms=timings.processing_time_ms
    )


def _time(value: dt.datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(value)
    return stamp
