"""What every process counts, for Prometheus, served on a port of its own."""

import grpc
from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter("parley_rpc_calls", "Calls answered", ["method", "code"])
SECONDS = Histogram(
    "parley_rpc_seconds",
    "Time from the arrival of a call to its end",
    ["method"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
OPEN_CALLS = Gauge("parley_rpc_open_calls", "Calls being answered", ["method"])


class MethodMetrics:
    """The metrics of one method, looked up once: a label look-up a call would cost more than the count."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._seconds = SECONDS.labels(method)
        self._open = OPEN_CALLS.labels(method)
        self._codes: dict[grpc.StatusCode, Counter] = {}

    def begin(self) -> None:
        """A call came."""
        self._open.inc()

    def end(self, code: grpc.StatusCode, seconds: float) -> None:
        """The call ended."""
        self._open.dec()
        self._seconds.observe(seconds)
        if code not in self._codes:
            self._codes[code] = CALLS.labels(self._method, code.name)
        self._codes[code].inc()
