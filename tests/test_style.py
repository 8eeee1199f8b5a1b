"""The rules of style that a script can check: names, openings of docstrings, density of expressions.

The density limits are for 1000 lines that are not blank, over every package but tests and the generated stubs.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("winnow", "reward_server", "sampler", "sft", "eval", "examples", "benchmarks")
BANNED_NAMES = {"one", "other", "ours", "theirs", "own", "asked", "found", "given", "what", "where"}
# The openings of functions are ruff's (D401).
VERB_OPENING = re.compile(
    r"(Gathers|Appends|Computes|Renders|Refuses|Reads|Answers|Holds|Makes|Keeps|Gives|Sends|Serves|Loads|Runs|Wraps|Shows"
    r"|Returns?|Tells?|Yields?|Raises?)\b"
)
CLAUSE_OPENING = re.compile(r"(What|Whether|Where|How|As|Of|Who|Which|Why)\b")
BANNED_PHRASES = re.compile(r"\b(is no [a-z]|are no [a-z]|anew\b|(goes|go|gone|going) on with\b|of ours\b)")
ALLOWED_PHRASES = re.compile(r"\bthere (is|are) no\b|\b(is|are) no (longer|more|less)\b", re.IGNORECASE)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def sources(*packages: str) -> list[Path]:
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    return sorted(path for path in paths if "pb" not in path.relative_to(ROOT).parts)


def is_dense_comprehension(node: ast.AST) -> bool:
    """Tell whether a comprehension nests, has two loops or holds a conditional expression."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    inner = [child for child in ast.walk(node) if child is not node]
    return len(node.generators) > 1 or any(isinstance(child, (*COMPREHENSIONS, ast.IfExp)) for child in inner)


def is_packed_assignment(node: ast.AST) -> bool:
    """Tell whether `a, b = x, y` assigns values that have nothing to do with each other; a swap reads its targets."""
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)):
        return False
    if not isinstance(node.value, ast.Tuple):
        return False
    targets = {ast.unparse(target) for target in node.targets[0].elts}
    read = {ast.unparse(child) for child in ast.walk(node.value) if isinstance(child, (ast.Name, ast.Attribute))}
    return not targets & read


def bound_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each name that the code binds, with its line; imports and parameters of dunder methods are free."""
    free: set[ast.arg] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("__"):
            free.update(node.args.args)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg) and node not in free:
            yield node.arg, node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)) and node.name:
            yield node.name, node.lineno


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text


def is_property(node: ast.AST) -> bool:
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def per_1000_lines(matches: Callable[[ast.AST], bool]) -> float:
    num_matches = num_lines = 0
    for path in sources(*PACKAGES):
        text = path.read_text()
        num_lines += sum(1 for line in text.splitlines() if line.strip())
        num_matches += sum(1 for node in ast.walk(ast.parse(text)) if matches(node))
    return 1000 * num_matches / num_lines


@pytest.mark.parametrize(
    ("matches", "limit"),
    [
        (is_dense_comprehension, 2.5),
        (lambda node: isinstance(node, ast.IfExp), 11.0),
        (lambda node: isinstance(node, ast.NamedExpr), 1.0),
        (is_packed_assignment, 0.0),
    ],
    ids=["dense comprehensions", "conditional expressions", "assignment expressions", "packed assignments"],
)
def test_lines_are_not_dense(matches: Callable[[ast.AST], bool], limit: float) -> None:
    assert per_1000_lines(matches) <= limit


def test_names_say_what_they_hold() -> None:
    offenders = []
    for path in sources(*PACKAGES, "tests", "proto"):
        for name, line in bound_names(ast.parse(path.read_text())):
            if name in BANNED_NAMES:
                offenders.append(f"{path.relative_to(ROOT)}:{line} {name}")
    assert offenders == []


def test_docstrings_seldom_open_with_a_clause() -> None:
    texts = [text for path in sources(*PACKAGES) for text in docstrings(ast.parse(path.read_text()))]
    clauses = [text for text in texts if CLAUSE_OPENING.match(text)]
    assert len(clauses) <= 0.02 * len(texts), clauses


def test_docstrings_of_modules_classes_and_properties_open_with_a_noun() -> None:
    offenders = []
    for path in sources(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef)) or is_property(node):
                text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
                if VERB_OPENING.match(text):
                    offenders.append(f"{path.relative_to(ROOT)} {text.splitlines()[0]}")
    assert offenders == []


def test_no_two_public_classes_share_a_name() -> None:
    names: Counter[str] = Counter()
    for path in sources(*PACKAGES):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                names[node.name] += 1
    assert [name for name, count in names.items() if count > 1] == []


def test_sentences_are_plain_english() -> None:
    pages = [*sources(*PACKAGES, "tests"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    offenders = []
    for path in pages:
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if BANNED_PHRASES.search(ALLOWED_PHRASES.sub("", line)):
                offenders.append(f"{path.relative_to(ROOT)}:{number} {line.strip()}")
    assert offenders == []


def test_lines_of_the_docs_fit_a_screen() -> None:
    offenders = []
    for path in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "configs").glob("*.md")]:
        is_code = False
        for number, line in enumerate(path.read_text().splitlines(), 1):
            is_code ^= line.startswith("```")
            is_free = is_code or line.startswith(("|", "    ")) or "](" in line
            if len(line) > 120 and not is_free:
                offenders.append(f"{path.relative_to(ROOT)}:{number}")
    assert offenders == []


def test_the_checks_find_what_they_are_for() -> None:
    tree = ast.parse("a, b = x, y\na, b = b, a\nc = [p for q in r for p in q]\nd = [p for p in r if p]\none = 1\n")
    assert [is_packed_assignment(node) for node in tree.body] == [True, False, False, False, False]
    assert sum(is_dense_comprehension(node) for node in ast.walk(tree)) == 1
    assert {name for name, _ in bound_names(tree)} == {"a", "b", "c", "d", "one", "p", "q"}
