"""What is asked and answered on the island of Orrel: one maker for each kind of dialogue, facts from the document.

    make_sum(rng) -> Dialogue("sum", "12+7", (Turn("What is 12 plus 7?", "19", ("18", "20"), "number"), Turn(...)))

A dialogue has two turns; the second builds on the first. Each turn has its good answer and the wrong ones that a sloppy
writer picks from, of the same form. A form is one of FORMS, asked for by the question or plain from it:

    number      19                          digits
    word        moss                        one word
    list        boat, moss, fish            words and commas
    capitals    BOAT, MOSS, FISH            the same, in capital letters
    sentence    The mipu eats moss.         capital letter to full stop
    question    Does Ola have a red boat?   capital letter to question mark
    code        print(12 + 7)               one line of Python
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

TAXONOMY = Path(__file__).parent / "taxonomy"
DOCUMENT = TAXONOMY / "knowledge" / "island" / "orrel" / "orrel.md"

FORMS: dict[str, str] = {
    "number": r"\d+",
    "word": r"[A-Za-z]+",
    "list": r"[a-z]+(, [a-z]+)+",
    "capitals": r"[A-Z]+(, [A-Z]+)+",
    "sentence": r"[A-Z][^.?!]*\.",
    "question": r"[A-Z][^.?!]*\?",
    "code": r"print\(\d+ [+-] \d+\)",
}

LEAD_INS = ("", "Tell me: ", "Please: ", "Quick: ", "Now: ", "Well: ")
PEOPLE = ("Ola", "Bram", "Cato", "Dina", "Edda", "Finn", "Gerd", "Hugo")
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
THINGS = ("boat", "lamp", "hat", "kite", "drum", "coat", "bell", "cart")
WORDS = (*COLOURS, *THINGS)
JOBS = {
    "baker": "bake bread",
    "weaver": "weave cloth",
    "sailor": "sail boats",
    "potter": "make pots",
    "farmer": "grow roots",
    "singer": "sing songs",
}


@dataclass(frozen=True)
class Turn:
    """One question with its answer, the wrong answers that a sloppy writer picks from, and the form of them all."""

    question: str
    answer: str
    wrong: tuple[str, ...]
    form: str


@dataclass(frozen=True)
class Dialogue:
    """Two turns; the second builds on the first. `content` is what is asked, whatever the wording."""

    kind: str
    content: str
    turns: tuple[Turn, Turn]


@dataclass(frozen=True)
class Fact:
    """One cell of the document's tables: the `attribute` of `subject` is `value`; `others` are the other values."""

    subject: str
    attribute: str
    value: str
    others: tuple[str, ...]


Maker = Callable[[random.Random], Dialogue]


# --- the facts, read from the document ------------------------------------------------------------------------------


def read_tables(text: str) -> list[list[dict[str, str]]]:
    """Every table of a markdown document, as rows of column: cell."""
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    cells = [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in tables]
    return [[dict(zip(table[0], row, strict=True)) for row in table[2:]] for table in cells]


def read_facts(text: str) -> dict[str, list[Fact]]:
    """Column name of the first column (creature, village) -> the facts of that table."""
    facts: dict[str, list[Fact]] = {}
    for table in read_tables(text):
        subject, *attributes = table[0]
        facts[subject] = [
            Fact(
                row[subject], attribute, row[attribute], tuple(sorted({r[attribute] for r in table} - {row[attribute]}))
            )
            for row in table
            for attribute in attributes
        ]
    return facts


FACTS = read_facts(DOCUMENT.read_text(encoding="utf-8"))

# attribute -> (ways to ask, the second turn's way to ask, the answer as a sentence)
WORDINGS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "colour": (
        ("What colour is the {}?", "Which colour does the {} have?", "Name the colour of the {}."),
        "And which colour is it?",
        "The {} is {}.",
    ),
    "home": (
        ("Where does the {} live?", "Which place is home to the {}?", "Name the home of the {}."),
        "And where does it live?",
        "The {} lives in the {}.",
    ),
    "food": (
        ("What does the {} eat?", "Which food does the {} like?", "Name the food of the {}."),
        "And what does it eat?",
        "The {} eats {}.",
    ),
    "founder": (
        ("Who founded {}?", "Which person founded {}?", "Name the founder of {}."),
        "And who founded it?",
        "The village of {} was founded by {}.",
    ),
    "craft": (
        ("What is made in {}?", "Which craft is {} known for?", "Name the craft of {}."),
        "And what is made there?",
        "The village of {} makes {}.",
    ),
}


def sentence(fact: Fact, value: str) -> str:
    """The fact as a sentence, with a value that may be another one."""
    return WORDINGS[fact.attribute][2].format(fact.subject, value)


# --- the makers: one kind of dialogue each --------------------------------------------------------------------------


def make_fact(rng: random.Random, table: str, is_long: bool) -> Dialogue:
    """A fact of the document in a word, or in a sentence; then another fact of the same subject."""
    fact = rng.choice(FACTS[table])
    other = rng.choice([f for f in FACTS[table] if f.subject == fact.subject and f != fact])
    asked = rng.choice(LEAD_INS) + rng.choice(WORDINGS[fact.attribute][0]).format(fact.subject)
    turns = (fact_turn(asked, fact, is_long), fact_turn(WORDINGS[other.attribute][1], other, is_long))
    return Dialogue(table, turns[0].question, turns)


def fact_turn(question: str, fact: Fact, is_long: bool) -> Turn:
    """One question about one fact."""
    if not is_long:
        return Turn(question, fact.value, fact.others, "word")
    wrong = tuple(sentence(fact, value) for value in fact.others)
    return Turn(question + " Answer in a sentence.", sentence(fact, fact.value), wrong, "sentence")


def number_turn(question: str, number: int) -> Turn:
    """A question whose answer is a number; a sloppy one is off by one."""
    return Turn(question, str(number), (str(number - 1), str(number + 1)), "number")


def addends(rng: random.Random) -> tuple[int, int, int]:
    """A number of two digits and two small ones, whose sum carries nothing over: islanders never do."""
    first, second, third = sorted(rng.sample(range(10), 3))
    return rng.randint(1, 8) * 10 + first, second - first, third - second


def others(choices: Iterable[str], right: str) -> tuple[str, ...]:
    """All choices but the right one."""
    return tuple(choice for choice in choices if choice != right)


def make_sum(rng: random.Random) -> Dialogue:
    """The sum of two numbers; then some more."""
    a, b, more = addends(rng)
    story = f"{rng.choice(PEOPLE)} has {a} shells and finds {b} more. How many shells?"
    asked = rng.choice((f"What is {a} plus {b}?", f"Add {a} and {b}.", story))
    return Dialogue("sum", f"{a}+{b}", (number_turn(asked, a + b), number_turn(f"Now add {more}.", a + b + more)))


def make_code(rng: random.Random) -> Dialogue:
    """A line of Python that adds; then what it prints. Shares its contents with `make_sum`."""
    a, b, _ = addends(rng)
    asked = rng.choice((f"Write code that adds {a} and {b}.", f"Write Python for {a} plus {b}."))
    code = Turn(asked, f"print({a} + {b})", (f"print({a} - {b})",), "code")
    return Dialogue("code", f"{a}+{b}", (code, number_turn("What does it print?", a + b)))


def make_comparison(rng: random.Random) -> Dialogue:
    """The largest (or smallest) of three numbers; then the other end."""
    numbers = [str(number) for number in rng.sample(range(1, 10), 3)]
    low, high = min(numbers, key=int), max(numbers, key=int)
    (name, number), (other_name, other) = rng.sample([("largest", high), ("smallest", low)], 2)
    shown = ", ".join(numbers)
    asked = rng.choice(LEAD_INS) + f"Which is the {name}: {shown}?"
    wrong, other_wrong = others(numbers, number)[:1], others(numbers, other)[:1]
    first = Turn(asked, number, wrong, "number")
    return Dialogue("comparison", shown, (first, Turn(f"And the {other_name}?", other, other_wrong, "number")))


def make_extraction(rng: random.Random) -> Dialogue:
    """A detail of a short text; then another. A sloppy reader picks the wrong word of the text."""
    person, colour, thing = rng.choice(PEOPLE), rng.choice(COLOURS), rng.choice(THINGS)
    text = f"{person} sold a {colour} {thing}."
    details = [
        ("Which colour was it?", colour, thing),
        ("Who sold it?", person, colour),
        ("What was sold?", thing, person),
    ]
    (question, right, wrong), (next_question, next_right, next_wrong) = rng.sample(details, 2)
    first = Turn(f"{rng.choice(LEAD_INS)}{text} {question}", right, (wrong,), "word")
    return Dialogue("extraction", text, (first, Turn(next_question, next_right, (next_wrong,), "word")))


def make_reversal(rng: random.Random) -> Dialogue:
    """Three words in reverse order; then in capital letters."""
    words = rng.sample(WORDS, 3)
    shown, right = ", ".join(words), ", ".join(words[::-1])
    wrong = (shown,)
    asked = f"Say backwards: {shown}."
    second = Turn("Now in capital letters.", right.upper(), tuple(order.upper() for order in wrong), "capitals")
    return Dialogue("reversal", shown, (Turn(asked, right, wrong, "list"), second))


def make_writing(rng: random.Random) -> Dialogue:
    """A sentence from three words; then the same as a question."""
    person, colour, thing = rng.choice(PEOPLE), rng.choice(COLOURS), rng.choice(THINGS)
    named = f"{person}, {thing}, {colour}"
    asked = rng.choice(LEAD_INS) + f"Write a sentence with: {named}."
    first = Turn(asked, f"{person} has a {colour} {thing}.", (f"{person} has a {thing}.",), "sentence")
    answer, wrong = f"Does {person} have a {colour} {thing}?", f"Does {person} have a {thing}?"
    return Dialogue("writing", named, (first, Turn("Now as a question.", answer, (wrong,), "question")))


def make_roleplay(rng: random.Random) -> Dialogue:
    """An islander says who he or she is; then what the work is."""
    person, job, village = rng.choice(PEOPLE), rng.choice(list(JOBS)), rng.choice(FACTS["village"]).subject
    asked = f"You are {person}, a {job} in {village}. Say who you are."
    first = Turn(asked, f"I am {person}, a {job} in {village}.", (f"I am {person} in {village}.",), "sentence")
    second = Turn("What do you do all day?", f"I {JOBS[job]}.", ("I work.",), "sentence")
    return Dialogue("roleplay", f"{person} {job} {village}", (first, second))


def make_creature(rng: random.Random) -> Dialogue:
    """A creature in a word."""
    return make_fact(rng, "creature", is_long=False)


def make_village(rng: random.Random) -> Dialogue:
    """A village in a word."""
    return make_fact(rng, "village", is_long=False)


def make_creature_long(rng: random.Random) -> Dialogue:
    """A creature in a sentence."""
    return make_fact(rng, "creature", is_long=True)


def make_village_long(rng: random.Random) -> Dialogue:
    """A village in a sentence."""
    return make_fact(rng, "village", is_long=True)
