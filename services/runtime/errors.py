"""The errors that domain code raises, and everything the suite knows about gRPC status codes.

A ServiceError holds a sentence for the caller, a reason from the contract's enum, and metadata with every variable of the
sentence. `to_status` is the only way from an exception to a status: the text of an exception that is not a ServiceError
never leaves the process.

    InvalidArgument     INVALID_ARGUMENT    400      AlreadyExists      ALREADY_EXISTS      409
    Unauthenticated     UNAUTHENTICATED     401      Aborted            ABORTED             409
    PermissionDenied    PERMISSION_DENIED   403      ResourceExhausted  RESOURCE_EXHAUSTED  429
    NotFound            NOT_FOUND           404      Unavailable        UNAVAILABLE         503
    Internal            INTERNAL            500      DeadlineExceeded   DEADLINE_EXCEEDED   504
    FailedPrecondition  FAILED_PRECONDITION 400
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import grpc
import psycopg
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy import exc as sql

from parley.type.v1 import error_reason_pb2 as reasons

DOMAIN = "parley"
STATUS_DETAILS = "grpc-status-details-bin"
_PREFIX = "ERROR_REASON_"
# A client takes 8 KiB of trailers by default, and a status that is larger is lost as a whole.
_LONGEST_MESSAGE_BYTES = 1_000
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that breaks a rule, by its path, and what the rule demands."""

    field: str
    description: str


class ServiceError(Exception):
    """An error that the caller is meant to see.

    `retry_delay_seconds` says that repeating the call after that time may help.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        reason: reasons.ErrorReason.ValueType,
        *,
        metadata: Mapping[str, str] = _NOTHING,
        retry_delay_seconds: float | None = None,
        violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = metadata
        self.retry_delay_seconds = retry_delay_seconds
        self.violations = violations


class InvalidArgument(ServiceError):
    """The request itself is wrong, whatever the state of the system."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class FailedPrecondition(ServiceError):
    """The request would be right in another state of the system; repeating it changes nothing."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Unauthenticated(ServiceError):
    """Who calls is not known."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ServiceError):
    """Who calls is known, and may not."""

    code = grpc.StatusCode.PERMISSION_DENIED


class NotFound(ServiceError):
    """The thing does not exist, or is somebody else's: the two are never told apart."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ServiceError):
    """Something unique is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class Aborted(ServiceError):
    """Two changes met; nothing was done, and the call can be repeated."""

    code = grpc.StatusCode.ABORTED


class ResourceExhausted(ServiceError):
    """A limit was reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(ServiceError):
    """Something that the call needs does not answer now."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(ServiceError):
    """It took too long."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Internal(ServiceError):
    """A fault of ours."""

    code = grpc.StatusCode.INTERNAL


_BY_CODE: Mapping[grpc.StatusCode, type[ServiceError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument, Unauthenticated, PermissionDenied, NotFound, AlreadyExists, Aborted, ResourceExhausted,
        Unavailable, DeadlineExceeded, FailedPrecondition, Internal,
    )
}  # fmt: skip

# Serialization failure, deadlock, lock timeout: repeating the transaction may well succeed.
_CONFLICTS = ("40001", "40P01", "55P03")
STATEMENT_TIMEOUT = "57014"
"""The state of a statement that the database ended, since it took too long."""
PURGED_USERS = "purged_users"
"""What refuses the rows of a user who was purged: the constraint that its error names."""
# Idle in a transaction for too long, and read-only (a primary that became a replica): the connection is of no more use.
_UNUSABLE = ("25P03", "25006")


def invalid_request(violations: Sequence[FieldViolation]) -> InvalidArgument:
    """The refusal of a request for these fields; there is at least one."""
    return InvalidArgument(
        "; ".join(f"{violation.field}: {violation.description}" for violation in violations),
        reasons.ERROR_REASON_INVALID_REQUEST,
        metadata={"fields": ", ".join(dict.fromkeys(violation.field for violation in violations))},
        violations=violations,
    )


def reason_name(reason: reasons.ErrorReason.ValueType) -> str:
    """The reason as clients see it: without the enum's prefix."""
    return reasons.ErrorReason.Name(reason).removeprefix(_PREFIX)


def to_service_error(error: BaseException, request_id: str) -> ServiceError:  # noqa: PLR0911 - one line a kind
    """The error that the caller is to see for any exception; a fixed text for everything that is not known."""
    match error:
        case ServiceError():
            return error
        case TimeoutError():
            return DeadlineExceeded("The call took too long. Try again.", reasons.ERROR_REASON_DEADLINE_PASSED)
        case grpc.aio.AioRpcError():
            return from_rpc_error(error)
        case sql.TimeoutError():
            return _database_busy()
        case sql.DBAPIError(orig=psycopg.Error() as driver_error):
            return _from_driver(driver_error, request_id)
        case psycopg.Error():
            return _from_driver(error, request_id)
    return _internal(request_id)


def _from_driver(error: psycopg.Error, request_id: str) -> ServiceError:
    if error.sqlstate in _CONFLICTS:
        return Aborted("Another change came first. Repeat the call.", reasons.ERROR_REASON_CONFLICT)
    if error.sqlstate == STATEMENT_TIMEOUT:
        return DeadlineExceeded("The database took too long. Try again.", reasons.ERROR_REASON_DEADLINE_PASSED)
    if error.diag.constraint_name == PURGED_USERS:
        return Unauthenticated(
            "The account was deleted: nothing is kept for it any more.", reasons.ERROR_REASON_USER_DELETED
        )
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or error.sqlstate in _UNUSABLE:
        return _database_unavailable()
    return _internal(request_id)


def _database_unavailable() -> Unavailable:
    return Unavailable(
        "The database does not answer. Try again.",
        reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        metadata={"dependency": "database"},
        retry_delay_seconds=1,
    )


def _database_busy() -> Unavailable:
    """No connection of the pool became free in time."""
    return Unavailable(
        "The service has more to do than it can. Try again.",
        reasons.ERROR_REASON_SERVICE_BUSY,
        metadata={"work": "database"},
        retry_delay_seconds=1,
    )


def _internal(request_id: str) -> Internal:
    return Internal(
        f"Something went wrong on our side. Report it with the request id {request_id}.",
        reasons.ERROR_REASON_INTERNAL_FAULT,
        metadata={"request_id": request_id},
    )


def to_status(error: ServiceError) -> status_pb2.Status:
    """The google.rpc.Status of an error: ErrorInfo always, BadRequest and RetryInfo where there is something to say."""
    status = status_pb2.Status(code=error.code.value[0], message=_cut(error.message))
    info = error_details_pb2.ErrorInfo(reason=reason_name(error.reason), domain=DOMAIN, metadata=error.metadata)
    status.details.append(_packed(info))
    if error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description) for v in error.violations
        ]
        status.details.append(_packed(error_details_pb2.BadRequest(field_violations=fields)))
    if error.retry_delay_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_delay_seconds * 1e9))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


def _cut(message: str) -> str:
    return message.encode()[:_LONGEST_MESSAGE_BYTES].decode(errors="ignore")


def _packed(
    detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """Turns what calls to other services raise inside into ServiceErrors, as `from_rpc_error` does."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """What another service of the suite answered, as an error of ours with the same code, reason and metadata.

    An answer without our details (the connection failed, a proxy spoke) becomes UNAVAILABLE or DEADLINE_EXCEEDED.
    """
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):  # not from one of ours
                return from_status(status_pb2.Status.FromString(value))
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("A service did not answer in time. Try again.", reasons.ERROR_REASON_DEADLINE_PASSED)
    return Unavailable(
        "A service does not answer. Try again.",
        reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        metadata={"dependency": "service"},
        retry_delay_seconds=1,
    )


def from_status(status: status_pb2.Status) -> ServiceError:
    """The error that `to_status` made this status from."""
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    found = {detail.TypeName(): detail for detail in status.details}
    for message in (info, retry, bad):
        if message.DESCRIPTOR.full_name in found:
            found[message.DESCRIPTOR.full_name].Unpack(message)
    code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.INTERNAL)
    name = _PREFIX + info.reason
    return _BY_CODE.get(code, Internal)(
        status.message,
        reasons.ErrorReason.Value(name) if name in reasons.ErrorReason.keys() else reasons.ERROR_REASON_UNSPECIFIED,  # noqa: SIM118
        metadata=dict(info.metadata),
        retry_delay_seconds=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
        violations=[FieldViolation(v.field, v.description) for v in bad.field_violations],
    )
