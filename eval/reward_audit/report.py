"""The report of an audit: the content of audit.json, and of the files that RewardBench's leaderboard reads.

    audit.json             {"accuracy": {"all", "by_subset", "by_length"}, "statuses", "rewardbench", "best_of_n", ...}
    eval-set.json          {"model", "ref_model", "model_type", "chat_template", "alpacaeval-easy": 0.95, ...}
    pref-sets.json         the same for the test sets apart from RewardBench's own

The last two have the form of eval-set/MODEL.json and pref-sets/MODEL.json in the data set allenai/reward-bench-results,
as scripts/run_dpo.py writes them: a score is the share of right pairs, and a tie is a loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.reward_audit.accuracy import (
    Accuracy,
    ScoredPair,
    accuracy_by_length,
    accuracy_by_subset,
    accuracy_of,
    failed_statuses,
)
from eval.reward_audit.best_of_n import BestOfN
from eval.reward_audit.gold_rows import GoldGroups
from eval.reward_audit.rewardbench_sections import (
    CORE_SUBSETS,
    COUNTS,
    PREF_SETS,
    PRIOR_SETS,
    SubsetScore,
    WeightedScore,
    incomplete_subsets,
    prior_sets_score,
    section_scores,
    total_score,
)
from eval.statistics.estimates import Estimate


def pairs_report(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Return the report of scored pairs."""
    by_subset = accuracy_by_subset(pairs)
    report: dict[str, Any] = {
        "accuracy": {
            "all": _accuracy(accuracy_of(pairs)),
            "by_subset": {subset: _accuracy(accuracy) for subset, accuracy in by_subset.items()},
            "by_length": {
                "characters": _accuracies(accuracy_by_length(pairs, "characters")),
                "tokens": _accuracies(accuracy_by_length(pairs, "tokens")),
            },
        },
        "statuses": failed_statuses(pairs),
    }
    if by_subset.keys() & {*CORE_SUBSETS, *PREF_SETS}:
        report["rewardbench"] = rewardbench_report(by_subset)
    return report


def rewardbench_report(by_subset: Mapping[str, Accuracy]) -> dict[str, Any]:
    """Return sections and totals by both sets of counts, and how complete the data are."""
    scores = {subset: SubsetScore(accuracy.share_right, accuracy.num_pairs) for subset, accuracy in by_subset.items()}
    prior_sets = prior_sets_score(scores)
    by_counts: dict[str, Any] = {}
    for name, counts in COUNTS.items():
        sections = section_scores(scores, counts)
        with_prior_sets = total_score(sections, prior_sets) if prior_sets is not None else None
        by_counts[name] = {
            "sections": {section: _weighted_score(score) for section, score in sections.items()},
            "total_without_prior_sets": _weighted_score(total_score(sections)),
            "total_with_prior_sets": _weighted_score(with_prior_sets),
        }
    known = {subset: accuracy for subset, accuracy in by_subset.items() if subset in {*CORE_SUBSETS, *PREF_SETS}}
    return {
        "counts": by_counts,
        "prior_sets": _weighted_score(prior_sets),
        "missing_subsets": [subset for subset in CORE_SUBSETS if subset not in scores],
        "missing_prior_sets": [subset for subset in PRIOR_SETS if subset not in scores],
        "incomplete_subsets": incomplete_subsets({subset: accuracy.num_pairs for subset, accuracy in known.items()}),
        "ties_counted_as_losses": sum(accuracy.num_ties for accuracy in known.values()),
        "failed_pairs_counted_as_losses": sum(accuracy.num_failed for accuracy in known.values()),
    }


def leaderboard_files(
    pairs: Sequence[ScoredPair], models: Mapping[str, Any], *, is_reference_free: bool
) -> dict[str, dict[str, Any]]:
    """Return file name and content of each file for RewardBench's leaderboard that the pairs give."""
    by_subset = accuracy_by_subset(pairs)
    header = {
        "model": models["instruct"]["name"],
        "ref_model": None if is_reference_free else models["base"]["name"],
        "model_type": "DPO Ref. Free" if is_reference_free else "DPO",
        "chat_template": models["instruct"]["chat_template"],
    }
    files: dict[str, dict[str, Any]] = {}
    for name, subsets in (("eval-set.json", CORE_SUBSETS), ("pref-sets.json", PREF_SETS)):
        scores = {subset: by_subset[subset].share_right for subset in subsets if subset in by_subset}
        if scores:
            files[name] = dict(sorted({**header, **scores}.items()))
    return files


def best_of_n_report(audit: BestOfN, groups: GoldGroups) -> dict[str, Any]:
    """Return the report of a best-of-N audit."""
    curve = []
    for point in audit.curve:
        values = {name: _estimate(getattr(point, name)) for name in ("gold_gain", "reward_gain", "oracle_gain")}
        curve.append({"n": point.n, "num_prompts": point.gold.n, "gold": _estimate(point.gold), **values})
    bins = []
    for rank_bin in audit.bins:
        values = {name: _estimate(getattr(rank_bin, name)) for name in ("gold", "gold_excess", "reward_excess")}
        counts = {"num_prompts": rank_bin.gold.n, "num_completions": rank_bin.num_completions}
        bins.append({"fifth": rank_bin.number, **counts, **values})
    return {
        "num_prompts": len(groups.groups),
        "num_prompts_left_out": groups.num_empty_prompts,
        "completions_left_out": groups.left_out,
        "curve": curve,
        "by_reward_rank": bins,
        "rank_correlation": _estimate(audit.rank_correlation),
        "num_prompts_without_rank_correlation": audit.num_constant,
    }


def _accuracies(accuracies: Mapping[str, Accuracy]) -> dict[str, Any]:
    return {name: _accuracy(accuracy) for name, accuracy in accuracies.items()}


def _accuracy(accuracy: Accuracy) -> dict[str, Any]:
    return {
        "num_pairs": accuracy.num_pairs,
        "num_right": accuracy.num_right,
        "num_wrong": accuracy.num_wrong,
        "num_ties": accuracy.num_ties,
        "num_failed": accuracy.num_failed,
        "accuracy": accuracy.accuracy,
        "interval": accuracy.interval,
    }


def _weighted_score(score: WeightedScore | None) -> dict[str, float] | None:
    return None if score is None else score._asdict()


def _estimate(value: Estimate | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"mean": value.mean, "stderr": value.stderr, "interval": value.interval()}
