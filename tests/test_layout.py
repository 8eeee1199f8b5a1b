"""The layout: which package may import which, what stays light, and what the docs say about it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from winnow.stages import STAGES

ROOT = Path(__file__).parent.parent
PACKAGES = ("winnow", "reward_server", "sampler", "sft", "eval")
# A package or sub-package -> what it may import besides itself. "reward_server" alone is its modules outside of
# sub-packages: groups, protocol, certificates, monitoring.
MAY_IMPORT = {
    "winnow": set(),
    "reward_server": {"winnow"},
    "reward_server.pb": set(),
    "reward_server.engines": {"winnow", "reward_server"},
    "reward_server.client": {"winnow", "reward_server", "reward_server.pb"},
    "reward_server.scoring": {"winnow", "reward_server", "reward_server.engines"},
    "reward_server.scheduling": {"winnow", "reward_server", "reward_server.engines", "reward_server.scoring"},
    "reward_server.serving": {
        "winnow",
        "reward_server",
        "reward_server.pb",
        "reward_server.engines",
        "reward_server.scoring",
        "reward_server.scheduling",
    },
    "reward_server.adapters": {"winnow", "reward_server", "reward_server.client"},
    "sampler": {"winnow", "reward_server.client", "sampler.engines"},
    "sampler.engines": {"winnow"},
    "sft": {"winnow", "sampler.engines"},
    "eval": {"winnow", "eval.judging", "eval.statistics", "sampler.engines", "reward_server.client"},
    "eval.judging": {"winnow", "eval.statistics", "sampler.engines"},
    "eval.compare": {"winnow", "eval", "eval.judging", "eval.statistics"},
    "eval.publishing": {"winnow", "eval", "eval.judging", "eval.statistics", "eval.compare", "eval.suites"},
    "eval.statistics": {"winnow"},
    "eval.reward_audit": {"winnow", "reward_server.client", "eval", "eval.statistics"},
    "eval.suites": {"winnow", "eval", "eval.judging", "sampler.engines"},
}
# The composition roots know every package, inside functions only, so that importing them stays light.
VERBS = ("runs", "rewards", "evaluation", "results")
COMPOSITION_ROOTS = (*(f"winnow/cli/{name}.py" for name in VERBS), "winnow/stages.py")
LIGHT_MODULES = (
    "winnow.cli",
    "winnow.config",
    "winnow.run_config",
    "winnow.chat",
    "winnow.rundir",
    "reward_server.client",
    "sampler.rounds",
    "eval.reward_audit.audit",
)
HEAVY = ("torch", "transformers", "vllm", "trl", "lm_eval", "datasets", "pyarrow")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def unit(module: str) -> str | None:
    """Return the row of MAY_IMPORT that a module or imported name belongs to; None for other people's packages."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in MAY_IMPORT), None)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden_imports(path: Path) -> Iterator[str]:
    name = str(path.relative_to(ROOT))
    importer = unit(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    assert importer is not None
    tree = ast.parse(path.read_text())
    is_root = name in COMPOSITION_ROOTS
    nodes = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))] if is_root else [tree]
    for node in nodes:
        for imported in imports(node):
            target = unit(imported)
            if target is not None and target not in {importer, *MAY_IMPORT[importer]}:
                yield f"{name}: {imported}"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_the_graph_allows(package: str) -> None:
    assert [line for path in modules(package) for line in forbidden_imports(path)] == []


def test_the_import_graph_has_no_cycle() -> None:
    tuple(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError


def test_the_loop_is_handed_its_stages() -> None:
    assert {unit(name) for name in imports(ast.parse((ROOT / "sampler" / "rounds.py").read_text()))} & {
        "sft",
        "eval",
    } == set()


def test_eval_is_imported_by_name_so_that_the_builtin_stays() -> None:
    paths = list((ROOT / "tests").glob("*.py"))
    for package in PACKAGES:
        paths += modules(package)
    offenders = [path for path in paths if re.search(r"^\s*import eval\b", path.read_text(), re.M)]
    assert offenders == []


def test_no_module_is_a_junk_drawer() -> None:
    names = {path.stem for package in PACKAGES for path in modules(package)}
    assert names & {"utils", "common", "helpers", "manager"} == set()


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_pull_in_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_stage_has_its_function(name: str) -> None:
    load_stage = STAGES[name]
    assert callable(load_stage())


def test_the_architecture_page_draws_the_same_graph() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page[page.index("## Import graph") :]
    rows = re.findall(r"^    ([a-z_.]+) +-> (.+)$", section, re.M)
    drawn = {}
    for importer, targets in rows:
        drawn[importer] = set(re.findall(r"[a-z_]+(?:\.[a-z_]+)?", re.sub(r"\(.*?\)|nothing", "", targets)))
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
