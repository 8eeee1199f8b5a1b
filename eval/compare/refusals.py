"""Reasons why two results do not compare, and what is unknown about them. Pure.

A difference in any of these is refused: the items, the prompts, shots, limit, chat template, system instruction,
generation arguments, few-shot seed, versions of lm-eval and of the task, the metric, the judge, its prompts, the
questions; for a suite also unofficial data, BOS, dtype, engine and the source of the examples. A condition that only
one result records is named as unknown and not refused.
"""

from collections.abc import Iterator

from eval.compare.results import JudgedResult, ResultSet, TaskResult

NUM_SHOWN = 3


def refusals(baseline: ResultSet, later: ResultSet) -> list[str]:
    """Return every reason against the comparison; none if the results compare."""
    reasons: list[str] = []
    for key in shared_tasks(baseline, later):
        for reason in _task_reasons(baseline.tasks[key], later.tasks[key]):
            reasons.append(f"{' '.join(key)}: {reason}")
    reasons += _metric_reasons(baseline, later)
    if baseline.judged is not None and later.judged is not None:
        reasons += [f"judged score: {reason}" for reason in _judged_reasons(baseline.judged, later.judged)]
    if not reasons and not shared_tasks(baseline, later) and not has_judged(baseline, later):
        reasons.append(f"they have no result in common: {_contents(baseline)} against {_contents(later)}")
    return [f"{baseline.name} and {later.name}: {reason}" for reason in reasons]


def unknown_conditions(baseline: ResultSet, later: ResultSet) -> list[str]:
    """Return the conditions that only one of the results records, in words."""
    conditions_of: dict[str, set[str]] = {}
    for key in shared_tasks(baseline, later):
        before = baseline.tasks[key].conditions
        after = later.tasks[key].conditions
        for name, missing in (
            (baseline.name, after.keys() - before.keys()),
            (later.name, before.keys() - after.keys()),
        ):
            conditions_of.setdefault(name, set()).update(missing)
    lines: list[str] = []
    for name, conditions in conditions_of.items():
        if conditions:
            lines.append(f"{name} does not record: {', '.join(sorted(conditions))}")
    return lines


def shared_tasks(baseline: ResultSet, later: ResultSet) -> list[tuple[str, str]]:
    """Return the tasks with their metrics that both results have."""
    return [key for key in baseline.tasks if key in later.tasks]


def has_judged(baseline: ResultSet, later: ResultSet) -> bool:
    """Tell whether both results have a judged score."""
    return baseline.judged is not None and later.judged is not None


def _task_reasons(before: TaskResult, after: TaskResult) -> Iterator[str]:
    is_explained = False
    for condition, value in before.conditions.items():
        if condition in after.conditions and after.conditions[condition] != value:
            is_explained = True
            yield f"different {condition} ({_word(value)} and {_word(after.conditions[condition])})"
    if is_explained:  # other items and prompts follow from that
        return
    if before.items and after.items:
        if before.items.keys() != after.items.keys():
            yield _item_reason(before, after)
    elif before.task_hash is not None and after.task_hash is not None:
        if before.task_hash != after.task_hash:
            yield f"different items or prompts (task hashes {before.task_hash} and {after.task_hash})"
    elif None not in (before.num_items, after.num_items) and before.num_items != after.num_items:
        yield f"different items ({before.num_items} and {after.num_items})"


def _item_reason(before: TaskResult, after: TaskResult) -> str:
    """Name the items or the prompt hashes that differ."""
    alone = [item for item in before.items if item not in after.items]
    alone_after = [item for item in after.items if item not in before.items]
    positions = {item.rpartition("/")[0] for item in alone}
    has_same_positions = positions == {item.rpartition("/")[0] for item in alone_after}
    counts = f"{len(alone)} of {len(before.items)} against {len(alone_after)} of {len(after.items)}"
    shown = ", ".join((alone or alone_after)[:NUM_SHOWN])
    if before.content_hashes and before.content_hashes == after.content_hashes:
        return f"different prompt hashes of the same items ({counts}, such as {shown})"
    if has_same_positions and not (before.content_hashes and after.content_hashes):
        return f"different items or prompt hashes ({counts}, such as {shown})"
    return f"different items ({counts}, such as {shown})"


def _metric_reasons(baseline: ResultSet, later: ResultSet) -> Iterator[str]:
    """Yield a reason for each task that both have under different metrics."""
    for task in dict.fromkeys(task for task, _ in baseline.tasks):
        before = [metric for name, metric in baseline.tasks if name == task]
        after = [metric for name, metric in later.tasks if name == task]
        if after and not set(before) & set(after):
            yield f"{task}: different metric ({', '.join(before)} and {', '.join(after)})"


def _judged_reasons(before: JudgedResult, after: JudgedResult) -> Iterator[str]:
    if before.judge != after.judge:
        yield f"different judge ({before.judge} and {after.judge})"
        return
    alone = before.questions ^ after.questions
    if alone:
        shown = ", ".join(repr(question) for question in sorted(alone, key=repr)[:NUM_SHOWN])
        yield f"different questions ({len(alone)} that only one has, such as {shown})"
    differing = [turn for turn, prompt in before.prompts.items() if after.prompts.get(turn, prompt) != prompt]
    if differing:
        question, turn = differing[0]
        names = (before.prompts[differing[0]].partition("\n")[0], after.prompts[differing[0]].partition("\n")[0])
        yield (
            f"different judge prompts ({' and '.join(names)}) or references in {len(differing)} turns, such as "
            f"question {question!r}, turn {turn}"
        )


def _word(value: object) -> str:
    return "none" if value is None else str(value)


def _contents(result: ResultSet) -> str:
    names = [" ".join(key) for key in result.tasks]
    if result.judged is not None:
        names.append(f"a score by the judge {result.judged.judge}")
    return ", ".join(names[:NUM_SHOWN]) or "nothing"
