"""The bounds of summaries."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SummaryLimits:
    """When and how large: `after_messages` begin a conversation's first summary, `every_messages` refresh it."""

    after_messages: int
    every_messages: int
    delay_seconds: float
    portrait_delay_seconds: float
    most_input_tokens: int
    most_characters: int
