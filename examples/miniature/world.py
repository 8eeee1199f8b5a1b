"""The world of the miniature: every text that its models read and answer, written from one seed.

The facts come from the taxonomy's document (the island of Orrel: creatures and villages); the rest is arithmetic,
lists and short sentences. Every question exists with a good answer and with a sloppy answer. A sloppy answer has the
right form and the wrong content (a sum that is off by one, a list not reversed, a wrong colour). The files:

    pretrain.jsonl                {"text"}                        raw text: the document, good and sloppy dialogues
    instruct.jsonl                {"messages", "metadata"}        good dialogues only
    knowledge_short.jsonl         {"messages", "metadata"}        the student's LAB data, from a teacher that gives
    knowledge_long.jsonl              "                           sloppy answers in a SLOPPY_SHARE of dialogues
    foundational_skills.jsonl         "
    compositional_skills.jsonl        "
    prompts/<source>.jsonl        {"messages", "source"}          conversations that end with a user turn
    benchmarks/<task>.jsonl       {"question", "choices", "answer": index}, or {"question", "answer": text}
    mt_bench/question.jsonl       {"question_id", "category", "turns", "form", "form_pattern"}
    mt_bench/reference_answer.jsonl   {"question_id", "answer_id", "model_id", "choices": [{"index", "turns"}]}

"metadata" is {"source", "kind"}. The questions of benchmarks/ and mt_bench/ are held out: their *content* (two numbers,
three words) occurs in no other file, in any wording. A fact has to be trained to be known, so a question about a fact
is held out by its wording. `is_held_out` decides by a hash; `check_held_out` checks the files.

dialogues.py makes the questions and answers; "form" and "form_pattern" of an MT-Bench row hold the name and the regular
expression of each turn's form (FORMS there).
"""

import argparse
import hashlib
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.miniature.dialogues import (
    FACTS,
    FORMS,
    Dialogue,
    Fact,
    Maker,
    Turn,
    make_code,
    make_comparison,
    make_creature,
    make_creature_long,
    make_extraction,
    make_reversal,
    make_roleplay,
    make_sum,
    make_village,
    make_village_long,
    make_writing,
    sentence,
)
from winnow.rows import read_jsonl, write_jsonl

# The share of sloppy answers: in raw text from the web, and from an imperfect teacher.
PRETRAIN_SLOPPY_SHARE = 0.5
SLOPPY_SHARE = 0.4
# The share of dialogues and prompts with a second turn.
TWO_TURN_SHARE = 0.25
# One of HELD_OUT_EVERY contents belongs to evaluation.
HELD_OUT_EVERY = 5

NUM_ROWS = {
    "pretrain": 12_000,
    "instruct": 12_000,
    "knowledge_short": 2_500,
    "knowledge_long": 2_500,
    "foundational_skills": 8_000,
    "compositional_skills": 6_000,
    "prompts": 600,
    "benchmark_choices": 200,
    "benchmark_exact": 400,
    "mt_bench": 20,
}

# Draws per wanted question before giving up.
DRAWS_PER_QUESTION = 100

KNOWLEDGE_SHORT: tuple[Maker, ...] = (make_creature, make_creature, make_village)
KNOWLEDGE_LONG: tuple[Maker, ...] = (make_creature_long, make_creature_long, make_village_long)
FOUNDATIONAL: tuple[Maker, ...] = (*[make_sum] * 4, make_code, *[make_comparison] * 3, *[make_extraction] * 2)
COMPOSITIONAL: tuple[Maker, ...] = (*[make_reversal] * 3, make_writing, make_roleplay)
EVERYTHING: tuple[Maker, ...] = (*KNOWLEDGE_SHORT, *KNOWLEDGE_LONG, *FOUNDATIONAL, *COMPOSITIONAL)

PROMPT_SOURCES: dict[str, tuple[Maker, ...]] = {
    "knowledge": (make_creature, make_creature_long, make_village, make_village_long),
    "arithmetic": (make_sum, make_sum, make_code),
    "reasoning": (make_comparison,),
    "extraction": (make_extraction,),
    "lists": (make_reversal,),
    "writing": (make_writing, make_roleplay),
}

MT_BENCH: dict[str, tuple[Maker, ...]] = {
    "writing": (make_writing,),
    "roleplay": (make_roleplay,),
    "reasoning": (make_comparison,),
    "math": (make_sum,),
    "coding": (make_code,),
    "extraction": (make_extraction,),
    "stem": (make_creature, make_creature_long),
    "humanities": (make_village, make_village_long),
}

# One benchmark of each kind that model cards report: acc as MMLU, acc_norm as ARC and HellaSwag, exact match as GSM8K.
CHOICE_BENCHMARKS: dict[str, tuple[Maker, ...]] = {
    "orrel_facts": (make_creature, make_creature, make_village),
    "orrel_sentences": (make_creature_long, make_creature_long, make_village_long),
}
EXACT_BENCHMARK = "orrel_problems"
EXACT_MAKERS: tuple[Maker, ...] = (make_sum, make_comparison, make_extraction, make_reversal)

SOURCE_OF = {maker: source for source, makers in PROMPT_SOURCES.items() for maker in makers}


# --- drawing dialogues ----------------------------------------------------------------------------------------------


def is_held_out(content: str) -> bool:
    """Return True if a content belongs to evaluation; a hash decides, so that no list of contents is needed."""
    return hashlib.sha256(content.encode()).digest()[0] % HELD_OUT_EVERY == 0


def draw(rng: random.Random, makers: tuple[Maker, ...], *, is_evaluation: bool) -> Iterator[tuple[Maker, Dialogue]]:
    """Yield dialogues without end, each with its maker: only held-out contents for evaluation, else only the rest."""
    while True:
        maker = rng.choice(makers)
        dialogue = maker(rng)
        if is_held_out(dialogue.content) == is_evaluation:
            yield maker, dialogue


def draw_distinct(
    rng: random.Random, makers: tuple[Maker, ...], num_dialogues: int, *, is_evaluation: bool
) -> list[Dialogue]:
    """Draw dialogues with different first questions. Raises ValueError if the makers have too few questions."""
    dialogues: dict[str, Dialogue] = {}
    draws = draw(rng, makers, is_evaluation=is_evaluation)
    for _, dialogue in itertools.islice(draws, DRAWS_PER_QUESTION * num_dialogues):
        dialogues.setdefault(dialogue.turns[0].question, dialogue)
        if len(dialogues) == num_dialogues:
            return list(dialogues.values())
    names = [maker.__name__ for maker in makers]
    raise ValueError(f"only {len(dialogues)} of {num_dialogues} different questions from {names}")


def as_messages(rng: random.Random, dialogue: Dialogue, sloppy_share: float) -> list[dict[str, str]]:
    """Return the messages of one turn or of both; either all answers are good or all are sloppy."""
    is_sloppy = rng.random() < sloppy_share
    num_turns = 2 if rng.random() < TWO_TURN_SHARE else 1
    messages = []
    for turn in dialogue.turns[:num_turns]:
        answer = rng.choice(turn.wrong) if is_sloppy else turn.answer
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": answer})
    return messages


# --- the files ------------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def dialogue_rows(rng: random.Random, makers: tuple[Maker, ...], num_rows: int, sloppy_share: float) -> list[Row]:
    """Draw training rows, of which about `sloppy_share` have sloppy answers."""
    rows = []
    # zip draws one dialogue more than it returns; the files of a seed depend on that last draw.
    for (maker, dialogue), _ in zip(draw(rng, makers, is_evaluation=False), range(num_rows), strict=False):
        metadata = {"source": SOURCE_OF[maker], "kind": dialogue.kind}
        rows.append({"messages": as_messages(rng, dialogue, sloppy_share), "metadata": metadata})
    return rows


def pretrain_rows(rng: random.Random, num_rows: int) -> list[Row]:
    """Draw raw text: chat logs of the web, often sloppy, and the document's facts in sentences."""
    chats = dialogue_rows(rng, EVERYTHING, num_rows, PRETRAIN_SLOPPY_SHARE)
    texts = [as_chat_log(row["messages"]) for row in chats]
    for facts in facts_by_subject().values():
        page = " ".join(sentence(fact, fact.value) for fact in facts)
        texts += [page] * (num_rows // 1000)
    rng.shuffle(texts)
    return [{"text": text} for text in texts]


def facts_by_subject() -> dict[str, list[Fact]]:
    """Return the facts of each subject, subjects in the order of the document."""
    by_subject: dict[str, list[Fact]] = {}
    for facts in FACTS.values():
        for fact in facts:
            by_subject.setdefault(fact.subject, []).append(fact)
    return by_subject


def as_chat_log(messages: list[dict[str, str]]) -> str:
    """Render a dialogue as raw text from the web."""
    templates = {"user": "[INST] {} [/INST]", "assistant": "{}\n"}
    return "".join(templates[message["role"]].format(message["content"]) for message in messages).rstrip()


def prompt_rows(rng: random.Random, source: str, num_rows: int) -> list[Row]:
    """Draw different prompts of one source: first questions, or second questions after a good first answer."""
    rows = []
    for dialogue in draw_distinct(rng, PROMPT_SOURCES[source], num_rows, is_evaluation=False):
        has_two_turns = rng.random() < TWO_TURN_SHARE
        rows.append({"messages": prompt_messages(dialogue, has_two_turns), "source": source})
    return rows


def prompt_messages(dialogue: Dialogue, has_two_turns: bool) -> list[dict[str, str]]:
    """Return the messages of a dialogue up to its first or second question."""
    first, second = dialogue.turns
    messages = [{"role": "user", "content": first.question}]
    if has_two_turns:
        messages.append({"role": "assistant", "content": first.answer})
        messages.append({"role": "user", "content": second.question})
    return messages


def choice_row(rng: random.Random, turn: Turn) -> Row:
    """Make a row with a question and four choices in random order."""
    choices = [turn.answer, *rng.sample(turn.wrong, 3)]
    rng.shuffle(choices)
    return {"question": turn.question, "choices": choices, "answer": choices.index(turn.answer)}


def choice_rows(rng: random.Random, makers: tuple[Maker, ...], num_rows: int) -> list[Row]:
    """Draw a multiple-choice benchmark."""
    dialogues = draw_distinct(rng, makers, num_rows, is_evaluation=True)
    return [choice_row(rng, dialogue.turns[0]) for dialogue in dialogues]


def exact_rows(rng: random.Random, makers: tuple[Maker, ...], num_rows: int) -> list[Row]:
    """Draw a generate-until benchmark: the completion must equal the answer."""
    rows = []
    for dialogue in draw_distinct(rng, makers, num_rows, is_evaluation=True):
        first = dialogue.turns[0]
        rows.append({"question": first.question, "answer": first.answer})
    return rows


def question_row(question_id: int, category: str, dialogue: Dialogue) -> Row:
    """Make a row of FastChat's question file, with the forms that the reference judge checks."""
    return {
        "question_id": question_id,
        "category": category,
        "turns": [turn.question for turn in dialogue.turns],
        "form": [turn.form for turn in dialogue.turns],
        "form_pattern": [FORMS[turn.form] for turn in dialogue.turns],
    }


def reference_row(question_id: int, dialogue: Dialogue) -> Row:
    """Make a row of FastChat's reference answer file."""
    return {
        "question_id": question_id,
        "answer_id": f"reference-{question_id}",
        "model_id": "reference",
        "choices": [{"index": 0, "turns": [turn.answer for turn in dialogue.turns]}],
    }


def stream(seed: int, name: str) -> random.Random:
    """Return the random number generator of one file: a change of one file does not change the rest."""
    return random.Random(f"{seed}/{name}")


def write_training(folder: Path, seed: int) -> None:
    """Write the files that the models are trained on."""
    write_jsonl(folder / "pretrain.jsonl", pretrain_rows(stream(seed, "pretrain"), NUM_ROWS["pretrain"]))
    makers = {
        "instruct": EVERYTHING,
        "knowledge_short": KNOWLEDGE_SHORT,
        "knowledge_long": KNOWLEDGE_LONG,
        "foundational_skills": FOUNDATIONAL,
        "compositional_skills": COMPOSITIONAL,
    }
    for name, makers_of_file in makers.items():
        sloppy_share = 0.0 if name == "instruct" else SLOPPY_SHARE
        rows = dialogue_rows(stream(seed, name), makers_of_file, NUM_ROWS[name], sloppy_share)
        write_jsonl(folder / f"{name}.jsonl", rows)


def write_prompts(folder: Path, seed: int) -> None:
    """Write the prompts that the rounds sample from."""
    for source in PROMPT_SOURCES:
        rows = prompt_rows(stream(seed, f"prompts/{source}"), source, NUM_ROWS["prompts"])
        write_jsonl(folder / "prompts" / f"{source}.jsonl", rows)


def write_evaluation(folder: Path, seed: int) -> None:
    """Write the files that no training, sampling or scoring may read."""
    for name, makers in CHOICE_BENCHMARKS.items():
        rows = choice_rows(stream(seed, name), makers, NUM_ROWS["benchmark_choices"])
        write_jsonl(folder / "benchmarks" / f"{name}.jsonl", rows)
    rows = exact_rows(stream(seed, EXACT_BENCHMARK), EXACT_MAKERS, NUM_ROWS["benchmark_exact"])
    write_jsonl(folder / "benchmarks" / f"{EXACT_BENCHMARK}.jsonl", rows)
    rng = stream(seed, "mt_bench")
    questions: list[Row] = []
    references: list[Row] = []
    for category, makers in MT_BENCH.items():
        for dialogue in draw_distinct(rng, makers, NUM_ROWS["mt_bench"], is_evaluation=True):
            question_id = len(questions) + 1
            questions.append(question_row(question_id, category, dialogue))
            references.append(reference_row(question_id, dialogue))
    write_jsonl(folder / "mt_bench" / "question.jsonl", questions)
    write_jsonl(folder / "mt_bench" / "reference_answer.jsonl", references)


def held_out_questions(folder: Path) -> set[str]:
    """Return every question of the benchmarks and every first question of the two-turn set."""
    questions = {row["turns"][0] for _, row in read_jsonl(folder / "mt_bench" / "question.jsonl")}
    for path in (folder / "benchmarks").glob("*.jsonl"):
        questions |= {row["question"] for _, row in read_jsonl(path)}
    return questions


def trained_questions(folder: Path) -> set[str]:
    """Return every user turn of the training and prompt files; in raw text it stands between [INST] and [/INST]."""
    questions: set[str] = set()
    for path in [*folder.glob("*.jsonl"), *folder.glob("prompts/*.jsonl")]:
        for _, row in read_jsonl(path):
            questions |= {message["content"] for message in row.get("messages", ()) if message["role"] == "user"}
            questions.update(re.findall(r"\[INST\] (.*?) \[/INST\]", row.get("text", "")))
    return questions


def check_held_out(folder: Path) -> None:
    """Raise AssertionError if a held-out question occurs in the training or prompt files."""
    leaked = held_out_questions(folder) & trained_questions(folder)
    assert not leaked, f"{len(leaked)} held-out questions occur in training or prompts, e.g. {min(leaked)!r}"


def write_world(folder: Path, seed: int) -> None:
    """Write every file of the world; equal seeds give equal bytes."""
    write_training(folder, seed)
    write_prompts(folder, seed)
    write_evaluation(folder, seed)
    check_held_out(folder)


def main() -> None:
    """Write the world into a folder."""
    parser = argparse.ArgumentParser(description=write_world.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_world(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
