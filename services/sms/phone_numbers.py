"""Phone numbers in E.164.

Owns the one check that the contract's pattern cannot say: whether a number of that form can exist.
"""

import phonenumbers

from services.runtime.errors import FieldViolation, invalid_request


def check_number(phone_number: str, *, field: str) -> str:
    """The number as it is written in E.164. Raises InvalidArgument for one that cannot exist."""
    try:
        parsed = phonenumbers.parse(phone_number, None)
    except phonenumbers.NumberParseException:
        parsed = None
    if parsed is None or not phonenumbers.is_possible_number(parsed) or not phonenumbers.is_valid_number(parsed):
        raise invalid_request([FieldViolation(field, "no such number can exist: check its country code and length")])
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
