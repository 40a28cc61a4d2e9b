"""Pictures in a request: how large, or where.

Owns the reading of an image part, as strict as OpenAI's: an https or data URL or a file's id. It refuses to look at the
picture: the rules acknowledge that it arrived whole, and nothing else.
"""

import base64
import binascii
import re
from typing import Any

from simulator.errors import invalid

_DATA = re.compile(r"data:(image/[a-z0-9.+-]+);base64,(.*)", re.DOTALL)


def describe(part: Any, where: str) -> str:
    """`an image of 68 bytes (image/png)`, `an image at https://…`. Raises ApiError (400)."""
    url = part.get("image_url")
    if isinstance(url, dict):
        url = url.get("url")
    if isinstance(part.get("file_id"), str):
        return f"the image {part['file_id']}"
    if not isinstance(url, str):
        param = f"{where}.image_url"
        raise invalid(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if url.startswith(("https://", "http://")):
        return f"an image at {url}"
    found = _DATA.fullmatch(url)
    size = _size(found[2]) if found else 0
    if found is None or not size:
        message = "Invalid 'image_url': expected a valid URL or a base64-encoded data URL with an image MIME type."
        raise invalid(message, param=f"{where}.image_url")
    return f"an image of {size} bytes ({found[1]})"


def _size(encoded: str) -> int:
    try:
        return len(base64.b64decode(encoded, validate=True))
    except binascii.Error:
        return 0
