"""RewardBench's scoring of a pair, implemented a second time from its description: padded, all logits at once.

text     = template(prompt); template(prompt, completion) without every occurrence of the first text
ids      = BOS, prompt | completion, EOS; encoded as one string, cut where the prompt alone ends or one token earlier
shorten  = over 2048 tokens with the longer completion: keep the last 128 tokens of the prompt; still over 2048:
           keep the first 1920 tokens of each completion
reward   = sum of the completion's log-softmax, instruct minus base; two sequences, padded on the right
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto import AutoModelForCausalLM

MAX_LENGTH = 2048


@dataclass(frozen=True)
class Encoded:
    """A prompt and the scored tokens of one completion."""

    prompt_ids: list[int]
    scored_ids: list[int]


class PaddedPairs:
    """A tokenizer and the text of its chat template."""

    def __init__(self, tokenizer: Any, template: str, dtype: torch.dtype = torch.float64) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.dtype = dtype

    def encoded(self, messages: list[dict[str, str]], completions: tuple[str, str]) -> tuple[Encoded, Encoded]:
        """Encode both completions, and shorten them together."""
        first, second = (self._encode(messages, completion) for completion in completions)
        longest = max(len(first.scored_ids), len(second.scored_ids))
        return _shorten(first, longest), _shorten(second, longest)

    @torch.no_grad()
    def logps(self, folder: Path, pair: tuple[Encoded, Encoded]) -> list[float]:
        """Compute log p of both completions under the model in a folder."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).eval()
        sequences = [encoded.prompt_ids + encoded.scored_ids for encoded in pair]
        width = max(map(len, sequences))
        input_ids = torch.full((2, width), self.tokenizer.eos_token_id)
        attention_mask = torch.zeros((2, width), dtype=torch.long)
        for index, sequence in enumerate(sequences):
            input_ids[index, : len(sequence)] = torch.tensor(sequence)
            attention_mask[index, : len(sequence)] = 1
        logprobs = model(input_ids, attention_mask=attention_mask).logits.log_softmax(-1)
        logps = []
        for index, encoded in enumerate(pair):
            logp = 0.0
            for position, token_id in enumerate(encoded.scored_ids, len(encoded.prompt_ids)):
                logp += logprobs[index, position - 1, token_id].item()
            logps.append(logp)
        return logps

    def _encode(self, messages: list[dict[str, str]], completion: str) -> Encoded:
        prompt = self._text(messages)
        rest = self._text([*messages, {"role": "assistant", "content": completion}]).replace(prompt, "")
        prompt_alone = self._ids(prompt)
        together = self._ids(prompt + rest)
        border = len(prompt_alone)
        if together[:border] != prompt_alone:
            border -= 1
        bos = self.tokenizer.bos_token_id
        eos = self.tokenizer.eos_token_id
        return Encoded([bos, *together[:border]], [*together[border:], eos])

    def _text(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, chat_template=self.template, tokenize=False))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _shorten(encoded: Encoded, longest: int) -> Encoded:
    if len(encoded.prompt_ids) + longest > MAX_LENGTH:
        encoded = Encoded(encoded.prompt_ids[-128:], encoded.scored_ids)
    if len(encoded.prompt_ids) + longest > MAX_LENGTH:
        encoded = Encoded(encoded.prompt_ids, encoded.scored_ids[:1920])
    return encoded
