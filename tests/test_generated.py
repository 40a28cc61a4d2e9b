"""What is generated from the protos is what is committed, and buf has nothing to say about it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "gen"
    subprocess.run([sys.executable, ROOT / "protos" / "generate.py", folder], check=True, timeout=60)  # noqa: S603
    return folder


def test_what_is_generated_is_what_is_committed(generated: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    made, committed = content(generated), content(ROOT / "gen")
    assert made.keys() == committed.keys()
    assert [name for name, raw in made.items() if raw != committed[name]] == []


def test_buf_finds_nothing_to_say() -> None:
    # parley/edge has Envoy's names.
    ours = ["--path", "parley", "--exclude-path", "parley/edge"]
    lint = [str(BIN / "buf"), "lint", "gen/parley.binpb", "--config", "buf.yaml", *ours]
    done = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
