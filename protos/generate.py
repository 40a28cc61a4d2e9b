"""Generates everything under gen/ from the protos: message and service stubs, their types, and the descriptor set.

The descriptor set (gen/parley.binpb, imports and comments included) is what the edge transcodes by, what the OpenAPI
document is made of, and what the breaking-change check compares with. Run by `make proto`; nothing under gen/ is edited.
"""

import shutil
import sys
from importlib.resources import files
from pathlib import Path

import google.api
from grpc_tools import protoc

PROTOS = Path(__file__).parent
GEN = PROTOS.parent / "gen"
# google/api/*.proto ship in googleapis-common-protos, google/protobuf/*.proto in grpcio-tools: nothing is vendored.
GOOGLEAPIS = Path(next(iter(google.api.__path__))).parent.parent
WELL_KNOWN = Path(str(files("grpc_tools"))) / "_proto"


def main(gen: Path) -> int:
    """Replaces the folder as a whole, so that a removed proto leaves nothing behind; returns protoc's exit code."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    shutil.rmtree(gen, ignore_errors=True)
    gen.mkdir()
    plugins = Path(sys.executable).parent
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{GOOGLEAPIS}",
            f"-I{WELL_KNOWN}",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={gen}",
            f"--grpc_python_out={gen}",
            f"--mypy_out={gen}",
            f"--mypy_grpc_out=only_async:{gen}",
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={gen / 'parley.binpb'}",
            *sources,
        ]
    )
    return int(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else GEN))
