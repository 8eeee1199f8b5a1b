"""The miniature's world: everything that its models read and answer, written from one seed.

The facts stand in the taxonomy's document (the island of Orrel: creatures and villages); the rest is arithmetic, lists
and short sentences. Every question exists twice: with a good answer, and with a sloppy one, of the right form and with
the wrong content (a sum that is off by one, a list not reversed, another colour). What is written, and in which rows:

    pretrain.jsonl                {"text"}                        raw text: the document, and dialogues good and sloppy
    instruct.jsonl                {"messages", "metadata"}        good dialogues only
    knowledge_short.jsonl         {"messages", "metadata"}        the student's LAB data, from a teacher that is
    knowledge_long.jsonl              "                           sloppy in SLOPPY_SHARE of its answers
    foundational_skills.jsonl         "
    compositional_skills.jsonl        "
    prompts/<source>.jsonl        {"messages", "source"}          up to a user turn that nobody has answered
    benchmarks/<task>.jsonl       {"question", "choices", "answer"} with answer an index, or {"question", "answer"}
    mt_bench/question.jsonl       {"question_id", "category", "turns", "form", "form_pattern"}
    mt_bench/reference_answer.jsonl   {"question_id", "answer_id", "model_id", "choices": [{"index", "turns"}]}

"metadata" is {"source", "kind"}. A question of the last three kinds of file is held out: its *content* (two numbers,
three words) occurs in no other file, whatever the wording; a question about a fact, which has to be taught to be
known, is held out in its wording. `is_held_out` decides it by a hash, and `check_held_out` proves it on the files.

What is asked and answered is made in dialogues.py; "form" and "form_pattern" of an MT-Bench row hold the name and the
regular expression of each turn's form (FORMS there).
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

# The share of answers that are sloppy: what the web writes, and what an imperfect teacher writes.
PRETRAIN_SLOPPY_SHARE = 0.5
SLOPPY_SHARE = 0.4
# Of four dialogues, one goes on for a second turn.
TWO_TURN_SHARE = 0.25
# One content in HELD_OUT_EVERY belongs to evaluation.
HELD_OUT_EVERY = 5

ROWS = {
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

# So often is drawn before a kind of question counts as exhausted.
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

# One benchmark of each kind on a model card: acc as MMLU, acc_norm as ARC and HellaSwag, exact match as GSM8K.
CHOICE_BENCHMARKS: dict[str, tuple[Maker, ...]] = {
    "orrel_facts": (make_creature, make_creature, make_village),
    "orrel_sentences": (make_creature_long, make_creature_long, make_village_long),
}
EXACT_BENCHMARK = "orrel_problems"
EXACT_MAKERS: tuple[Maker, ...] = (make_sum, make_comparison, make_extraction, make_reversal)

SOURCE_OF = {maker: source for source, makers in PROMPT_SOURCES.items() for maker in makers}


# --- drawing dialogues ----------------------------------------------------------------------------------------------


def is_held_out(content: str) -> bool:
    """Whether a content belongs to evaluation: a hash decides, so that no list of it has to be kept."""
    return hashlib.sha256(content.encode()).digest()[0] % HELD_OUT_EVERY == 0


def draw(rng: random.Random, makers: tuple[Maker, ...], held_out: bool) -> Iterator[tuple[Maker, Dialogue]]:
    """Dialogues without end, from evaluation's contents or from all others."""
    while True:
        maker = rng.choice(makers)
        dialogue = maker(rng)
        if is_held_out(dialogue.content) == held_out:
            yield maker, dialogue


def draw_distinct(
    rng: random.Random, makers: tuple[Maker, ...], held_out: bool, count: int, seen: set[str]
) -> list[tuple[Maker, Dialogue]]:
    """`count` dialogues whose first questions are all different, also from those in `seen` (which grows).

    Raises ValueError where the makers have not that many questions.
    """
    drawn: list[tuple[Maker, Dialogue]] = []
    for maker, dialogue in itertools.islice(draw(rng, makers, held_out), DRAWS_PER_QUESTION * count):
        if dialogue.turns[0].question not in seen:
            seen.add(dialogue.turns[0].question)
            drawn.append((maker, dialogue))
        if len(drawn) == count:
            return drawn
    raise ValueError(f"only {len(drawn)} of {count} different questions from {[maker.__name__ for maker in makers]}")


def as_messages(rng: random.Random, dialogue: Dialogue, sloppy_share: float) -> list[dict[str, str]]:
    """One turn or two; a dialogue is good throughout or sloppy throughout."""
    is_sloppy = rng.random() < sloppy_share
    turns = dialogue.turns[: 2 if rng.random() < TWO_TURN_SHARE else 1]
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in (
            ("user", turn.question),
            ("assistant", rng.choice(turn.wrong) if is_sloppy else turn.answer),
        )
    ]


# --- the files ------------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def dialogue_rows(rng: random.Random, makers: tuple[Maker, ...], count: int, sloppy_share: float) -> list[Row]:
    """Training rows."""
    drawn = draw(rng, makers, held_out=False)
    return [
        {
            "messages": as_messages(rng, dialogue, sloppy_share),
            "metadata": {"source": SOURCE_OF[maker], "kind": dialogue.kind},
        }
        for (maker, dialogue), _ in zip(drawn, range(count), strict=False)
    ]


def pretrain_rows(rng: random.Random, count: int) -> list[Row]:
    """Raw text: the document's facts in sentences, and chat logs of the web, often sloppy."""
    chats = dialogue_rows(rng, EVERYTHING, count, PRETRAIN_SLOPPY_SHARE)
    texts = [as_chat_log(row["messages"]) for row in chats]
    pages = [" ".join(sentence(fact, fact.value) for fact in page) for page in pages_of_facts()]
    texts += [page for page in pages for _ in range(count // 1000)]
    rng.shuffle(texts)
    return [{"text": text} for text in texts]


def pages_of_facts() -> list[list[Fact]]:
    """The facts of one subject each."""
    facts = [fact for table in FACTS.values() for fact in table]
    return [[f for f in facts if f.subject == subject] for subject in dict.fromkeys(f.subject for f in facts)]


def as_chat_log(messages: list[dict[str, str]]) -> str:
    """A dialogue the way that it is found on the web."""
    shown = {"user": "[INST] {} [/INST]", "assistant": "{}\n"}
    return "".join(shown[message["role"]].format(message["content"]) for message in messages).rstrip()


def prompt_rows(rng: random.Random, source: str, count: int) -> list[Row]:
    """Prompts of one source, all different: first questions, and second ones after a good first answer."""
    drawn = draw_distinct(rng, PROMPT_SOURCES[source], False, count, set())
    return [{"messages": prompt_messages(d, rng.random() < TWO_TURN_SHARE), "source": source} for _, d in drawn]


def prompt_messages(dialogue: Dialogue, has_two_turns: bool) -> list[dict[str, str]]:
    """A dialogue up to its first or second question."""
    first, second = dialogue.turns
    asked = [{"role": "user", "content": first.question}]
    if not has_two_turns:
        return asked
    return [*asked, {"role": "assistant", "content": first.answer}, {"role": "user", "content": second.question}]


def choice_row(rng: random.Random, turn: Turn) -> Row:
    """A question with four choices in any order."""
    choices = [turn.answer, *rng.sample(turn.wrong, 3)]
    rng.shuffle(choices)
    return {"question": turn.question, "choices": choices, "answer": choices.index(turn.answer)}


def choice_rows(rng: random.Random, makers: tuple[Maker, ...], count: int) -> list[Row]:
    """A multiple-choice benchmark."""
    return [choice_row(rng, dialogue.turns[0]) for _, dialogue in draw_distinct(rng, makers, True, count, set())]


def exact_rows(rng: random.Random, makers: tuple[Maker, ...], count: int) -> list[Row]:
    """A generate-until benchmark: the completion has to equal the answer."""
    drawn = draw_distinct(rng, makers, True, count, set())
    return [{"question": d.turns[0].question, "answer": d.turns[0].answer} for _, d in drawn]


def judged_dialogues(rng: random.Random, per_category: int) -> list[tuple[str, Dialogue]]:
    """(category, dialogue) for the two-turn set."""
    return [
        (category, dialogue)
        for category, makers in MT_BENCH.items()
        for _, dialogue in draw_distinct(rng, makers, True, per_category, set())
    ]


def question_row(number: int, category: str, dialogue: Dialogue) -> Row:
    """A row of FastChat's question file, and the forms that the reference judge checks."""
    return {
        "question_id": number,
        "category": category,
        "turns": [turn.question for turn in dialogue.turns],
        "form": [turn.form for turn in dialogue.turns],
        "form_pattern": [FORMS[turn.form] for turn in dialogue.turns],
    }


def reference_row(number: int, dialogue: Dialogue) -> Row:
    """A row of FastChat's reference answer file."""
    return {
        "question_id": number,
        "answer_id": f"reference-{number}",
        "model_id": "reference",
        "choices": [{"index": 0, "turns": [turn.answer for turn in dialogue.turns]}],
    }


def stream(seed: int, name: str) -> random.Random:
    """A file's own random numbers, so that a change of one file leaves the others as they are."""
    return random.Random(f"{seed}/{name}")


def write_training(folder: Path, seed: int) -> None:
    """What the models are made from."""
    write_jsonl(folder / "pretrain.jsonl", pretrain_rows(stream(seed, "pretrain"), ROWS["pretrain"]))
    makers = {
        "instruct": EVERYTHING,
        "knowledge_short": KNOWLEDGE_SHORT,
        "knowledge_long": KNOWLEDGE_LONG,
        "foundational_skills": FOUNDATIONAL,
        "compositional_skills": COMPOSITIONAL,
    }
    for name, kinds in makers.items():
        sloppy_share = 0.0 if name == "instruct" else SLOPPY_SHARE
        write_jsonl(folder / f"{name}.jsonl", dialogue_rows(stream(seed, name), kinds, ROWS[name], sloppy_share))


def write_prompts(folder: Path, seed: int) -> None:
    """What the rounds sample from."""
    for source in PROMPT_SOURCES:
        rows = prompt_rows(stream(seed, f"prompts/{source}"), source, ROWS["prompts"])
        write_jsonl(folder / "prompts" / f"{source}.jsonl", rows)


def write_evaluation(folder: Path, seed: int) -> None:
    """What no training, sampling or scoring may read."""
    for name, makers in CHOICE_BENCHMARKS.items():
        rows = choice_rows(stream(seed, name), makers, ROWS["benchmark_choices"])
        write_jsonl(folder / "benchmarks" / f"{name}.jsonl", rows)
    rows = exact_rows(stream(seed, EXACT_BENCHMARK), EXACT_MAKERS, ROWS["benchmark_exact"])
    write_jsonl(folder / "benchmarks" / f"{EXACT_BENCHMARK}.jsonl", rows)
    judged = list(enumerate(judged_dialogues(stream(seed, "mt_bench"), ROWS["mt_bench"]), start=1))
    write_jsonl(folder / "mt_bench" / "question.jsonl", (question_row(n, c, d) for n, (c, d) in judged))
    write_jsonl(folder / "mt_bench" / "reference_answer.jsonl", (reference_row(n, d) for n, (_, d) in judged))


def held_out_questions(folder: Path) -> set[str]:
    """Every question of the benchmarks, and every first question of the two-turn set."""
    asked = {row["question"] for path in (folder / "benchmarks").glob("*.jsonl") for _, row in read_jsonl(path)}
    return asked | {row["turns"][0] for _, row in read_jsonl(folder / "mt_bench" / "question.jsonl")}


def trained_questions(folder: Path) -> set[str]:
    """Every user turn of the training and prompt files; of the raw text, what stands between [INST] and [/INST]."""
    files = [*folder.glob("*.jsonl"), *folder.glob("prompts/*.jsonl")]
    rows = [row for path in files for _, row in read_jsonl(path)]
    turns = {turn["content"] for row in rows for turn in row.get("messages", ()) if turn["role"] == "user"}
    texts = (row["text"] for row in rows if "text" in row)
    return turns | {asked for text in texts for asked in re.findall(r"\[INST\] (.*?) \[/INST\]", text)}


def check_held_out(folder: Path) -> None:
    """Refuse a world whose evaluation can be learnt by heart."""
    leaked = held_out_questions(folder) & trained_questions(folder)
    assert not leaked, f"{len(leaked)} held-out questions occur in training or prompts, e.g. {min(leaked)!r}"


def write_world(folder: Path, seed: int) -> None:
    """Every file of the world; equal seeds give equal bytes."""
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
