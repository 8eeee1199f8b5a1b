"""The peak of a run -> a folder that transformers and vLLM load, with the chat template and the ids that end a turn.

config.json  *.safetensors                 the checkpoint's; weights are hard links where the file system allows it
tokenizer.json  chat_template.jinja  ...   the tokenizer, whose template needs none of the run's settings
generation_config.json                     the ids at which sampling stopped, the end of turn first
README.md                                  the card
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.publishing.card import card_text
from eval.publishing.content import peak_folder, read_peak, run_content, weight_files
from eval.publishing.template import published_template
from winnow.chat import Chat, load_chat
from winnow.checkpoints import check_checkpoint
from winnow.errors import UsageError, WinnowError
from winnow.records import Message
from winnow.rows import write_json, write_text
from winnow.run_config import PolicyConfig
from winnow.rundir import Run, atomic_folder

DESCRIPTIONS = ("config.json", "*.index.json")
PROBES = (
    [Message(role="user", content="What is 2 + 2?")],
    [
        Message(role="user", content="Name a colour."),
        Message(role="assistant", content="Red."),
        Message(role="user", content="Another, please!\n\nIn one word."),
    ],
    [Message(role="system", content="Answer in French."), Message(role="user", content="Good morning.")],
)


def export_peak(run: Run, output: Path) -> Path:
    """Write the folder of a run's peak; it appears whole or not at all.

    Raises UsageError for an output that exists, WinnowError for a run without a peak.
    """
    if output.exists():
        raise UsageError(f"{output} exists; give a new folder")
    peak = read_peak(run)
    policy = run.config.policy
    folder = peak_folder(run, peak)
    check_checkpoint(str(folder))
    chat = load_chat(policy, str(folder))
    content = run_content(run)
    with atomic_folder(output) as partial:
        _place(folder, partial)
        write_tokenizer(policy, chat, partial)
        write_json(partial / "generation_config.json", _generation_config(folder, chat))
        write_text(partial / "README.md", card_text(content))
    for warning in different_prompts(chat, output):
        print(f"warning: {output}: {warning}", file=sys.stderr)
    return output


def write_tokenizer(policy: PolicyConfig, chat: Chat, folder: Path) -> None:
    """Write a policy's tokenizer, with the one template that renders what its chat renders."""
    template = published_template(policy, chat.tokenizer)
    tokenizer = chat.tokenizer
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def different_prompts(chat: Chat, folder: Path) -> list[str]:
    """Render a few conversations with the exported tokenizer; return a warning for each whose ids differ."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    warnings: list[str] = []
    for messages in PROBES:
        try:
            expected = chat.prompt_ids(messages)
        except WinnowError:  # a template without system messages, or for one turn alone
            continue
        if _rendered_ids(tokenizer, messages) != expected:
            warnings.append(
                f"transformers renders a conversation of {len(messages)} messages to other token ids than the run did, "
                f"whose template {chat.template} is encoded piece by piece"
            )
    return warnings


def _rendered_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    rows = [message.model_dump() for message in messages]
    rendered = tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=True)
    return list(rendered["input_ids"])


def _place(source: Path, target: Path) -> None:
    """Link or copy the weights, and copy what describes them."""
    for path in weight_files(source):
        real_path = path.resolve()  # the hub's cache holds symbolic links
        try:
            os.link(real_path, target / path.name)
        except OSError:  # another file system, or one without hard links
            shutil.copy(real_path, target / path.name)
    for pattern in DESCRIPTIONS:
        for path in sorted(source.glob(pattern)):
            shutil.copy(path.resolve(), target / path.name)


def _generation_config(source: Path, chat: Chat) -> dict[str, Any]:
    """Return the checkpoint's generation config with the ids at which its sampling stopped, the end of turn first."""
    config: dict[str, Any] = {}
    path = source / "generation_config.json"
    if path.is_file():
        config = json.loads(path.read_text())
    config["eos_token_id"] = [chat.end_of_turn_id, *sorted(chat.stop_ids - {chat.end_of_turn_id})]
    for name in ("bos_token_id", "pad_token_id"):
        token_id = getattr(chat.tokenizer, name)
        if token_id is not None:
            config.setdefault(name, token_id)
    return config
