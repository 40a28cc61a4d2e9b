"""Secrets at rest: what is sealed opens only where it belongs."""

import base64

import pytest
from pydantic import ValidationError

from services.runtime.sealing import Seal, SealError, SealingSettings, sealing_keys

OLD, NEW = b"o" * 32, b"n" * 32


def test_what_was_sealed_opens_with_its_context_only() -> None:
    seal = Seal([OLD])
    sealed = seal.seal(b"the secret", context=b"row 1")
    assert seal.open(sealed, context=b"row 1") == b"the secret"
    assert b"secret" not in sealed
    with pytest.raises(SealError):
        seal.open(sealed, context=b"row 2")


def test_the_same_secret_is_never_sealed_alike() -> None:
    seal = Seal([OLD])
    assert len({seal.seal(b"x", context=b"") for _ in range(100)}) == 100


@pytest.mark.parametrize("place", [0, 1, 12, 13, -1])
def test_a_changed_value_does_not_open(place: int) -> None:
    sealed = bytearray(Seal([OLD]).seal(b"the secret", context=b""))
    sealed[place] ^= 1
    with pytest.raises(SealError):
        Seal([OLD]).open(bytes(sealed), context=b"")


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01" + b"n" * 12, b"plain text, never sealed"])
def test_what_was_never_sealed_does_not_open(sealed: bytes) -> None:
    with pytest.raises(SealError):
        Seal([OLD]).open(sealed, context=b"")


def test_keys_are_rotated_without_losing_what_the_old_one_sealed() -> None:
    before = Seal([OLD]).seal(b"x", context=b"")
    both = Seal([NEW, OLD])
    assert both.open(before, context=b"") == b"x"
    after = both.seal(b"x", context=b"")
    assert Seal([NEW]).open(after, context=b"") == b"x"
    with pytest.raises(SealError):
        Seal([OLD]).open(after, context=b"")
    assert both.is_fingerprint(Seal([OLD]).fingerprint(b"x"), b"x")


def test_what_the_first_key_did_not_seal_is_to_be_sealed_anew() -> None:
    old, new = Seal([b"o" * 32]), Seal([b"n" * 32, b"o" * 32])
    sealed = old.seal(b"secret", context=b"row")
    assert old.is_newest(sealed, context=b"row")
    assert not new.is_newest(sealed, context=b"row")
    assert new.is_newest(new.seal(new.open(sealed, context=b"row"), context=b"row"), context=b"row")
    for other in (b"", b"plain", sealed[:-1]):
        assert not old.is_newest(other, context=b"row")
    assert not old.is_newest(sealed, context=b"another row")


def test_a_fingerprint_knows_its_value_and_needs_the_key() -> None:
    seal = Seal([OLD])
    assert seal.is_fingerprint(seal.fingerprint(b"x"), b"x")
    assert not seal.is_fingerprint(seal.fingerprint(b"x"), b"y")
    assert not Seal([NEW]).is_fingerprint(seal.fingerprint(b"x"), b"x")


def test_the_setting_takes_keys_in_both_alphabets_and_never_prints_them() -> None:
    key = bytes(range(224, 256))
    texts = [base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode()]
    assert sealing_keys(", ".join(texts)) == [key, key]
    settings = SealingSettings.model_validate({"sealing_key": texts[0]})
    assert texts[0] not in repr(settings)
    assert Seal.from_settings(settings).open(Seal([key]).seal(b"x", context=b""), context=b"") == b"x"


@pytest.mark.parametrize("text", ["", "short", "A" * 43, "AAAA", "A" * 43 + "=,", "not base64 at all, at 32 bytes"])
def test_a_key_that_is_none_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SealingSettings.model_validate({"sealing_key": text})
    (error,) = refused.value.errors(include_input=False)
    assert "openssl rand -base64 32" in error["msg"]


def test_a_seal_without_a_key_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="needs a key"):
        Seal([])
