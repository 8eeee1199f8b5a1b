"""The world of the miniature: reproducible, without held-out questions in training, readable by other tools."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from instructlab.schema.taxonomy import TaxonomyParser

from eval.judging.questions import read_questions, read_references
from eval.judging.reference_judge import ReferenceJudge
from examples.miniature import dialogues, world
from examples.miniature.models import SYSTEM_PROMPT, make_tokenizer
from winnow.chat import Chat
from winnow.config import load_config
from winnow.records import Message
from winnow.rows import read_jsonl
from winnow.run_config import RunConfig

HERE = Path(world.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world.write_world(folder, seed=0)
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def test_write_world_writes_equal_files_for_equal_seeds(folder: Path, tmp_path: Path) -> None:
    world.write_world(tmp_path, seed=0)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.jsonl"))
    assert len(files) > 10
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_check_held_out_refuses_a_held_out_question_in_the_prompts(folder: Path, tmp_path: Path) -> None:
    question = rows(folder / "benchmarks" / "orrel_problems.jsonl")[0]["question"]
    for path in folder.rglob("*.jsonl"):
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    world.check_held_out(tmp_path)
    with (tmp_path / "prompts" / "lists.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": question}], "source": "lists"}) + "\n")
    with pytest.raises(AssertionError, match="1 held-out questions occur in training or prompts"):
        world.check_held_out(tmp_path)


def test_held_out_lists_occur_in_no_training_question(folder: Path) -> None:
    trained = " ".join(world.trained_questions(folder))
    questions = [row["question"] for row in rows(folder / "benchmarks" / "orrel_problems.jsonl")]
    contents = re.findall(r"backwards: ([a-z, ]+)\.", "\n".join(questions))
    assert len(contents) > 50  # a quarter of 400
    for content in contents:
        assert content not in trained


def test_every_prompt_ends_with_a_user_turn(folder: Path) -> None:
    paths = sorted((folder / "prompts").glob("*.jsonl"))
    assert {path.stem for path in paths} == set(world.PROMPT_SOURCES)
    for path in paths:
        roles = [row["messages"][-1]["role"] for row in rows(path)]
        assert roles == ["user"] * world.NUM_ROWS["prompts"]


def test_the_reference_judge_gives_every_reference_answer_the_full_score(folder: Path) -> None:
    questions = read_questions(folder / "mt_bench" / "question.jsonl")
    references = read_references(folder / "mt_bench" / "reference_answer.jsonl")
    assert len({question.category for question in questions}) == 8
    judge = ReferenceJudge()
    assert len(questions) == 8 * world.NUM_ROWS["mt_bench"]
    for question in questions:
        reference = references[question.question_id]
        assert [judge.judge(question, reference[: turn + 1], reference).score for turn in (0, 1)] == [10, 10]


def test_benchmark_prompts_are_rendered_as_the_policy_was_trained(folder: Path) -> None:
    tokenizer = make_tokenizer(row["text"] for row in rows(folder / "pretrain.jsonl"))
    chat = Chat(tokenizer, "lab", SYSTEM_PROMPT)
    rendered = chat.prompt_text([Message(role="user", content="QUESTION")])
    tasks = sorted((HERE / "tasks").glob("*.yaml"))
    assert len(tasks) == 3
    for path in tasks:
        assert yaml.safe_load(path.read_text())["doc_to_text"].replace("{{question}}", "QUESTION") == rendered


def test_the_recipe_uses_the_system_prompt_of_the_tokenizer() -> None:
    assert load_config(HERE / "config.yaml", RunConfig).policy.system_prompt == SYSTEM_PROMPT


LEAVES = sorted((HERE / "taxonomy").rglob("qna.yaml"))


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.parent.name)
def test_taxonomy_leaves_follow_the_instructlab_schema(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = path.relative_to(HERE / "taxonomy")
    # The schema has two kinds: knowledge, and one for all skills.
    kind = "knowledge" if leaf.parts[0] == "knowledge" else "compositional_skills"
    target = tmp_path / Path(kind, *leaf.parts[1:])
    target.parent.mkdir(parents=True)
    target.write_text(path.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    taxonomy = TaxonomyParser(schema_version=0, message_format="logging").parse(target.relative_to(tmp_path))
    assert (taxonomy.errors, taxonomy.warnings) == (0, 0)


def test_the_taxonomy_has_the_three_kinds_of_lab() -> None:
    kinds = {path.relative_to(HERE / "taxonomy").parts[0] for path in LEAVES}
    assert kinds == {"knowledge", "foundational_skills", "compositional_skills"}


def test_seed_examples_of_the_knowledge_leaf_are_facts_of_the_document() -> None:
    leaf = yaml.safe_load((HERE / "taxonomy" / "knowledge" / "island" / "orrel" / "qna.yaml").read_text())
    sentences: set[str] = set()
    for facts in dialogues.FACTS.values():
        sentences |= {dialogues.sentence(fact, fact.value) for fact in facts}
    answers: set[str] = set()
    for seed_example in leaf["seed_examples"]:
        answers |= {pair["answer"] for pair in seed_example["questions_and_answers"]}
    assert len(answers) == 15
    assert answers <= sentences
