"""The identity of a tokenizer: a hash of all that turns a text into token ids. Equal hashes give equal ids.

Hashed are the vocabulary, the added tokens with their flags, the model with its merges, the normalizer, the
pre-tokenizer, and the token ids of PROBE. The settings of a checkpoint have no part in it: which token is BOS, EOS or
pad, the padding side, the chat template, and the post-processor, which adds a BOS. An instruct model and its base model
usually differ in these.
"""

import hashlib
import json
from typing import Any

# Flags of an added token that decide where it is read in a text.
TOKEN_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")

# Spaces, digits, cases, accents, scripts, emoji with joiners, code: tokenizers of one vocabulary may differ on these.
PROBE = (
    " leading space, trailing space \n\n\ttabs\r\n  two  spaces ",
    "1234567890 3.14159 1,000,000 2024-01-01 0x1F",
    "It's 'quoted' \"text\" -- don't; CamelCase snake_case UPPER lower",
    "caf\u00e9 cafe\u0301 na\u00efve \u00df \u0130 \u01c5 \ufb01 \u00a0\u200b\ufeff",
    "\u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2581 \u0120",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # comment\n<b>&amp;</b> https://example.org/?q=1",
)


def tokenizer_hash(tokenizer: Any) -> str:
    """Return the hash of all that decides which token ids a tokenizer makes of a text."""
    facts = _tokenizer_facts(tokenizer)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def tokenizer_difference(instruct: Any, base: Any) -> str:
    """Describe how two tokenizers differ in what `tokenizer_hash` covers; an empty text if they do not."""
    instruct_facts = _tokenizer_facts(instruct)
    base_facts = _tokenizer_facts(base)
    differences = [
        _vocabulary_difference(instruct_facts.pop("vocabulary"), base_facts.pop("vocabulary")),
        _added_tokens_difference(instruct_facts.pop("added tokens"), base_facts.pop("added tokens")),
    ]
    differences += [f"the {name} differ" for name in instruct_facts if instruct_facts[name] != base_facts[name]]
    return "; ".join(filter(None, differences))


def _tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """Return the parts of a tokenizer by name, as plain lists and dicts; the parts that a slow one lacks are empty."""
    sections: dict[str, Any] = {}
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        sections = json.loads(tokenizer.backend_tokenizer.to_str())
    model = dict(sections.get("model") or {})
    merges = model.pop("merges", None)
    if isinstance(model.get("vocab"), dict):  # repeats the vocabulary; a list holds scores besides
        del model["vocab"]
    added_tokens = {}
    for token in tokenizer.added_tokens_decoder.values():
        added_tokens[token.content] = {flag: bool(getattr(token, flag)) for flag in TOKEN_FLAGS}
    return {
        "vocabulary": dict(tokenizer.get_vocab()),
        "added tokens": added_tokens,
        "merges": merges,
        "settings of the tokenizers' models": model,
        "normalizers": sections.get("normalizer"),
        "pre-tokenizers": sections.get("pre_tokenizer"),
        "token ids of a probe text": [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in PROBE],
    }


def _vocabulary_difference(instruct: dict[str, int], base: dict[str, int]) -> str:
    """Describe the sizes of two vocabularies, and the first token whose id differs; empty if they are equal."""
    if instruct == base:
        return ""
    differing = [token for token in {**base, **instruct} if instruct.get(token) != base.get(token)]
    token = min(differing, key=lambda token: min(instruct.get(token, len(instruct)), base.get(token, len(base))))
    return (
        f"the vocabularies have {len(instruct)} (instruct) and {len(base)} (base) tokens, and {token!r} has "
        f"{_id_text(instruct.get(token))} in the first, {_id_text(base.get(token))} in the second"
    )


def _id_text(token_id: int | None) -> str:
    if token_id is None:
        return "no id"
    return f"id {token_id}"


def _added_tokens_difference(instruct: dict[str, dict[str, bool]], base: dict[str, dict[str, bool]]) -> str:
    """Describe the first added token that differs; empty if all are equal."""
    names = ("instruct", "base")
    for token in {**instruct, **base}:
        flags = (instruct.get(token), base.get(token))
        if flags[0] == flags[1]:
            continue
        if flags[0] is None or flags[1] is None:
            return f"{token!r} is an added token in the {names[flags[0] is None]} model's tokenizer only"
        if flags[0]["special"] != flags[1]["special"]:
            return f"the added token {token!r} is special in the {names[flags[1]['special']]} model's tokenizer only"
        return f"the added token {token!r} has the flags {flags[0]} (instruct) and {flags[1]} (base)"
    return ""
