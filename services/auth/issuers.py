"""Other issuers whose tokens are taken: the file that an operator writes of them.

A JSON list, empty or absent by default. Each entry is of one of two kinds, and each kind verifies in one way only:

    {"kind": "jwks", "issuer": "https://app.example.com", "jwks_url": "https://app.example.com/api/auth/jwks",
     "audiences": ["https://app.example.com"], "algorithms": ["EdDSA"], "accounts": "link"}
    {"kind": "better_auth_session", "issuer": "app", "secret_file": "/run/secrets/better-auth", "accounts": "create"}

`jwks`: tokens that say this `iss` and one of these audiences, signed by a key that the URL publishes; asymmetric algorithms
only. `better_auth_session`: the `session_data` cookie of Better Auth (`cookieCache.strategy: "jwt"`), HS256 with its secret,
which names no issuer: at most one of these, and `issuer` is what we call it.

`accounts` says what becomes of somebody who is not linked to an account: `refuse` (the default); `link` to the account with
the email address that the issuer has verified; `create` an account with it. Nothing here verifies an address, neither a
registration nor a user's change of it: with `link`, whoever took it first is who the issuer's user becomes. Choose it where
registration is closed and users are trusted with that.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

Accounts = Literal["refuse", "link", "create"]
# No symmetric one, and not `none`: a public key must never do as a shared secret.
Algorithm = Literal["EdDSA", "ES256", "ES384", "RS256", "RS512", "PS256"]
_LEAST_SECRET_BYTES = 32
_LONGEST_ISSUER = 255


class BadIssuersError(Exception):
    """The file of issuers cannot be used; the message says why, without what it holds."""


class _Issuer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    issuer: str = Field(min_length=1, max_length=_LONGEST_ISSUER)
    accounts: Accounts = "refuse"


class JwksIssuer(_Issuer):
    """An issuer that publishes its keys."""

    kind: Literal["jwks"]
    jwks_url: str = Field(pattern=r"^https?://\S+$")
    audiences: tuple[str, ...] = Field(min_length=1)
    algorithms: tuple[Algorithm, ...] = Field(default=("EdDSA",), min_length=1)


class SessionIssuer(_Issuer):
    """A Better Auth front end whose session cookie is an HS256 JWT."""

    kind: Literal["better_auth_session"]
    secret_file: Path

    @field_validator("secret_file")
    @classmethod
    def _check_secret(cls, path: Path) -> Path:
        try:
            secret = path.read_bytes().strip()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
        if len(secret) < _LEAST_SECRET_BYTES:
            raise ValueError(f"must hold {_LEAST_SECRET_BYTES} bytes or more")
        return path

    def secret(self) -> bytes:
        """What signs its cookies."""
        return self.secret_file.read_bytes().strip()


Issuer = Annotated[JwksIssuer | SessionIssuer, Field(discriminator="kind")]
_ISSUERS: TypeAdapter[list[Issuer]] = TypeAdapter(list[Issuer])


def read_issuers(path: Path) -> Sequence[JwksIssuer | SessionIssuer]:
    """The issuers in the file. Raises BadIssuersError."""
    try:
        issuers = _ISSUERS.validate_json(path.read_bytes())
    except OSError as error:
        raise BadIssuersError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
        raise BadIssuersError(f"{path}: {problems}") from None
    names = [one.issuer for one in issuers]
    if len(set(names)) != len(names):
        raise BadIssuersError(f"{path} names an issuer twice")
    if sum(isinstance(one, SessionIssuer) for one in issuers) > 1:
        raise BadIssuersError(f"{path} has more than one better_auth_session: its cookies do not say whose they are")
    return issuers
