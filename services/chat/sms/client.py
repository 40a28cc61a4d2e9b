"""The seam to sms: what the user says about text messages in a conversation.

Invariant: every call has a deadline, and is about the number of the user that it is made for.
"""

import grpc

from parley.sms.v1 import sms_pb2, sms_pb2_grpc
from services.runtime.errors import peer_errors


class SmsClient:
    """Sms, as chat uses it."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        self._sms = sms_pb2_grpc.SmsServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def set_consent(self, *, is_opted_out: bool) -> bool:
        """Whether the user wants no text messages from now on. Idempotent. Raises ServiceError."""
        with peer_errors():
            request = sms_pb2.SetConsentRequest(opted_out=is_opted_out)
            return (await self._sms.SetConsent(request, timeout=self._timeout_seconds)).opted_out
