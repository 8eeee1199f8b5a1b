"""Generator of the committed files that derive from others: the wire's Python stubs, and the docs' table of options.

    proto/winnow/v1/reward.proto  ->  reward_server/pb
    winnow/reward_options.py      ->  the table in docs/rewards.md

    python proto/generate.py           writes these files
    python proto/generate.py --check   exit code 1 if a committed file is out of date

To generate the stubs by hand, from the root of the repository, with the grpcio-tools that pyproject.toml pins:

    python -m grpc_tools.protoc --proto_path=reward_server/pb=proto/winnow/v1 \
        --python_out=. --pyi_out=. --grpc_python_out=. proto/winnow/v1/reward.proto

`reward_server/pb=...` maps the proto's folder to the package of the stubs, so that they import each other as
`from reward_server.pb import ...` without edits. The proto package stays winnow.v1.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = Path("proto/winnow/v1/reward.proto")
PACKAGE = Path("reward_server/pb")
DOCS_PAGE = Path("docs/rewards.md")
STUBS = ("reward_pb2.py", "reward_pb2.pyi", "reward_pb2_grpc.py")


def generate(out_dir: Path) -> None:
    """Write the stubs to `out_dir`/reward_server/pb. Raises CalledProcessError if protoc refuses the proto."""
    outputs = [f"--{kind}_out={out_dir}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PACKAGE}={PROTO.parent}", *outputs]
    subprocess.run([*command, str(PROTO)], cwd=ROOT, check=True)


def docs_page() -> str:
    """Return docs/rewards.md with the table that winnow/reward_options.py defines."""
    sys.path.insert(0, str(ROOT))
    from winnow.reward_options import options_table

    table = options_table()
    heading, _, _ = table.partition("\n")
    page = (ROOT / DOCS_PAGE).read_text()
    start = page.index(heading)
    end = page.index("\n\n", start)
    return page[:start] + table + page[end:]


def outdated() -> list[str]:
    """Return the paths of committed files that differ from freshly generated ones."""
    paths = []
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        for name in STUBS:
            if _text(ROOT / PACKAGE / name) != _text(Path(folder) / PACKAGE / name):
                paths.append(str(PACKAGE / name))
    if _text(ROOT / DOCS_PAGE) != docs_page():
        paths.append(str(DOCS_PAGE))
    return paths


def main(arguments: list[str]) -> int:
    """Generate, or check with `--check`. Return the exit code."""
    try:
        if arguments == ["--check"]:
            paths = outdated()
            if paths:
                print(f"out of date: {', '.join(paths)}; run python proto/generate.py", file=sys.stderr)
            return int(bool(paths))
        generate(ROOT)
        (ROOT / DOCS_PAGE).write_text(docs_page())
        return 0
    except subprocess.CalledProcessError as error:
        print("protoc failed; it needs the grpcio-tools of the dev extra: pip install -e '.[dev]'", file=sys.stderr)
        return error.returncode


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    return path.read_text()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
