"""`python -m suite.fake_redis <port file>`: fakeredis' TCP server on a free local port, which it writes into the file.

Where the file names a port already, that one is taken again if it is free: after a restart clients find it where it was.

The last resort where no Redis exists: everything is in its memory, so nothing survives its end.
"""

import os
import sys
from pathlib import Path

from fakeredis import TcpFakeServer


def main(port_file: Path) -> None:
    """Serve until a signal ends the process."""
    server = _server(_previous_port(port_file))
    draft = port_file.with_name(f"{port_file.name}.{os.getpid()}")
    draft.write_text(str(server.server_address[1]))
    draft.replace(port_file)
    server.serve_forever()


def _previous_port(port_file: Path) -> int:
    try:
        return int(port_file.read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _server(port: int) -> TcpFakeServer:
    try:
        return TcpFakeServer(("127.0.0.1", port), server_type="redis", server_version=(6, 2))
    except OSError:
        if port == 0:
            raise
        return _server(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
