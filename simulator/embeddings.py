"""Embeddings by hashing: deterministic vectors in which texts that share words are near.

Owns the mapping from a text to a unit vector: a signed hash of its words, word pairs and word beginnings, common words
counting little. It is no language model: synonyms are as far apart as any two words.
"""

import base64
import math
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise

from simulator.errors import invalid
from simulator.requests import EmbeddingsRequest, JsonObject
from simulator.tokens import count_tokens

DEFAULT_DIMENSIONS = 1536
LARGE_DIMENSIONS = 3072
MAX_INPUT_TOKENS = 8192
_BEGINNING = 5

_WORD = re.compile(r"\w+")
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be but by do for from has have i in is it its me my of on or s so t that the this to was "
        "we were what which who will with you your"
    )
)


def embed(text: str, dimensions: int) -> list[float]:
    """The unit vector of a text."""
    vector = [0.0] * dimensions
    for feature, weight in _features(text):
        encoded = feature.encode()
        sign = 1.0 if zlib.adler32(encoded) & 1 else -1.0
        vector[zlib.crc32(encoded) % dimensions] += sign * weight
    length = math.sqrt(sum(value * value for value in vector))
    if length == 0:
        vector[zlib.crc32(text.encode()) % dimensions] = length = 1.0
    return [value / length for value in vector]


def embeddings_reply(request: EmbeddingsRequest, texts: list[str], vectors: list[list[float]]) -> JsonObject:
    """The reply to an embeddings request for these texts."""
    shown = [_encoded(vector) if request.encoding_format == "base64" else vector for vector in vectors]
    used = count_tokens(texts)
    return {
        "object": "list",
        "model": request.model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(shown)],
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }


def texts_of(request: EmbeddingsRequest) -> list[str]:
    """The texts of a request. Raises ApiError (400) for an empty or too long one."""
    given = request.input
    if isinstance(given, str):
        texts = [given]
    elif all(isinstance(one, int) for one in given):
        texts = [" ".join(map(str, given))]
    else:
        texts = [one if isinstance(one, str) else " ".join(map(str, one)) for one in given if not isinstance(one, int)]
    for index, text in enumerate(texts):
        if not text:
            raise invalid(f"Invalid 'input[{index}]': input cannot be an empty string.", param="input")
        if count_tokens([text]) > MAX_INPUT_TOKENS:
            raise invalid(f"Invalid 'input[{index}]': maximum input length is {MAX_INPUT_TOKENS} tokens.", param="input")
    return texts


def _features(text: str) -> Iterator[tuple[str, float]]:
    words = [word.removesuffix("s") or word for word in _WORD.findall(text.lower())]
    for word in words:
        weight = 0.15 if word in _COMMON else 1.0
        yield word, weight
        if len(word) > _BEGINNING and word not in _COMMON:
            yield f"{word[:_BEGINNING]}-", 0.6
    for first, second in pairwise(words):
        yield f"{first} {second}", 0.1 if {first, second} <= _COMMON else 0.3


def _encoded(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
