"""The refusals that several parts of auth make: names that another account has, and users who are not there."""

from sqlalchemy.exc import IntegrityError

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.database import violated_constraint
from services.runtime.errors import AlreadyExists, NotFound


def taken(error: IntegrityError, *, username: str, email: str) -> Exception:
    """What a unique constraint of the accounts says to the caller; the error itself where it is another one."""
    match violated_constraint(error):
        case "users_username_key":
            return username_taken(username)
        case "users_email_key":
            return email_taken(email)
        case "users_phone_number_key":
            return phone_taken()
    return error


def username_taken(username: str) -> AlreadyExists:
    """Another account has the username in some case."""
    return AlreadyExists(
        f"The username {username} is taken: choose another.",
        reasons.ERROR_REASON_USERNAME_TAKEN,
        metadata={"username": username},
    )


def email_taken(email: str) -> AlreadyExists:
    """Another account has the email address in some case."""
    return AlreadyExists(
        f"There is an account with the email address {email}: sign in instead.",
        reasons.ERROR_REASON_EMAIL_TAKEN,
        metadata={"email": email},
    )


def phone_taken() -> AlreadyExists:
    """Another account has verified the phone number, which no error repeats."""
    return AlreadyExists(
        "Another account has verified this phone number: remove it there first.",
        reasons.ERROR_REASON_PHONE_TAKEN,
        metadata={"field": "phone_number"},
    )


def user_not_found(user_id: str) -> NotFound:
    """Nobody has this id."""
    return NotFound(f"There is no user {user_id}.", reasons.ERROR_REASON_USER_NOT_FOUND, metadata={"user_id": user_id})
