"""The answer to an utterance: the reply, and the form of it that can be spoken.

Owns the conversion and nothing else.
"""

from google.protobuf import timestamp_pb2

from parley.chat.v1 import chat_pb2
from services.chat.preferences import Preferences
from services.chat.records import Message, Turn
from services.chat.responses import to_usage
from services.chat.speech import spoken_seconds, spoken_text


def to_utterance(turn: Turn, reply: Message, preferences: Preferences) -> chat_pb2.Utterance:
    """An utterance and its answer."""
    create_time = timestamp_pb2.Timestamp()
    create_time.FromDatetime(reply.create_time)
    return chat_pb2.Utterance(
        id=reply.id,
        conversation_id=turn.generation.conversation_id,
        input_text=turn.user_message.text,
        reply=reply.text,
        speech=_speech(reply.text, preferences),
        usage=None if reply.usage is None else to_usage(reply.usage),
        model=turn.generation.model,
        processing_time_ms=0 if reply.timings is None else reply.timings.processing_time_ms,
        create_time=create_time,
        generation_id=turn.generation.id,
    )


def _speech(text: str, preferences: Preferences) -> chat_pb2.Speech:
    spoken = spoken_text(text)
    return chat_pb2.Speech(
        text=spoken,
        voice=preferences.tts_voice,
        language=preferences.language,
        estimated_duration_seconds=spoken_seconds(spoken, preferences.language),
    )
