"""What the assistant obeys: the service's or the request's own instructions, and what the user always wants.

Invariant: the same inputs make the same bytes, and what changes least comes first, so that the provider's cache of a prompt
holds from turn to turn and, up to the user's part, from user to user.
"""

from typing import Final

from services.chat.preferences import Preferences

_BY_TEXT: Final = (
    "The person writes text messages (SMS), and your reply is sent as one: plain text, no Markdown, no lists, at most two or"
    " three short sentences."
)


def told(instructions: str, preferences: Preferences, *, by_text: bool = False) -> str:
    """The instructions for the model. `by_text`: the reply is sent as a text message."""
    parts = [instructions.rstrip()]
    if by_text:
        parts.append(_BY_TEXT)
    if preferences.instructions:
        parts.append(f"What this user wants you to know or obey in every conversation:\n{preferences.instructions.strip()}")
    if preferences.language:
        parts.append(
            f"Answer in the user's language, {preferences.language} (a BCP 47 tag), unless the user asks for another."
        )
    return "\n\n".join(parts)
