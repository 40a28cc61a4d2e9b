"""The access rules of the contract: who may make a call, by what was verified of the caller.

Owns the meaning of each rule. Invariant: what is not allowed by a rule is refused; a rule that is not known allows nobody.
"""

from parley.options.v1 import options_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import NOBODY, Caller
from services.runtime.errors import PermissionDenied, Unauthenticated


def check_access(access: options_pb2.Access.ValueType, caller: Caller, *, method: str) -> None:
    """Raises Unauthenticated for nobody, PermissionDenied for anybody else, unless the rule lets this caller in."""
    match access:
        case options_pb2.ACCESS_USER:
            allowed = caller.user_id is not None
        case options_pb2.ACCESS_ADMIN:
            allowed = caller.user_id is not None and "admin" in caller.roles
        case options_pb2.ACCESS_SERVICE:
            allowed = caller.service is not None
        case options_pb2.ACCESS_WORKLOAD:
            allowed = True  # the handler verifies the credential in the request
        case options_pb2.ACCESS_PROVIDER:
            allowed = True  # the handler verifies the provider's signature
        case _:
            allowed = False
    if allowed:
        return
    if caller == NOBODY:
        raise Unauthenticated(
            "Sign in and send the access token as `authorization: Bearer <token>`.",
            reasons.ERROR_REASON_IDENTITY_MISSING,
        )
    raise PermissionDenied("You may not call this method.", reasons.ERROR_REASON_ACCESS_DENIED, metadata={"method": method})
