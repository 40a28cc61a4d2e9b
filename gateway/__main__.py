"""Writes what Envoy runs from: `python -m gateway --output DIR`, then `envoy -c DIR/envoy.yaml`."""

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from gateway.config import write
from gateway.contract import ContractError
from gateway.settings import EdgeSettings


def main() -> int:
    """Writes the files; returns 2 with a line for each bad variable, 1 with a line when they cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for envoy.yaml, parley.binpb and web/")
    arguments = parser.parse_args()
    try:
        settings = EdgeSettings()
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = ".".join(str(part) for part in fault["loc"][:1]).upper() or "settings"
            print(f"{name}: {fault['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return 2
    try:
        print(write(settings, arguments.output))
    except (OSError, ContractError) as error:
        print(f"the edge's configuration cannot be written: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
