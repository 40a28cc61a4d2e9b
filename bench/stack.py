"""Measures the whole suite, as `make run` starts it, beside its peers: one command a comparison.

Owns the stack that is measured: the upstream of the peers tool as its provider, a data folder and ports of its own, one
user. The load, the counting and the peers are those of bench/peers/peers.py, the same for everybody. It changes nothing
about the suite but what MEASURED says. With `--hold` it only starts the stack and prints what to run against it.

    python -m bench.stack                                     W1 to W4 and W6, one run each, some minutes
    python -m bench.stack --workloads W1.32,W2 --beside fastapi
    python -m bench.stack --hold                              then profile: docs/performance.md
"""

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

PEERS = Path(__file__).resolve().parent / "peers"
ROOT = PEERS.parents[1]
READY, READY_SECONDS, STOP_SECONDS = "Parley is ready", 120.0, 30.0
_SERVING = (f"{name}{kind}" for name in ("AUTH", "CHAT", "MEMORY") for kind in ("", "_METRICS"))
PORTS = ("EDGE", "EDGE_ADMIN", "CHAT_MCP", "LIMITER", "LIMITER_METRICS", *_SERVING)
# What differs from `make run`: a token that outlives the measurement, room for the 2,000 slow streams of W6, and no titles:
# every turn begins a conversation here, so that each would cost one more call of the model, which no peer makes.
MEASURED = {
    "ACCESS_TOKEN_LIFETIME_SECONDS": "3000",
    # Counted like any other, and never too many.
    "LIMIT_GENERAL": "10000/second",
    "LIMIT_MODEL": "10000/second",
    "MAX_GENERATIONS": "4000",
    "OPENAI_MAX_CONNECTIONS": "4000",
    "TITLES_ENABLED": "false",
}
# Which process belongs to which column: a part of its command line. The first that fits counts, children included.
GROUPS = {
    "edge": "envoy.yaml",
    "limiter": "gateway.limiter",
    "chat": "services.chat",
    "memory": "services.memory",
    "auth": "services.auth",
    "sms": "services.sms",
    "postgres": "postgres",
    "redis": "redis",
}
BODY = '{"message":"hello {i}","model":"{model}"}'
# What the peers do: the turn, and nothing that is remembered of others.
BODY_WITHOUT_MEMORY = '{"message":"hello {i}","model":"{model}","memory_enabled":false}'
COLUMNS = ("edge", "chat", "memory", "auth", "sms", "postgres", "redis", "fastapi")


def main() -> int:
    """Start, measure, stop; the exit code of the measurement."""
    options = _options()
    # Told to end, it ends what it started too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="parley-bench-", ignore_cleanup_errors=True)))
        command = _running(parts, folder, options)
        if options.hold:
            return _hold(command)
        lines = _measured(command)
        if options.beside:
            parts.close()  # not both at once: the machine is the same
            lines += _measured([*_tool(options.beside, options), "--workers", str(options.workers)])
    print(table(lines))
    return 0 if lines else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="W1.1,W1.32,W1.200,W2,W3,W4,W6", help="as in bench/peers; W5 needs wrk")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1, help="multiply the number of turns")
    parser.add_argument("--beside", choices=["direct", "envoy", "fastapi", "litellm"], help="then measure this peer too")
    parser.add_argument("--workers", type=int, default=1, help="worker processes of that peer")
    parser.add_argument("--titles", action="store_true", help="with titles: a job and a call of the model each")
    parser.add_argument(
        "--without-memory", action="store_true", help="with memory_enabled: false, as the peers, which have none"
    )
    parser.add_argument("--hold", action="store_true", help="start the stack, print the command, wait for Ctrl-C")
    return parser.parse_args()


def _tool(peer: str, options: argparse.Namespace) -> list[str]:
    shape = ["--workloads", options.workloads, "--runs", str(options.runs), "--scale", str(options.scale)]
    return [sys.executable, str(PEERS / "peers.py"), peer, *shape]


def _running(parts: contextlib.ExitStack, folder: Path, options: argparse.Namespace) -> list[str]:
    """The stack, up until `parts` closes; returns the command that measures it."""
    upstream_port, *ports = _free_ports(1 + len(PORTS))
    upstream = f"http://127.0.0.1:{upstream_port}"
    parts.enter_context(_child(["node", str(PEERS / "upstream.mjs"), str(upstream_port)], dict(os.environ), "upstream on"))
    given = {f"PARLEY_{name}_PORT": str(port) for name, port in zip(PORTS, ports, strict=True)}
    environment = (
        _environment(folder)
        | given
        | _measured_settings(options)
        | {"OPENAI_BASE_URL": f"{upstream}/v1", "OPENAI_API_KEY": "bench"}
    )
    suite = parts.enter_context(_child([sys.executable, "-m", "suite"], environment, READY))
    url = f"http://127.0.0.1:{given['PARLEY_EDGE_PORT']}"
    authorization = f"authorization: Bearer {_token(url)}"
    conversation = _post(f"{url}/api/v1/chat/conversations", {"title": "measured"}, authorization)["id"]
    places = ["--url-stream", f"{url}/api/v1/chat/stream", "--url-get", f"{url}/api/v1/chat/conversations/{conversation}"]
    groups = [f"{name}={','.join(map(str, pids))}" for name, pids in process_groups(suite.pid).items()]
    pids = ["--pids", *groups]
    head = [
        "--header",
        authorization,
        "--body",
        BODY_WITHOUT_MEMORY if options.without_memory else BODY,
        "--upstream",
        upstream,
    ]
    return [*_tool("running", options), "--name", "parley", *places, *head, *pids]


def _measured_settings(options: argparse.Namespace) -> dict[str, str]:
    return MEASURED | ({"TITLES_ENABLED": "true"} if options.titles else {})


def _environment(folder: Path) -> dict[str, str]:
    """Settings of this machine's are left out, those given to this program for the services are passed on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARLEY_")}
    return kept | {"PARLEY_DATA": str(folder / "data"), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"}


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives to outgoing connections: another program's must not take one in between."""
    found: list[int] = []
    for port in random.sample(range(12_000, 32_000), 40 * count):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise SystemExit("no free ports between 12000 and 32000")


@contextlib.contextmanager
def _child(command: Sequence[str], environment: Mapping[str, str], ready: str) -> Iterator[subprocess.Popen[str]]:
    """A program, once it has said that it is ready; told to stop at the end. Its output ends in a file of its own."""
    with tempfile.NamedTemporaryFile("w+", prefix="parley-bench-", suffix=".log") as output:
        process = subprocess.Popen(  # noqa: S603 - our own programs
            command,
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            _until_ready(process, Path(output.name), ready)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
            process.wait()


def _until_ready(process: subprocess.Popen[str], output: Path, ready: str) -> None:
    give_up = time.monotonic() + READY_SECONDS
    while ready not in (said := output.read_text()):
        if process.poll() is not None or time.monotonic() > give_up:
            raise SystemExit(f"{process.args!r} did not start:\n{said[-2000:]}")
        time.sleep(0.1)


def process_groups(suite_pid: int) -> dict[str, list[int]]:
    """The suite's direct children by the part that they are; the peers tool follows their own children."""
    found: dict[str, list[int]] = {}
    for child in psutil.Process(suite_pid).children():
        line = " ".join(child.cmdline())
        group = next((name for name, mark in GROUPS.items() if mark in line), None)
        if group is not None:
            found.setdefault(group, []).append(child.pid)
    return found


def _token(url: str) -> str:
    name = f"bench-{os.getpid()}"
    body = {"username": name, "email": f"{name}@example.com", "password": "correct horse battery"}
    return str(_post(f"{url}/api/v1/auth/register", body)["tokens"]["access_token"])


def _post(url: str, body: Mapping[str, object], *headers: str) -> dict[str, dict[str, object]]:
    named = dict(header.split(": ", 1) for header in headers)
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json", **named})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own edge
        found: dict[str, dict[str, object]] = json.load(answer)
        return found


def _hold(command: Sequence[str]) -> int:
    print(" ".join(f"'{part}'" if any(c in part for c in ' {}"') else part for part in command), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    return 0


def _measured(command: Sequence[str]) -> list[dict[str, object]]:
    """The lines of the tool, each printed as it comes."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tool:  # noqa: S603 - our own programs
        for line in tool.stdout or ():
            print(line, end="", flush=True)
            lines.append(json.loads(line))
    return lines if tool.returncode == 0 else []


def table(lines: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table: CPU seconds a million tokens by part, and what a reader of the stream saw."""
    head = "| workload | peer | ok | bad | lost+dup | chats/s | tokens/s | TTFT p50/p99 ms | reply p50/p99 ms | gap max ms |"
    head += " CPU s/1k chats | CPU s/1M tokens | by part | KB a stream |"
    return "\n".join([head, "|" + "---|" * head.count(" | ") + "---|", *map(_row, lines)])


def _row(line: Mapping[str, object]) -> str:
    tokens, chats = line.get("cpu_s_per_1m_tokens", {}), line.get("cpu_s_per_1k_chats", {})
    streams = line.get("rss_kb_per_stream", {})
    if not (isinstance(tokens, dict) and isinstance(chats, dict) and isinstance(streams, dict)):
        raise SystemExit(f"not a line of the peers tool: {line}")
    parts = ", ".join(f"{name} {tokens[name]:g}" for name in COLUMNS if name in tokens)
    held = ", ".join(f"{name} {streams[name]:g}" for name in ("chat", "edge", "fastapi") if name in streams)
    added = line.get("added_ttft_p50")
    whole = f"{line.get('dur_p50')}/{line.get('dur_p99')}"
    first = f"{line.get('ttft_p50')}/{line.get('ttft_p99')}" + (f" (+{added})" if added is not None else "")
    cells = (
        *(line.get("workload"), line.get("peer"), line.get("ok"), line.get("bad")),
        f"{line.get('lost', 0)}+{line.get('dup', 0)}",
        *(
            line.get("streams_s"),
            line.get("tokens_s"),
            first,
            whole,
            line.get("gap_max"),
        ),
        *(chats.get("total"), tokens.get("total"), parts, held),
    )
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
