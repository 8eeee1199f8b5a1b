"""The dialogues of the island of Orrel: one maker for each kind, with facts from the taxonomy's document.

    make_sum(rng) -> Dialogue("sum", "12+7", (Turn("What is 12 plus 7?", "19", ("18", "20"), "number"), Turn(...)))

A dialogue has two turns; the second builds on the first. Each turn has a right answer and several wrong answers of the
same form; a sloppy writer picks one of them. The form is one of FORMS; the question demands or implies it:

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
    """A question with its right answer, the wrong answers that a sloppy writer picks from, and the form of them all."""

    question: str
    answer: str
    wrong: tuple[str, ...]
    form: str


@dataclass(frozen=True)
class Dialogue:
    """Two turns; the second builds on the first. `content` is the same for every wording of the question."""

    kind: str
    content: str
    turns: tuple[Turn, Turn]


@dataclass(frozen=True)
class Fact:
    """One cell of the document's tables: `attribute` of `subject` is `value`; `wrong_values` are its column's rest."""

    subject: str
    attribute: str
    value: str
    wrong_values: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """The texts for one attribute of a fact; {} stands for the subject, and in `statement` also for the value."""

    first_questions: tuple[str, ...]
    second_question: str
    statement: str


Maker = Callable[[random.Random], Dialogue]


# --- the facts, read from the document ------------------------------------------------------------------------------


def read_tables(text: str) -> list[list[dict[str, str]]]:
    """Read every table of a Markdown document; a table is a list of {column: cell}."""
    tables = []
    for table in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        header, _, *lines = table.splitlines()  # the second line separates header and rows
        columns = split_cells(header)
        tables.append([dict(zip(columns, split_cells(line), strict=True)) for line in lines])
    return tables


def split_cells(line: str) -> list[str]:
    """Split a line of a Markdown table into its cells."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def read_facts(text: str) -> dict[str, list[Fact]]:
    """Return the facts of each table under the name of its first column (creature, village)."""
    facts: dict[str, list[Fact]] = {}
    for table in read_tables(text):
        subject, *attributes = table[0]
        facts[subject] = []
        for row in table:
            for attribute in attributes:
                values = {peer[attribute] for peer in table}
                wrong_values = tuple(sorted(values - {row[attribute]}))
                facts[subject].append(Fact(row[subject], attribute, row[attribute], wrong_values))
    return facts


FACTS = read_facts(DOCUMENT.read_text(encoding="utf-8"))

WORDINGS: dict[str, Wording] = {
    "colour": Wording(
        ("What colour is the {}?", "Which colour does the {} have?", "Name the colour of the {}."),
        "And which colour is it?",
        "The {} is {}.",
    ),
    "home": Wording(
        ("Where does the {} live?", "Which place is home to the {}?", "Name the home of the {}."),
        "And where does it live?",
        "The {} lives in the {}.",
    ),
    "food": Wording(
        ("What does the {} eat?", "Which food does the {} like?", "Name the food of the {}."),
        "And what does it eat?",
        "The {} eats {}.",
    ),
    "founder": Wording(
        ("Who founded {}?", "Which person founded {}?", "Name the founder of {}."),
        "And who founded it?",
        "The village of {} was founded by {}.",
    ),
    "craft": Wording(
        ("What is made in {}?", "Which craft is {} known for?", "Name the craft of {}."),
        "And what is made there?",
        "The village of {} makes {}.",
    ),
}


def sentence(fact: Fact, value: str) -> str:
    """Write a fact as a sentence, with its value or a wrong value."""
    return WORDINGS[fact.attribute].statement.format(fact.subject, value)


# --- the makers: one kind of dialogue each --------------------------------------------------------------------------


def make_fact(rng: random.Random, table: str, is_long: bool) -> Dialogue:
    """Ask for a fact of the document in a word, or in a sentence; then for a second fact of the same subject."""
    fact = rng.choice(FACTS[table])
    more_facts = [candidate for candidate in FACTS[table] if candidate.subject == fact.subject and candidate != fact]
    second_fact = rng.choice(more_facts)
    question = rng.choice(LEAD_INS) + rng.choice(WORDINGS[fact.attribute].first_questions).format(fact.subject)
    first = fact_turn(question, fact, is_long)
    second = fact_turn(WORDINGS[second_fact.attribute].second_question, second_fact, is_long)
    return Dialogue(table, first.question, (first, second))


def fact_turn(question: str, fact: Fact, is_long: bool) -> Turn:
    """Make the turn of one question about one fact."""
    if not is_long:
        return Turn(question, fact.value, fact.wrong_values, "word")
    wrong = tuple(sentence(fact, value) for value in fact.wrong_values)
    return Turn(question + " Answer in a sentence.", sentence(fact, fact.value), wrong, "sentence")


def number_turn(question: str, number: int) -> Turn:
    """Make the turn of a question whose answer is a number; a sloppy answer is off by one."""
    return Turn(question, str(number), (str(number - 1), str(number + 1)), "number")


def addends(rng: random.Random) -> tuple[int, int, int]:
    """Draw a number of two digits and two small numbers; their sum needs no carry."""
    first, second, third = sorted(rng.sample(range(10), 3))
    return rng.randint(1, 8) * 10 + first, second - first, third - second


def wrong_choices(choices: Iterable[str], right: str) -> tuple[str, ...]:
    """Return all choices but the right one."""
    return tuple(choice for choice in choices if choice != right)


def make_sum(rng: random.Random) -> Dialogue:
    """Ask for the sum of two numbers; then for the sum with a third."""
    a, b, more = addends(rng)
    story = f"{rng.choice(PEOPLE)} has {a} shells and finds {b} more. How many shells?"
    question = rng.choice((f"What is {a} plus {b}?", f"Add {a} and {b}.", story))
    first = number_turn(question, a + b)
    second = number_turn(f"Now add {more}.", a + b + more)
    return Dialogue("sum", f"{a}+{b}", (first, second))


def make_code(rng: random.Random) -> Dialogue:
    """Ask for a line of Python that adds; then for its output. Equal numbers give the content of `make_sum`."""
    a, b, _ = addends(rng)
    question = rng.choice((f"Write code that adds {a} and {b}.", f"Write Python for {a} plus {b}."))
    code = Turn(question, f"print({a} + {b})", (f"print({a} - {b})",), "code")
    return Dialogue("code", f"{a}+{b}", (code, number_turn("What does it print?", a + b)))


def make_comparison(rng: random.Random) -> Dialogue:
    """Ask for the largest (or smallest) of three numbers; then for the opposite."""
    numbers = [str(number) for number in rng.sample(range(1, 10), 3)]
    extremes = [("largest", max(numbers, key=int)), ("smallest", min(numbers, key=int))]
    (name, number), (second_name, second_number) = rng.sample(extremes, 2)
    shown = ", ".join(numbers)
    question = rng.choice(LEAD_INS) + f"Which is the {name}: {shown}?"
    first = Turn(question, number, wrong_choices(numbers, number)[:1], "number")
    second = Turn(f"And the {second_name}?", second_number, wrong_choices(numbers, second_number)[:1], "number")
    return Dialogue("comparison", shown, (first, second))


def make_extraction(rng: random.Random) -> Dialogue:
    """Ask for a detail of a short text; then for a second one. A sloppy reader picks the wrong word of the text."""
    person = rng.choice(PEOPLE)
    colour = rng.choice(COLOURS)
    thing = rng.choice(THINGS)
    text = f"{person} sold a {colour} {thing}."
    details = [
        ("Which colour was it?", colour, thing),
        ("Who sold it?", person, colour),
        ("What was sold?", thing, person),
    ]
    (question, right, wrong), (second_question, second_right, second_wrong) = rng.sample(details, 2)
    first = Turn(f"{rng.choice(LEAD_INS)}{text} {question}", right, (wrong,), "word")
    second = Turn(second_question, second_right, (second_wrong,), "word")
    return Dialogue("extraction", text, (first, second))


def make_reversal(rng: random.Random) -> Dialogue:
    """Ask for three words in reverse order; then for the same in capital letters. A sloppy answer keeps the order."""
    words = rng.sample(WORDS, 3)
    shown = ", ".join(words)
    right = ", ".join(reversed(words))
    first = Turn(f"Say backwards: {shown}.", right, (shown,), "list")
    second = Turn("Now in capital letters.", right.upper(), (shown.upper(),), "capitals")
    return Dialogue("reversal", shown, (first, second))


def make_writing(rng: random.Random) -> Dialogue:
    """Ask for a sentence with three words; then for the same as a question. A sloppy answer leaves out a word."""
    person = rng.choice(PEOPLE)
    colour = rng.choice(COLOURS)
    thing = rng.choice(THINGS)
    words = f"{person}, {thing}, {colour}"
    question = rng.choice(LEAD_INS) + f"Write a sentence with: {words}."
    first = Turn(question, f"{person} has a {colour} {thing}.", (f"{person} has a {thing}.",), "sentence")
    answer = f"Does {person} have a {colour} {thing}?"
    second = Turn("Now as a question.", answer, (f"Does {person} have a {thing}?",), "question")
    return Dialogue("writing", words, (first, second))


def make_roleplay(rng: random.Random) -> Dialogue:
    """Ask an islander for a name and a job; then for the work. A sloppy answer leaves out the job."""
    person = rng.choice(PEOPLE)
    job = rng.choice(list(JOBS))
    village = rng.choice(FACTS["village"]).subject
    question = f"You are {person}, a {job} in {village}. Say who you are."
    first = Turn(question, f"I am {person}, a {job} in {village}.", (f"I am {person} in {village}.",), "sentence")
    second = Turn("What do you do all day?", f"I {JOBS[job]}.", ("I work.",), "sentence")
    return Dialogue("roleplay", f"{person} {job} {village}", (first, second))


def make_creature(rng: random.Random) -> Dialogue:
    """Ask for a fact of a creature in a word."""
    return make_fact(rng, "creature", is_long=False)


def make_village(rng: random.Random) -> Dialogue:
    """Ask for a fact of a village in a word."""
    return make_fact(rng, "village", is_long=False)


def make_creature_long(rng: random.Random) -> Dialogue:
    """Ask for a fact of a creature in a sentence."""
    return make_fact(rng, "creature", is_long=True)


def make_village_long(rng: random.Random) -> Dialogue:
    """Ask for a fact of a village in a sentence."""
    return make_fact(rng, "village", is_long=True)
