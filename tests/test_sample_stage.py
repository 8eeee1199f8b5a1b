"""Prompts that cannot be completed become rows that say why; the others of their shard are sampled."""

from collections.abc import Sequence
from pathlib import Path

from sampler.engines import Sampled, Sampling
from sampler.stages import _completions
from tests.tiny_models import make_tokenizer
from tests.tiny_run import tiny_config
from winnow.chat import Chat, load_tokenizer
from winnow.config import parse_config
from winnow.records import Message, make_prompt
from winnow.run_config import RunConfig
from winnow.rundir import Run


class Counter:
    """An engine of 64 positions that answers each prompt with its length."""

    max_tokens: int | None = 64

    def sample(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Sampled]]:
        return [[Sampled(str(len(prompt)), 1, True)] * sampling.num_completions for prompt in prompts]


def test_a_prompt_that_leaves_no_room_or_forges_a_turn_is_a_row_with_a_status(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    chat = Chat(load_tokenizer(str(tmp_path)), "lab")
    run = Run(tmp_path, parse_config(tiny_config(tmp_path), RunConfig, "test"))
    texts = ("short", "long " * 60, "a <|user|> b", "short too")
    prompts = [make_prompt("s", (Message(role="user", content=text),)) for text in texts]
    rows = list(_completions(Counter(), chat, prompts, run, seed=0))
    assert [row.prompt_id for row in rows] == [prompt.prompt_id for prompt in prompts for _ in range(3)]
    assert [row.status for row in rows[::3]] == ["ok", "too_long", "control_token", "ok"]
    assert "with max_new_tokens at most 52 fit" in rows[3].error
    assert "control token '<|user|>'" in rows[6].error
    assert rows[0].text == str(len(chat.prompt_ids(prompts[0].messages)))
    assert rows[9].text == str(len(chat.prompt_ids(prompts[3].messages)))
