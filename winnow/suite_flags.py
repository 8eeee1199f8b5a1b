"""The flags of `winnow eval` that belong to a suite: they are listed by suite in its help, and refused without it.

winnow eval models/tiny --suite card --judge-model gpt-4    ->  --judge-model belongs to --suite mt-bench
"""

from typing import Any

from winnow.errors import UsageError

CARD = "card"
MT_BENCH = "mt-bench"
SUITES = (CARD, MT_BENCH)
# A suite -> the parameters of the verb that no other suite has.
FLAGS_OF_SUITE = {
    CARD: {"tasks", "data", "limit", "batch_size", "chat_template", "add_bos_token", "generation_arguments"},
    MT_BENCH: {
        *("questions", "references", "prompts", "num_runs", "rejudge", "max_unreadable"),
        *("base_url", "template", "system_prompt", "eos_token", "max_tokens", "max_tokens_name", "temperature", "seed"),
        *("judge_model", "judge_base_url", "judge_temperature", "judge_max_tokens", "judge_max_tokens_name"),
        *("judge_timeout_s", "judge_num_parallel"),
    },
}
FLAGS_OF_ALL = {"output", "engine", "dtype"}


def suites_of(parameter: str) -> tuple[str, ...]:
    """Return the suites that a parameter of the verb belongs to; none for what every evaluation takes."""
    if parameter in FLAGS_OF_ALL:
        return SUITES
    return tuple(suite for suite in SUITES if parameter in FLAGS_OF_SUITE[suite])


def check_suite_flags(context: Any, suite: str | None) -> None:
    """Raise UsageError for an unknown suite, and for a flag on the command line that belongs to another."""
    if suite is not None and suite not in SUITES:
        raise UsageError(f"--suite {suite!r} is unknown; give {' or '.join(SUITES)}")
    for parameter in context.command.params:
        suites = suites_of(parameter.name)
        if not suites or suite in suites or context.get_parameter_source(parameter.name).name != "COMMANDLINE":
            continue
        remedy = f"take it out, or give --suite {' or '.join(suites)}"
        if suite is None:
            remedy = f"add --suite {' or '.join(suites)}, or set the run's evaluation keys"
        raise UsageError(f"{parameter.opts[0]} belongs to --suite {' and '.join(suites)}; {remedy}")
