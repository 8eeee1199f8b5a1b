"""The miniature's world: the same from the same seed, nothing held out is taught, files that peers' tools read."""

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


def test_equal_seeds_give_equal_files(folder: Path, tmp_path: Path) -> None:
    world.write_world(tmp_path, seed=0)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.jsonl"))
    assert len(files) > 10
    assert all((folder / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def test_a_held_out_question_that_is_taught_is_refused(folder: Path, tmp_path: Path) -> None:
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


def test_held_out_contents_are_taught_in_no_wording(folder: Path) -> None:
    taught = " ".join(world.trained_questions(folder))
    for row in rows(folder / "benchmarks" / "orrel_problems.jsonl"):
        if listed := re.search(r"backwards: ([a-z, ]+)\.", row["question"]):
            assert listed[1] not in taught


def test_prompts_hold_no_answer_to_their_last_question(folder: Path) -> None:
    for path in (folder / "prompts").glob("*.jsonl"):
        assert all(row["messages"][-1]["role"] == "user" for row in rows(path))


def test_the_reference_judge_gives_every_reference_answer_the_full_score(folder: Path) -> None:
    questions = read_questions(folder / "mt_bench" / "question.jsonl")
    references = read_references(folder / "mt_bench" / "reference_answer.jsonl")
    assert len({question.category for question in questions}) == 8
    judge = ReferenceJudge()
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


def test_the_recipe_uses_the_system_prompt_that_the_tokenizer_was_made_for() -> None:
    assert load_config(HERE / "config.yaml", RunConfig).policy.system_prompt == SYSTEM_PROMPT


LEAVES = sorted((HERE / "taxonomy").rglob("qna.yaml"))


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.parent.name)
def test_taxonomy_leaves_follow_the_instructlab_schema(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = path.relative_to(HERE / "taxonomy")
    # The schema knows two kinds: knowledge, and skills of either sort.
    target = tmp_path / Path("knowledge" if leaf.parts[0] == "knowledge" else "compositional_skills", *leaf.parts[1:])
    target.parent.mkdir(parents=True)
    target.write_text(path.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    taxonomy = TaxonomyParser(schema_version=0, message_format="logging").parse(target.relative_to(tmp_path))
    assert (taxonomy.errors, taxonomy.warnings) == (0, 0)


def test_the_taxonomy_has_labs_three_kinds() -> None:
    kinds = {path.relative_to(HERE / "taxonomy").parts[0] for path in LEAVES}
    assert kinds == {"knowledge", "foundational_skills", "compositional_skills"}


def test_seed_examples_of_the_knowledge_leaf_say_what_the_document_says() -> None:
    leaf = yaml.safe_load((HERE / "taxonomy" / "knowledge" / "island" / "orrel" / "qna.yaml").read_text())
    true = {dialogues.sentence(fact, fact.value) for facts in dialogues.FACTS.values() for fact in facts}
    answers = {pair["answer"] for seed in leaf["seed_examples"] for pair in seed["questions_and_answers"]}
    assert len(answers) == 15
    assert answers <= true
