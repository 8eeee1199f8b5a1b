"""RewardBench's scoring of a pair, stated again from its description: plain, padded, with all logits at once.

text     = template(prompt), template(prompt, answer) without every occurrence of the first
ids      = BOS, prompt | answer, EOS; encoded as one string, cut where the prompt alone ends or one token earlier
shorten  = more than 2048 with the longer answer: last 128 of the prompt; still more: first 1920 of each answer
reward   = sum of log-softmax at the answer, model minus reference; two rows, padded on the right
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto import AutoModelForCausalLM


@dataclass(frozen=True)
class Encoded:
    """One answer: what is read before it, and what is scored."""

    before: list[int]
    scored: list[int]


class PaddedPairs:
    """A tokenizer, the text of its chat template, and the two models' folders."""

    def __init__(self, tokenizer: Any, template: str, dtype: torch.dtype = torch.float64) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.dtype = dtype

    def encoded(self, messages: list[dict[str, str]], answers: tuple[str, str]) -> tuple[Encoded, Encoded]:
        """Both answers, shortened together."""
        first, second = (self._whole(messages, answer) for answer in answers)
        longer = max(len(first.scored), len(second.scored))
        return _shortened(first, longer), _shortened(second, longer)

    @torch.no_grad()
    def logps(self, folder: Path, pair: tuple[Encoded, Encoded]) -> list[float]:
        """log p of both answers under one model."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).eval()
        rows = [one.before + one.scored for one in pair]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.tokenizer.eos_token_id] * (width - len(row)) for row in rows])
        seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logprobs = model(ids, attention_mask=seen).logits.log_softmax(-1)
        return [
            sum(logprobs[index, at - 1, ids[index, at]].item() for at in range(len(one.before), len(rows[index])))
            for index, one in enumerate(pair)
        ]

    def _whole(self, messages: list[dict[str, str]], answer: str) -> Encoded:
        prompt = self._text(messages)
        rest = self._text([*messages, {"role": "assistant", "content": answer}]).replace(prompt, "")
        alone, together = self._ids(prompt), self._ids(prompt + rest)
        size = len(alone) if together[: len(alone)] == alone else len(alone) - 1
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return Encoded([bos, *together[:size]], [*together[size:], eos])

    def _text(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, chat_template=self.template, tokenize=False))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _shortened(one: Encoded, longer: int) -> Encoded:
    if len(one.before) + longer > 2048:
        one = Encoded(one.before[-128:], one.scored)
    if len(one.before) + longer > 2048:
        one = Encoded(one.before, one.scored[:1920])
    return one
