"""The checker of this folder: it must see what is wrong, or every other test here shows nothing."""

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from tests.simulator.strict import RESPONSE, check
from tests.simulator.wire import Wire


async def test_a_field_that_is_unknown_missing_or_of_another_type_is_seen(wire: Wire) -> None:
    good = (await wire.post("responses", model="m", input="go")).json()
    nested: dict[str, Any] = orjson.loads(orjson.dumps(good))
    nested["output"][0]["content"][0]["colour"] = "red"
    with pytest.raises(AssertionError, match=r"output\[0\]\.content\[0\]\.colour"):
        check(RESPONSE, orjson.dumps(nested))
    with pytest.raises(AssertionError, match="store"):
        check(RESPONSE, orjson.dumps({**good, "store": True}))
    with pytest.raises(ValidationError):
        check(RESPONSE, orjson.dumps({key: value for key, value in good.items() if key != "output"}))
    with pytest.raises(ValidationError):
        check(RESPONSE, orjson.dumps({**good, "created_at": "1"}))
