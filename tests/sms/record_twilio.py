"""Records what somebody else's Twilio (npm's `emulate`) sends and answers, for machines without Node.

`.venv/bin/python -m tests.sms.record_twilio` writes tests/recordings/twilio.json anew.
"""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.sms.emulator import Emulator, install, running_emulator
from tests.sms.twilio_stand_in import ACCOUNT, OWN_NUMBER

RECORDING = Path(__file__).parents[1] / "recordings" / "twilio.json"
ANA, PORT = "+14155550101", 18_999
MESSAGE_ID = "0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d"
_HEADERS = ("content-type", "x-twilio-signature")


async def record() -> dict[str, Any]:
    """The webhooks of a text, its delivery and a call, and the answers to messages, good and bad."""
    webhooks: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        headers = {name: request.headers[name] for name in _HEADERS}
        webhooks.append({"path": request.path, "headers": headers, "body": (await request.read()).decode()})
        return web.Response(text="<Response></Response>", content_type="text/xml")

    app = web.Application()
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", PORT).start()
    public_url = f"http://127.0.0.1:{PORT}"
    with tempfile.TemporaryDirectory(prefix="parley-emulate-") as folder:
        await install(Path(folder))
        async with running_emulator(Path(folder), public_url=public_url) as emulator:
            await emulator.simulate("inbound-message", From=ANA, To=OWN_NUMBER, Body="Milk & 3€ for you? 🙂")
            exchanges = await _exchanges(emulator, f"{public_url}/webhooks/twilio/sms-status/{MESSAGE_ID}")
            call = await emulator.simulate("inbound-call", From=ANA, To=OWN_NUMBER)
            await emulator.simulate("call-status", CallSid=call["sid"], Status="completed")
    await runner.cleanup()
    return {"public_url": public_url, "webhooks": webhooks, "exchanges": exchanges}


async def _exchanges(emulator: Emulator, status_url: str) -> dict[str, dict[str, Any]]:
    asked = {"To": ANA, "From": OWN_NUMBER, "Body": "Hello", "StatusCallback": status_url}
    taken = await _post(emulator, asked)
    for status in ("sent", "delivered"):
        await emulator.simulate("message-status", MessageSid=taken["body"]["sid"], Status=status)
    return {
        "taken": taken,
        "another's number": await _post(emulator, {**asked, "From": "+15005550009"}),
        "no such service": await _post(emulator, {**asked, "From": "", "MessagingServiceSid": "MG" + "f" * 32}),
    }


async def _post(emulator: Emulator, form: dict[str, str]) -> dict[str, Any]:
    url = f"{emulator.url}/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
    async with emulator.session.post(url, data=form) as answer:
        return {"status": answer.status, "body": await answer.json()}


if __name__ == "__main__":
    RECORDING.parent.mkdir(exist_ok=True)
    RECORDING.write_text(json.dumps(asyncio.run(record()), indent=1, ensure_ascii=False) + "\n")
