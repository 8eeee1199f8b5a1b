"""The options of a reward, defined once: name, values, default and meaning.

These derive from here: the clients' `RewardOptions`, the fields of the wire's ScoreOptions, the keys under `reward` of
a run's config, the flags of `winnow score` and `winnow gateway`, and the table in docs/rewards.md, which
proto/generate.py writes. CONTRIBUTING.md lists the edits that add an option.
"""

import difflib
import functools
from collections.abc import Mapping, Sequence
from inspect import cleandoc
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from winnow.errors import UsageError

Normalization = Literal["sum", "mean"]
EosPolicy = Literal["include", "exclude", "if_finished"]
InstructionScope = Literal["both", "instruct_only"]
Recipe = Literal["winnow", "rewardbench"]

# The EOS policy of each recipe if the caller sets none.
DEFAULT_EOS_POLICIES: dict[Recipe, EosPolicy] = {"winnow": "if_finished", "rewardbench": "include"}
# The only values that an option may have under a recipe.
FIXED_OPTIONS: dict[Recipe, dict[str, Any]] = {
    "winnow": {},
    "rewardbench": {
        "normalization": "sum",
        "beta": 1.0,
        "eos_policy": DEFAULT_EOS_POLICIES["rewardbench"],
        "instruction": "",
    },
}


def _as_float(value: Any) -> Any:
    """Return any real number, such as a NumPy scalar, as a float, and everything else as it is."""
    if isinstance(value, Real):
        return float(value)
    return value


def _whole_characters(text: str) -> str:
    """Return the text. Raises ValueError if it holds half of a surrogate pair, which UTF-8 cannot encode."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a surrogate pair, so it is not Unicode text; take it out")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Scale = Annotated[float, BeforeValidator(_as_float), Field(gt=0, allow_inf_nan=False)]


class RewardSpec(BaseModel):
    """The options that decide a reward. Equal options and equal models give rewards that compare within a prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    normalization: Normalization = "sum"
    """Sum of the log-ratios of the completion's tokens, or their mean per token."""
    beta: Scale = 1.0
    """Scale of the reward; it does not change the order of completions."""
    eos_policy: EosPolicy | None = None
    """Scoring of the token that closes the turn: always, never, or only if the policy emitted it."""
    is_reference_free: bool = False
    """Reward the instruct model's logp alone; the base model is not run."""
    instruction: Text = ""
    """Rules of a domain, put before the first user message with a blank line between them."""
    instruction_scope: InstructionScope = "both"
    """Models that read the instruction."""
    recipe: Recipe = "winnow"
    """Way of rendering, cutting and scoring: winnow's, or RewardBench's, which fixes most other options."""

    @property
    def resolved_eos_policy(self) -> EosPolicy:
        """The EOS policy that is set, else the recipe's own."""
        return self.eos_policy or DEFAULT_EOS_POLICIES[self.recipe]

    def check_recipe(self) -> None:
        """Raise UsageError if an option has another value than the recipe fixes."""
        wrong = []
        for option, value in FIXED_OPTIONS[self.recipe].items():
            if getattr(self, option) in (value, None):
                continue
            if value == "":
                wrong.append(f"no {option}")
            else:
                wrong.append(f"{option} {_in_words(value)}")
        if wrong:
            raise UsageError(
                f"recipe {self.recipe} goes with {', '.join(wrong)}; set it so or leave it unset, or take recipe winnow"
            )


class RewardOptions(RewardSpec):
    """The options of a request to score: how its rewards are made, and what is returned with them.

    Immutable and hashable. Raises UsageError for a value that an option does not take.
    """

    model_config = ConfigDict(strict=True)

    want_token_logprobs: bool = False
    """Return the scored token ids too, and the log-probability of each under each model."""

    # Type checkers take the keywords from the fields instead.
    if not TYPE_CHECKING:

        def __init__(self, **options: Any) -> None:
            """Check the options. Raises UsageError."""
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise UsageError("; ".join(map(_problem, error.errors()))) from None

    def replace(self, **changes: Any) -> Self:
        """Return the options with these changed. Raises UsageError."""
        return type(self)(**{**dict(self), **changes})


class OptionText(NamedTuple):
    """An option in words: the same words in `help(RewardOptions)`, `winnow score --help` and docs/rewards.md."""

    name: str
    values: str
    default: str
    meaning: str


def option_text(option: str) -> OptionText:
    """Return an option's values, its default and its meaning, in words."""
    field = RewardOptions.model_fields[option]
    default = _in_words(field.default)
    if option == "eos_policy":
        policies = [f"{policy} ({recipe})" for recipe, policy in DEFAULT_EOS_POLICIES.items()]
        default = f"the recipe's own: {', '.join(policies)}"
    return OptionText(option, _values(field), default, field.description or "")


@functools.cache
def choices_of(option: str) -> tuple[str, ...]:
    """Return the names that an option can take; an empty tuple for a number, a text or a boolean."""
    return _choices(RewardOptions.model_fields[option].annotation)


def wire_name(option: str, choice: str) -> str:
    """Return the name of a choice in the option's enum in reward.proto.

    >>> wire_name("eos_policy", "if_finished")
    'EOS_POLICY_IF_FINISHED'
    """
    return f"{option}_{choice}".upper()


def options_table() -> str:
    """Return the options as the Markdown table of docs/rewards.md."""
    lines = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for option in RewardOptions.model_fields:
        text = option_text(option)
        lines.append(f"| `{text.name}` | {text.values} | {text.default} | {text.meaning} |")
    return "\n".join(lines)


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    choices: list[str] = []
    for member in get_args(annotation):
        choices += _choices(member)
    return tuple(choices)


def _values(field: FieldInfo) -> str:
    """Return the values of an option in words, like "sum or mean" or "a finite number above 0"."""
    choices = _choices(field.annotation)
    if choices:
        return _listed(choices)
    kinds = {bool: "true or false", str: "a text", int: "a whole number", float: "a finite number"}
    words = [kinds[kind] for kind in kinds if kind in (field.annotation, *get_args(field.annotation))]
    bounds = {"gt": "above", "ge": "from", "le": "to", "lt": "below"}
    for name, word in bounds.items():
        limits = [getattr(bound, name) for bound in field.metadata if hasattr(bound, name)]
        words += [f"{word} {limit:g}" for limit in limits]
    return " ".join(words)


def _in_words(value: Any) -> str:
    """Return an option's value in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) or "empty"


def _listed(words: Sequence[str]) -> str:
    """Return words as a list.

    >>> _listed(["include", "exclude", "if_finished"])
    'include, exclude or if_finished'
    """
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _problem(error: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors about RewardOptions as one line: the option, its value and what it takes."""
    option = str(error["loc"][0])
    options = list(RewardOptions.model_fields)
    if error["type"] == "extra_forbidden":
        similar = difflib.get_close_matches(option, options, n=1)
        if similar:
            return f"unknown option {option}; did you mean {similar[0]}?"
        return f"unknown option {option}; known: {', '.join(options)}"
    if error["type"] == "value_error":
        return f"{option} {error['ctx']['error']}"
    return f"{option} {error['input']!r} should be {option_text(option).values}"


def _options_help() -> str:
    entries = []
    for option in RewardOptions.model_fields:
        text = option_text(option)
        entries.append(f"{text.name}: {text.values}; default: {text.default}\n    {text.meaning}")
    return "\n".join(entries)


# `help` does not show the strings under the fields, so the class's docstring repeats them.
RewardOptions.__doc__ = f"{cleandoc(RewardOptions.__doc__ or '')}\n\n{_options_help()}\n"
