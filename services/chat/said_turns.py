"""From turns of the history to the contract's messages: conversion and nothing else."""

from google.protobuf import timestamp_pb2

from parley.chat.v1 import conversation_pb2
from services.chat.conversation.said_store import SaidTurn
from services.chat.responses import to_usage


def to_said_turn(turn: SaidTurn) -> conversation_pb2.Turn:
    """A turn as sms is told of it."""
    create_time = timestamp_pb2.Timestamp()
    create_time.FromDatetime(turn.create_time)
    return conversation_pb2.Turn(
        id=turn.id,
        conversation_id=turn.conversation_id,
        conversation_kind=turn.kind,
        input_text=turn.text,
        reply_id=turn.reply_id or "",
        reply=turn.reply or "",
        status=turn.status or "",
        model=turn.model or "",
        usage=None if turn.usage is None else to_usage(turn.usage),
        create_time=create_time,
    )
