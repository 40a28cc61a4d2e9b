"""The images of a user's message, as a request brings them.

Owns their bounds. Invariant: what is stored as an image begins like one; its media type is what its first bytes say, and
nothing that the client says. It refuses what the provider would have to fetch over anything but https.
"""

import ipaddress
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from parley.chat.v1 import chat_pb2
from services.chat.mcp.addresses import is_public
from services.chat.records import Image
from services.runtime.errors import FieldViolation

MOST_IMAGE_BYTES: Final = 1024 * 1024
MOST_BYTES_TOGETHER: Final = 1280 * 1024
"""1.25 MiB: as base64 in JSON, with the longest message, within the edge's body limit of 2 MiB."""

_BEGINNINGS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def read_images(images: Sequence[chat_pb2.InputImage]) -> tuple[list[Image], list[FieldViolation]]:
    """The images, and what is wrong with them: the images are good where nothing is."""
    read: list[Image] = []
    wrong: list[FieldViolation] = []
    for index, image in enumerate(images):
        where = f"images[{index}]"
        problem = _problem(image, where)
        if problem is not None:
            wrong.append(problem)
        elif image.url:
            read.append(Image(image.url, None, None))
        else:
            read.append(Image(None, media_type_of(image.data), image.data))
    together = sum(len(image.data) for image in images)
    if together > MOST_BYTES_TOGETHER:
        wrong.append(FieldViolation("images", f"hold {together} bytes, at most {MOST_BYTES_TOGETHER} are allowed together"))
    return read, wrong


def media_type_of(data: bytes) -> str | None:
    """The media type that the first bytes tell; None when they tell of no image that models see."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((media_type for beginning, media_type in _BEGINNINGS if data.startswith(beginning)), None)


def _problem(image: chat_pb2.InputImage, where: str) -> FieldViolation | None:
    if bool(image.url) == bool(image.data):
        return FieldViolation(where, "needs either `url` or `data`")
    if image.url:
        return None if _is_https(image.url) else FieldViolation(f"{where}.url", "must be an https:// URL of a public host")
    if len(image.data) > MOST_IMAGE_BYTES:
        return FieldViolation(f"{where}.data", f"has {len(image.data)} bytes, at most {MOST_IMAGE_BYTES} are allowed")
    if media_type_of(image.data) is None:
        return FieldViolation(f"{where}.data", "is no PNG, JPEG, WebP or GIF image")
    return None


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # reading it checks it
    except ValueError:
        return False
    is_plain = url.isascii() and url.isprintable() and " " not in url
    is_plain = is_plain and parts.scheme == "https" and parts.username is None
    return is_plain and _may_be_public(parts.hostname or "")


def _may_be_public(host: str) -> bool:
    """Whether a host is not plainly a private one. Whoever fetches the image looks names up: we cannot do it for them."""
    name = host.rstrip(".").lower()
    if name in {"", "localhost"} or name.endswith(".localhost"):
        return False
    try:
        # In any spelling that a resolver takes: 2130706433, 0x7f.1.
        address = ipaddress.ip_address(host) if ":" in host else ipaddress.ip_address(socket.inet_aton(name))
    except (ValueError, OSError):
        return True
    return is_public(address)
