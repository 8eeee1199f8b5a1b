"""Text -> token ids, segment by segment, so that no token spans the border of an assistant turn.

The policy generates after the prompt's last token. Where a tokenizer would merge across that border, the merge is cut.
An example with a tokenizer that has the tokens <s> (0), <|user|> (4), <|assistant|> (5), "5" (26), "\\n" (204) and
"\\n\\n" (262):

    prompt "<s><|user|>\\nHi\\n<|assistant|>\\n"                        0 4 204 45 78 204 5 204

    completion "5"          encode(prompt + completion)         =  0 4 204 45 78 204 5 204 26
                            begins with the prompt's ids, so    -> 26

    completion "\\n\\n5"    encode(prompt + completion)         =  0 4 204 45 78 204 5 262 204 26
                            does not: 262 spans the border;
                            encode(completion) gives            -> 204 204 26

Template `mixtral` encodes every turn by itself, as mistral-common does; `mixtral-hf` encodes a whole text, as the
Hugging Face template of 2023 does. They differ in the first token after BOS, EOS and "[/INST]"; docs/chat.md compares
them.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from winnow.chat.tokenizer import pattern_of

Span = tuple[int, int]


class TextEncoder:
    """The encoder of rendered conversations; with `is_segmented`, each segment between borders is encoded by itself."""

    def __init__(self, tokenizer: Any, *, is_segmented: bool) -> None:
        self.tokenizer = tokenizer
        self.is_segmented = is_segmented

    def encode(self, text: str) -> list[int]:
        """Encode a text with the tokenizer, without a BOS or EOS that the text does not hold."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts in one call, which a fast tokenizer spreads over the cores."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def encode_cut(self, text: str, turns: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Encode a text, cut at the borders of its assistant turns.

        Returns the token ids, and for each of them the index of its turn, or -1 outside of the turns.
        """
        borders = sorted({0, len(text), *itertools.chain.from_iterable(turns)})
        index_of_turn = {turn: index for index, turn in enumerate(turns)}
        token_ids: list[int] = []
        turn_of_token: list[int] = []
        for segment in itertools.pairwise(borders):
            segment_ids = self._encode_segment(text, segment, token_ids)
            token_ids += segment_ids
            turn_of_token += [index_of_turn.get(segment, -1)] * len(segment_ids)
        return token_ids, turn_of_token

    def encode_after(self, prompt: str, prompt_ids: list[int], texts: Sequence[str]) -> list[list[int]]:
        """Encode the rest of each text, which begins with the prompt's text, to the ids that `encode_cut` gives.

        The prompt may be long and the texts many, so only the prompt's end is encoded again, from an anchor on. In the
        example at the top the anchor is <|assistant|>, and the prompt's ids from there are 5 204:

            encode("<|assistant|>\\n5")          = 5 204 26        begins with 5 204, so the rest is 26
            encode("<|assistant|>\\n\\n\\n5")      = 5 262 204 26    does not: encode("\\n\\n5") is 204 204 26
        """
        border = len(prompt)
        if self.is_segmented:
            return self.encode_all([self._dummy_prefix + text[border:] for text in texts])
        anchor, ids_before = self._anchor(prompt, prompt_ids)
        encoded = self.encode_all([text[anchor:] for text in texts])
        results = []
        for text, token_ids in zip(texts, encoded, strict=True):
            if token_ids[: len(ids_before)] == ids_before:
                results.append(token_ids[len(ids_before) :])
            else:
                results.append(self.encode(text[border:]))
        return results

    def _encode_segment(self, text: str, segment: Span, ids_before: list[int]) -> list[int]:
        """Encode a segment of the text, which follows the tokens `ids_before`, as the example at the top shows."""
        start, end = segment
        if self.is_segmented:
            return self._encode_by_itself(text, start, end)
        token_ids = self.encode(text[:end])
        if token_ids[: len(ids_before)] == ids_before:
            return token_ids[len(ids_before) :]
        return self.encode(text[start:end])

    def _encode_by_itself(self, text: str, start: int, end: int) -> list[int]:
        """Encode text[start:end] as SentencePiece encodes a text of its own; a BOS at the start stays one token."""
        bos = self.tokenizer.bos_token or ""
        if start == 0 and bos and text.startswith(bos):
            return [int(self.tokenizer.bos_token_id), *self.encode(self._dummy_prefix + text[len(bos) : end])]
        return self.encode(self._dummy_prefix + text[start:end])

    def _anchor(self, prompt: str, prompt_ids: list[int]) -> tuple[int, list[int]]:
        """Return a character of the prompt's text from which encoding may start, and the prompt's ids from there.

        A tokenizer splits a text at its special tokens and encodes the parts separately. So nothing before the prompt's
        last special token affects the ids after it. The anchor is that token if the prompt's ids confirm this, else 0.
        """
        whole_prompt = (0, prompt_ids)
        starts = [match.start() for match in self._split_tokens.finditer(prompt)]
        if not starts or self.encode(prompt) != prompt_ids:
            return whole_prompt
        ids_from_anchor = self.encode(prompt[starts[-1] :])
        num_before = len(prompt_ids) - len(ids_from_anchor)
        if prompt_ids[num_before:] != ids_from_anchor:
            return whole_prompt
        return starts[-1], ids_from_anchor

    @cached_property
    def _dummy_prefix(self) -> str:
        """The space that SentencePiece puts before a text, if a fast tokenizer with its vocabulary does not add it."""
        vocabulary = self.tokenizer.get_vocab()
        if "\u2581x" in vocabulary and self.encode("x") != [vocabulary["\u2581x"]]:
            return " "
        return ""

    @cached_property
    def _split_tokens(self) -> Any:
        """Special tokens at which a fast tokenizer splits every text, independently of the text around them."""
        if not self.tokenizer.is_fast:
            return pattern_of([])
        added = [token for token in self.tokenizer.added_tokens_decoder.values() if not token.normalized]
        if any(token.lstrip or token.rstrip or token.single_word for token in added):
            return pattern_of([])
        return pattern_of(token.content for token in added)
