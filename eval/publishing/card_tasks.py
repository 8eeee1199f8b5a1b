"""The tasks of the recipe's cards: how each is evaluated there, and the data set behind it on the hub.

name         task           metric                     shots   items   data set, configuration, split
GSM8K        gsm8k          exact_match,strict-match       5    1319   openai/gsm8k, main, test
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class CardTask:
    """A column of the cards' table; `num_items` are those of the whole split."""

    name: str
    task: str
    metric: str
    shots: int
    num_items: int
    dataset: str
    configuration: str
    split: str


CARD_TASKS = (
    CardTask("MMLU", "mmlu", "acc,none", 5, 14042, "cais/mmlu", "all", "test"),
    CardTask("ARC-C", "arc_challenge", "acc_norm,none", 25, 1172, "allenai/ai2_arc", "ARC-Challenge", "test"),
    CardTask("HellaSwag", "hellaswag", "acc_norm,none", 10, 10042, "Rowan/hellaswag", "default", "validation"),
    CardTask("Winogrande", "winogrande", "acc,none", 5, 1267, "allenai/winogrande", "winogrande_xl", "validation"),
    CardTask("GSM8K strict", "gsm8k", "exact_match,strict-match", 5, 1319, "openai/gsm8k", "main", "test"),
)
