"""proto/winnow/v1/reward.proto -> reward_server/pb: the committed Python stubs.

    python proto/generate.py           writes them
    python proto/generate.py --check   exit code 1 when the committed ones differ

The same by hand, from the root of the repository, with the grpcio-tools that pyproject.toml pins:

    python -m grpc_tools.protoc --proto_path=reward_server/pb=proto/winnow/v1 \
        --python_out=. --pyi_out=. --grpc_python_out=. proto/winnow/v1/reward.proto

`reward_server/pb=...` maps the proto's folder to the package its stubs live in, so that they import each other as
`from reward_server.pb import ...` without being edited. The proto package stays winnow.v1.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = Path("proto/winnow/v1/reward.proto")
PACKAGE = Path("reward_server/pb")
STUBS = ("reward_pb2.py", "reward_pb2.pyi", "reward_pb2_grpc.py")


def generate(out_dir: Path) -> None:
    """Write the stubs to `out_dir`/reward_server/pb. Raises CalledProcessError when protoc refuses the proto."""
    outputs = [f"--{kind}_out={out_dir}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PACKAGE}={PROTO.parent}", *outputs]
    subprocess.run([*command, str(PROTO)], cwd=ROOT, check=True)


def outdated() -> list[str]:
    """Names of committed stubs that differ from freshly generated ones."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [name for name in STUBS if _text(ROOT / PACKAGE / name) != _text(Path(folder) / PACKAGE / name)]


def main(arguments: list[str]) -> int:
    """Generate, or check with `--check`; the exit code."""
    try:
        if arguments == ["--check"]:
            names = outdated()
            if names:
                print(f"{PACKAGE}: {', '.join(names)} out of date; run python proto/generate.py", file=sys.stderr)
            return int(bool(names))
        generate(ROOT)
        return 0
    except subprocess.CalledProcessError as error:
        print("protoc failed; it needs the grpcio-tools of the dev extra: pip install -e '.[dev]'", file=sys.stderr)
        return error.returncode


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
