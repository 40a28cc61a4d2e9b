"""Accounts, deletions and what was noted of them, as the contract says them."""

from parley.auth.v1 import auth_pb2, user_pb2
from services.auth.records import Account, AuditEvent, Deletion, PasswordToken, ServiceDeletion


def user_message(account: Account) -> auth_pb2.User:
    """An account."""
    user = auth_pb2.User(
        id=account.id,
        username=account.username,
        email=account.email,
        phone_number=account.phone_number or "",
        is_active=account.is_active,
        is_admin=account.is_admin,
    )
    user.create_time.FromDatetime(account.create_time)
    user.update_time.FromDatetime(account.update_time)
    return user


def token_message(token: PasswordToken) -> user_pb2.PasswordToken:
    """A one-time token."""
    message = user_pb2.PasswordToken(token=token.token)
    message.expire_time.FromDatetime(token.expire_time)
    return message


def deletion_message(deletion: Deletion) -> user_pb2.Deletion:
    """How far a deletion is."""
    message = user_pb2.Deletion(user_id=deletion.user_id, services=map(_service_message, deletion.services))
    message.request_time.FromDatetime(deletion.request_time)
    if deletion.complete_time is not None:
        message.complete_time.FromDatetime(deletion.complete_time)
    return message


def _service_message(one: ServiceDeletion) -> user_pb2.ServiceDeletion:
    message = user_pb2.ServiceDeletion(service=one.service, attempts=one.attempts, last_reason=one.last_reason)
    if one.confirm_time is not None:
        message.confirm_time.FromDatetime(one.confirm_time)
    return message


def event_message(event: AuditEvent) -> user_pb2.AuditEvent:
    """Something that was noted."""
    message = user_pb2.AuditEvent(
        id=event.id,
        kind=event.kind,
        user_id=event.user_id or "",
        actor_id=event.actor_id or "",
        address=event.address or "",
        details=event.details,
    )
    message.event_time.FromDatetime(event.event_time)
    return message
