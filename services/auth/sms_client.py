"""The seam to sms, which sends verification codes. Raises ServiceErrors; the code is nowhere in them."""

from typing import Final

import grpc

from parley.sms.v1 import sms_pb2, sms_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.tokens import TokenMint
from services.runtime.errors import Unavailable, peer_errors
from services.runtime.identity import SERVICE_AUTHORIZATION

_AUTH: Final = "auth"
_SMS: Final = "sms"


class SmsClient:
    """Sends codes; without a channel sms is not deployed, and every call is refused."""

    def __init__(self, channel: grpc.aio.Channel | None, mint: TokenMint, *, timeout_seconds: float) -> None:
        self._sms = None if channel is None else sms_pb2_grpc.SmsServiceStub(channel)
        self._mint = mint
        self._timeout_seconds = timeout_seconds

    async def send_code(self, *, user_id: str, phone_number: str, code: str, language: str, request_id: str) -> None:
        """Has the code sent, once for a request id. Raises ServiceError (RECIPIENT_OPTED_OUT, SMS_UNAVAILABLE …)."""
        if self._sms is None:
            raise Unavailable(
                "Text messages cannot be sent here: the service sms is not deployed.", reasons.ERROR_REASON_SMS_UNAVAILABLE
            )
        request = sms_pb2.SendVerificationCodeRequest(
            phone_number=phone_number, code=code, language=language, request_id=request_id, user_id=user_id
        )
        token = self._mint.service_token(_AUTH, _SMS)
        with peer_errors():
            await self._sms.SendVerificationCode(
                request,
                metadata=((SERVICE_AUTHORIZATION, f"Bearer {token}"),),
                timeout=self._timeout_seconds,
            )
