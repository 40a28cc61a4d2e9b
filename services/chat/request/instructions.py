"""What the assistant obeys: the service's or the request's own instructions, and what the user always wants.

Invariant: the same inputs make the same bytes, and what changes least comes first, so that the provider's cache of a prompt
holds from turn to turn and, up to the user's part, from user to user.
"""

from services.chat.preferences import Preferences


def told(instructions: str, preferences: Preferences) -> str:
    """The instructions for the model."""
    parts = [instructions.rstrip()]
    if preferences.instructions:
        parts.append(f"What this user wants you to know or obey in every conversation:\n{preferences.instructions.strip()}")
    if preferences.language:
        parts.append(
            f"Answer in the user's language, {preferences.language} (a BCP 47 tag), unless the user asks for another."
        )
    return "\n\n".join(parts)
