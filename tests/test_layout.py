"""The house: which room may import which, what stays light, and what the docs say of it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from winnow.stages import STAGES, entry_point

ROOT = Path(__file__).parent.parent
ROOMS = ("winnow", "reward_server", "sampler", "sft", "eval")
MAY_IMPORT = {
    "winnow": set(),
    "reward_server": {"winnow"},
    "sampler": {"winnow", "reward_server.client"},
    "sft": {"winnow", "sampler.engines"},
    "eval": {"winnow", "sampler.engines", "reward_server.client"},
}
LIGHT_MODULES = (
    "winnow.cli",
    "winnow.config",
    "winnow.run_config",
    "winnow.chat",
    "winnow.rundir",
    "reward_server.client",
    "sampler.rounds",
)
HEAVY = ("torch", "transformers", "vllm", "trl", "lm_eval", "datasets", "pyarrow")


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def is_allowed(room: str, name: str) -> bool:
    allowed = {room, *MAY_IMPORT[room]}
    return any(name == door or name.startswith(door + ".") for door in allowed)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_the_graph_allows(room: str) -> None:
    ours = [(path, name) for path in modules(room) for name in imports(path) if name.split(".")[0] in ROOMS]
    assert [f"{path.relative_to(ROOT)}: {name}" for path, name in ours if not is_allowed(room, name)] == []


def test_the_loop_is_handed_its_stages() -> None:
    assert {name.split(".")[0] for name in imports(ROOT / "sampler" / "rounds.py")} & {"sft", "eval"} == set()


def test_eval_is_imported_by_name_so_that_the_builtin_stays() -> None:
    ours = [*(path for room in ROOMS for path in modules(room)), *(ROOT / "tests").glob("*.py")]
    offenders = [path for path in ours if re.search(r"^\s*import eval\b", path.read_text(), re.M)]
    assert offenders == []


def test_no_room_is_a_junk_drawer() -> None:
    names = {path.stem for room in ROOMS for path in modules(room)}
    assert names & {"utils", "common", "helpers", "manager"} == set()


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_pull_in_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_stage_has_its_function(name: str) -> None:
    assert callable(entry_point(STAGES[name]))


def test_the_architecture_page_draws_the_same_graph() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = dict(re.findall(r"^    (\w+) +-> (.+)$", page, re.M))
    drawn = {
        room: set(re.findall(r"[a-z_]+(?:\.[a-z_]+)?", re.sub(r"\(.*?\)|nothing of ours", "", rows[room])))
        for room in ROOMS
    }
    assert drawn == MAY_IMPORT


def test_the_readme_shows_the_loop_as_it_is() -> None:
    source = (ROOT / "sampler" / "rounds.py").read_text()
    loop = source[source.index("def run_rounds") :].strip()
    assert loop in (ROOT / "README.md").read_text()


def test_what_the_readme_links_to_exists() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
        missing = [link for link in links if not (page.parent / link).exists()]
        assert missing == [], page.name
