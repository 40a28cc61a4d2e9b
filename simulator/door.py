"""The control door's server side: /_control, for tests, there only where the simulator was started with it.

Owns its routes and their shapes (see the package's documentation). Anybody who reaches the port may use it: it is off by
default.
"""

from collections.abc import Callable

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from simulator.containers import Containers
from simulator.errors import from_validation
from simulator.frames import Gate
from simulator.requests import parse_json
from simulator.script import Journal, Script, ScriptRequest, ScriptStatus


class Door:
    """The handlers of the control door."""

    def __init__(
        self, script: Script, journal: Journal, gate: Gate, containers: Containers, *, running: Callable[[], int]
    ) -> None:
        self._script = script
        self._journal = journal
        self._gate = gate
        self._containers = containers
        self._running = running

    def routes(self) -> list[Route]:
        """The routes to add to the application."""
        return [
            Route("/_control/script", self._add, methods=["POST"]),
            Route("/_control/requests", self._requests, methods=["GET"]),
            Route("/_control/status", self._status, methods=["GET"]),
            Route("/_control/release", self._release, methods=["POST"]),
            Route("/_control/expire-containers", self._expire_containers, methods=["POST"]),
            Route("/_control/reset", self._reset, methods=["POST"]),
        ]

    async def _add(self, request: Request) -> JSONResponse:
        try:
            asked = ScriptRequest.model_validate(parse_json(await request.body()))
        except ValidationError as error:
            raise from_validation(error) from error
        self._script.add(asked)
        return JSONResponse({"queued": len(asked.answers)})

    async def _requests(self, _request: Request) -> JSONResponse:
        kept = [recorded.model_dump(mode="json") for recorded in self._journal.requests()]
        return JSONResponse({"count": self._journal.count, "requests": kept})

    async def _status(self, _request: Request) -> JSONResponse:
        status = ScriptStatus(
            unconsumed=self._script.unconsumed(),
            unexpected=self._script.unexpected,
            running=self._running(),
            held=self._gate.waiting,
        )
        return JSONResponse(status.model_dump(mode="json", exclude_none=True))

    async def _release(self, _request: Request) -> JSONResponse:
        return JSONResponse({"released": self._gate.release()})

    async def _expire_containers(self, _request: Request) -> JSONResponse:
        return JSONResponse({"expired": self._containers.expire()})

    async def _reset(self, _request: Request) -> JSONResponse:
        """Forget answers and requests and let held replies go on; running replies are left alone."""
        self._script.reset()
        self._journal.reset()
        return JSONResponse({"released": self._gate.release()})
