"""Chat models as their makers publish them: the facts of each family's template, tokenizer and generation_config.json.

tests/chat_families/NAME.jinja     the template's behaviour, written for these tests: no text is the maker's
Family                             the tokens, what the template writes around an answer, and what winnow should do
save_tokenizer, save_base          the files of an instruct model and of its base model, which differ in settings alone

A conversation is one of four cases: one or several pairs of turns, with or without a system message. The facts are
those of the published tokenizer_config.json, chat_template.jinja and generation_config.json of 2023 to 2025.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from tests.chat_families_tokenizers import gpt2_words, pieces, pieces_with_first_space, pieces_without_space, words
from winnow.records import Message

TEMPLATES = Path(__file__).parent / "chat_families"

SYSTEM = Message(role="system", content="Be careful, and be brief.")
ONE_TURN = (Message(role="user", content="What is 2 + 3?"), Message(role="assistant", content="It is 5."))
SEVERAL_TURNS = (
    *ONE_TURN,
    Message(role="user", content="And a colour of the sea?"),
    Message(role="assistant", content="Blue.\n\nOr green, near the bank."),
)
CASES: dict[str, tuple[Message, ...]] = {
    "one turn": ONE_TURN,
    "several turns": SEVERAL_TURNS,
    "one turn, system": (SYSTEM, *ONE_TURN),
    "several turns, system": (SYSTEM, *SEVERAL_TURNS),
}
SEVERAL = ("several turns", "several turns, system")
WITH_SYSTEM = ("one turn, system", "several turns, system")

# The refusals, by what their messages say.
RAISES = "does not take this conversation"
DROPS_SYSTEM = "leaves out or changes the system message"
DROPS_REASONING = "leaves out or changes the assistant message"
CHANGES_ANSWER = "changes an assistant message"
CHANGES_BEGINNING = "renders the beginning of a conversation differently"


@dataclass(frozen=True)
class Family:
    """A chat model's published facts, the settings that winnow gets, and the refusals that are right with them."""

    name: str
    make_core: Callable[[], Tokenizer]
    closer: str
    """Token that closes an assistant turn."""
    eos: str
    """The instruct tokenizer's EOS."""
    stops: tuple[str, ...]
    """generation_config.json's list of EOS tokens."""
    prompt_end: str
    """End of a prompt: what the template writes between a question and the tokens of its answer."""
    base_eos: str
    bos: str | None = None
    is_bos_added: bool = False
    """True if the tokenizer puts BOS before a text by itself, when it is not told to leave it out."""
    num_bos: int = 0
    """How often BOS is in several turns without a system message."""
    control: tuple[str, ...] = ()
    """Special tokens besides BOS, EOS, closer and stops."""
    added: tuple[str, ...] = ()
    """Added tokens that are not special."""
    is_stripping: bool = False
    """True if the special tokens swallow the white space after them."""
    is_named: bool = False
    """True if tokenizer_config.json lists several templates by name."""
    before: str = ""
    """Text of an answer's turn before the answer."""
    before_last: str = ""
    """Text that stands in front of the last answer only."""
    after: str = ""
    """Text of an answer's turn between the answer and the closer."""
    earlier_closer: str = ""
    """Token that closes the answers before the last, if it is another."""
    appended: str = ""
    """Closing token that winnow puts after the last answer, because the template writes none there."""
    template: str = ""
    """Name of the template's file, if it is not the family's."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Case -> the error's text. Cases without an entry are rendered as the template renders them."""
    last_turn_cases: tuple[str, ...] = ()
    """Refused cases that can be rendered for their last answer alone."""
    is_scored: bool = True
    """False if the template changes each completion, so that none can be scored as text."""

    @property
    def source(self) -> str:
        """The template's text."""
        return (TEMPLATES / f"{self.template or self.name}.jinja").read_text()

    @property
    def tokens(self) -> list[str]:
        """All special tokens, without repetition."""
        listed = [self.bos, self.eos, self.base_eos, self.closer, *self.stops, *self.control]
        return list(dict.fromkeys(token for token in listed if token))


def save_tokenizer(family: Family, folder: Path) -> None:
    """Save a family's tokenizer with its template and generation_config.json in a folder."""
    core = family.make_core()
    special = [AddedToken(token, rstrip=family.is_stripping, normalized=False) for token in family.tokens]
    core.add_special_tokens(special)
    core.add_tokens([AddedToken(token, normalized=False) for token in family.added])
    if family.is_bos_added and family.bos:
        bos_id = core.token_to_id(family.bos)
        core.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", pair=f"{family.bos} $A {family.bos} $B", special_tokens=[(family.bos, bos_id)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=family.bos, eos_token=family.eos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = family.source
    tokenizer.save_pretrained(folder)
    if family.is_named:
        _list_templates(family, folder)
    stop_ids = tokenizer.convert_tokens_to_ids(list(family.stops))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stop_ids}))


def save_base(family: Family, instruct: Path, folder: Path) -> None:
    """Save the base model's tokenizer: the same ids, another EOS and no template."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(instruct)
    tokenizer.chat_template = None
    tokenizer.eos_token = family.base_eos
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))


def _list_templates(family: Family, folder: Path) -> None:
    """Put the template into tokenizer_config.json as one of two, as the makers of Hermes and Command-R do."""
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [
        {"name": "default", "template": family.source},
        {"name": "tool_use", "template": "{{ raise_exception('this is not the default') }}"},
    ]
    path.write_text(json.dumps(config))


_MIXTRAL = Family(
    "mixtral",
    pieces,
    closer="</s>",
    eos="</s>",
    stops=("</s>",),
    base_eos="</s>",
    bos="<s>",
    is_bos_added=True,
    num_bos=1,
    prompt_end=" [/INST]",
    refusals=dict.fromkeys(WITH_SYSTEM, RAISES),
)
_LLAMA_3 = Family(
    "llama-3",
    words,
    closer="<|eot_id|>",
    eos="<|eot_id|>",
    stops=("<|end_of_text|>", "<|eot_id|>"),
    base_eos="<|end_of_text|>",
    bos="<|begin_of_text|>",
    is_bos_added=True,
    num_bos=1,
    control=("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"),
    prompt_end="<|start_header_id|>assistant<|end_header_id|>\n\n",
)
_LLAMA_3_1 = replace(_LLAMA_3, name="llama-3.1", stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))
_QWEN_2_5 = Family(
    "qwen2.5",
    words,
    closer="<|im_end|>",
    eos="<|im_end|>",
    stops=("<|im_end|>", "<|endoftext|>"),
    base_eos="<|endoftext|>",
    control=("<|im_start|>",),
    prompt_end="<|im_start|>assistant\n",
)
# An answer gets an empty think block, which its prompt does not hold; earlier answers have none.
_QWEN_3 = replace(
    _QWEN_2_5,
    name="qwen3",
    added=("<think>", "</think>"),
    refusals=dict.fromkeys(CASES, CHANGES_ANSWER),
    is_scored=False,
)
_GEMMA_2 = Family(
    "gemma-2",
    pieces_without_space,
    closer="<end_of_turn>",
    eos="<eos>",
    stops=("<eos>", "<end_of_turn>"),
    base_eos="<eos>",
    bos="<bos>",
    is_bos_added=True,
    num_bos=1,
    control=("<start_of_turn>",),
    prompt_end="<start_of_turn>model\n",
    refusals=dict.fromkeys(WITH_SYSTEM, RAISES),
)
_PHI_3 = Family(
    "phi-3",
    pieces,
    closer="<|end|>",
    eos="<|endoftext|>",
    stops=("<|endoftext|>", "<|end|>"),
    base_eos="<|endoftext|>",
    bos="<s>",
    is_bos_added=True,
    num_bos=1,
    control=("<|user|>", "<|assistant|>", "<|system|>"),
    is_stripping=True,
    prompt_end="<|assistant|>\n",
    refusals=dict.fromkeys(WITH_SYSTEM, DROPS_SYSTEM),
)
# A full-width bar and the underline of SentencePiece, which are easily taken for others.
_DEEPSEEK_BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
_DEEPSEEK_EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
_DEEPSEEK_HEADER = "<\uff5cAssistant\uff5c>"
_DEEPSEEK_V3 = Family(
    "deepseek-v3",
    words,
    closer=_DEEPSEEK_EOS,
    eos=_DEEPSEEK_EOS,
    stops=(_DEEPSEEK_EOS,),
    base_eos=_DEEPSEEK_EOS,
    bos=_DEEPSEEK_BOS,
    is_bos_added=True,
    num_bos=1,
    added=("<\uff5cUser\uff5c>", _DEEPSEEK_HEADER, "<think>", "</think>"),
    prompt_end=_DEEPSEEK_HEADER,
)
# An answer begins with a channel, which its prompt does not hold.
_GPT_OSS = Family(
    "gpt-oss",
    words,
    closer="<|return|>",
    eos="<|return|>",
    stops=("<|return|>", "<|endoftext|>", "<|call|>"),
    base_eos="<|endoftext|>",
    bos="<|startoftext|>",
    control=("<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
    prompt_end="<|start|>assistant",
    earlier_closer="<|end|>",
    refusals=dict.fromkeys(CASES, CHANGES_ANSWER),
    is_scored=False,
)

FAMILIES = (
    _MIXTRAL,
    replace(_MIXTRAL, name="mistral-v0.1"),
    replace(_MIXTRAL, name="mistral-v0.2", make_core=pieces_with_first_space, before=" ", refusals={}),
    replace(
        _MIXTRAL,
        name="mistral-v0.3",
        make_core=pieces_with_first_space,
        control=("[INST]", "[/INST]"),
        prompt_end="[/INST]",
        before=" ",
        refusals=dict.fromkeys(WITH_SYSTEM, f"{DROPS_SYSTEM}|{CHANGES_BEGINNING}"),
    ),
    replace(_MIXTRAL, name="llama-2", num_bos=2, before=" ", after=" ", refusals={}),
    _LLAMA_3,
    replace(_LLAMA_3, name="llama-3-first", eos="<|end_of_text|>"),
    _LLAMA_3_1,
    replace(_LLAMA_3_1, name="llama-3.2"),
    _QWEN_2_5,
    _QWEN_3,
    replace(
        _QWEN_3,
        name="qwen3, thinking off",
        template="qwen3",
        settings={"chat_template_kwargs": {"enable_thinking": False}},
        prompt_end="<|im_start|>assistant\n<think>\n\n</think>\n\n",
        refusals=dict.fromkeys(SEVERAL, CHANGES_BEGINNING),
        last_turn_cases=SEVERAL,
        is_scored=True,
    ),
    replace(
        _QWEN_3,
        name="qwen3, changes accepted",
        template="qwen3",
        settings={"allow_changed_messages": True},
        before_last="<think>\n\n</think>\n\n",
        refusals={},
    ),
    _GEMMA_2,
    replace(_GEMMA_2, name="gemma-3", refusals={}),
    _PHI_3,
    replace(
        _PHI_3,
        name="phi-3, changes accepted",
        template="phi-3",
        settings={"allow_changed_messages": True},
        refusals={},
    ),
    replace(
        _PHI_3,
        name="phi-3.5",
        stops=("<|end|>", "<|assistant|>", "<|endoftext|>"),
        is_bos_added=False,
        num_bos=0,
        refusals={},
    ),
    replace(
        _QWEN_2_5,
        name="phi-4",
        bos="<|endoftext|>",
        stops=("<|endoftext|>", "<|im_end|>"),
        control=("<|im_start|>", "<|im_sep|>"),
        prompt_end="<|im_start|>assistant<|im_sep|>",
    ),
    Family(
        "granite-3",
        gpt2_words,
        closer="<|end_of_text|>",
        eos="<|end_of_text|>",
        stops=("<|end_of_text|>",),
        base_eos="<|end_of_text|>",
        bos="<|end_of_text|>",
        num_bos=5,
        control=("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        prompt_end="<|start_of_role|>assistant<|end_of_role|>",
    ),
    Family(
        "olmo-2",
        words,
        closer="<|endoftext|>",
        eos="<|endoftext|>",
        stops=("<|endoftext|>",),
        base_eos="<|endoftext|>",
        bos="<|endoftext|>",
        num_bos=3,
        prompt_end="<|assistant|>\n",
    ),
    replace(
        _QWEN_2_5,
        name="smollm2",
        make_core=gpt2_words,
        stops=("<|im_end|>",),
        bos="<|im_start|>",
        num_bos=5,
    ),
    replace(_MIXTRAL, name="zephyr", num_bos=0, prompt_end="</s>\n<|assistant|>\n", refusals={}),
    Family(
        "command-r",
        gpt2_words,
        closer="<|END_OF_TURN_TOKEN|>",
        eos="<|END_OF_TURN_TOKEN|>",
        stops=("<|END_OF_TURN_TOKEN|>",),
        base_eos="<|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>",
        is_bos_added=True,
        num_bos=1,
        control=("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        is_named=True,
        prompt_end="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    _DEEPSEEK_V3,
    replace(
        _DEEPSEEK_V3,
        name="deepseek-r1-distill",
        prompt_end=f"{_DEEPSEEK_HEADER}<think>\n",
        refusals=dict.fromkeys(CASES, CHANGES_BEGINNING),
        is_scored=False,
    ),
    replace(_DEEPSEEK_V3, name="deepseek-r1-distill-first"),
    replace(
        _DEEPSEEK_V3,
        name="deepseek-r1-distill, reasoning kept",
        template="deepseek-r1-distill-kept",
        settings={"chat_template": str(TEMPLATES / "deepseek-r1-distill-kept.jinja")},
    ),
    replace(
        _QWEN_2_5,
        name="yi-1.5",
        make_core=pieces_without_space,
        bos="<|startoftext|>",
        stops=("<|im_end|>",),
    ),
    _GPT_OSS,
    replace(
        _GPT_OSS,
        name="gpt-oss, changes accepted",
        template="gpt-oss",
        settings={"allow_changed_messages": True},
        before="<|channel|>final<|message|>",
        refusals={},
    ),
    replace(
        _GPT_OSS,
        name="gpt-oss, prompt opens the final channel",
        template="gpt-oss-final",
        settings={"chat_template": str(TEMPLATES / "gpt-oss-final.jinja")},
        prompt_end="<|start|>assistant<|channel|>final<|message|>",
        earlier_closer="",
        refusals={},
        is_scored=True,
    ),
    Family(
        "glm-4",
        words,
        closer="<|user|>",
        eos="<|endoftext|>",
        stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
        base_eos="<|endoftext|>",
        control=("[gMASK]", "<sop>", "<|system|>", "<|assistant|>"),
        prompt_end="<|assistant|>\n",
        appended="<|user|>",
    ),
    replace(_MIXTRAL, name="alphamonarch", num_bos=4, prompt_end="<s>assistant\n", refusals={}),
    replace(
        _LLAMA_3,
        name="hermes-3",
        closer="<|im_end|>",
        eos="<|im_end|>",
        stops=("<|end_of_text|>", "<|im_end|>"),
        control=("<|im_start|>",),
        is_named=True,
        prompt_end="<|im_start|>assistant\n",
    ),
)
