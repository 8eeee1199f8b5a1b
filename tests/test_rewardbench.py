"""Recipe rewardbench: tokens and rewards equal those of PaddedPairs, for short and for cut pairs."""

from pathlib import Path
from typing import Any

import pytest

from reward_server.groups import CompletionText, Group
from reward_server.scoring.model_pair import Pair
from reward_server.scoring.rewardbench import MAX_LENGTH, cut
from reward_server.scoring.spans import RenderedCompletion
from tests.padded_pairs import PaddedPairs
from tests.pairs import open_pair
from tests.tiny_models import make_pair
from winnow.chat.templates import template_source
from winnow.records import Message
from winnow.reward_options import RewardOptions
from winnow.serve_config import ServeConfig

OPTIONS = RewardOptions(recipe="rewardbench")
CHATML_LIKE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GLUED = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ eos_token if messages | length > 1 }}"
WORDS = "The quick brown fox jumps over the lazy dog near the river bank. "

# Name -> question and its two completions.
PAIRS = {
    "short": ("What is 2 + 3?", ("It is 5.", "It is the lazy dog, I think.")),
    "empty": ("What is 2 + 3?", ("", "It is 5.")),
    "a control token": ("What is 2 + 3?", ("It is<|endoftext|> 5.", "</s><s>")),
    "a merge into one completion only": ("The quick brow", ("n fox", "!")),
    "the prompt in the completion": ("Say it.", ("<s>Say it.\n\nSay it.", "<s><|user|>\nSay it.\n yes")),
    "a long prompt": (WORDS * 130, ("It is 5.", "It is the lazy dog.")),
    "a long completion": ("What is 2 + 3?", (WORDS * 160, "It is 5.")),
    "both long": (WORDS * 130, ("It is 5.", WORDS * 160)),
    "a completion that fits once the prompt is cut": (WORDS * 100, ("It is 5.", WORDS * 60)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    pair = make_pair(tmp_path_factory.mktemp("pair"), "llama", max_position_embeddings=4096)
    return [Path(pair["instruct"]), Path(pair["base"])]


@pytest.fixture(scope="module", params=["lab", "mixtral-hf", "plain", CHATML_LIKE, GLUED])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if "{" not in request.param:
        return str(request.param)
    path = tmp_path_factory.mktemp("template") / "template.jinja"
    path.write_text(request.param)
    return str(path)


@pytest.fixture(scope="module")
def pair(folders: list[Path], template: str) -> Pair:
    return open_pair(config_of(folders, template))


@pytest.fixture(scope="module")
def padded(pair: Pair, template: str) -> PaddedPairs:
    tokenizer = pair.instruct.renderer.chat.tokenizer
    return PaddedPairs(tokenizer, template_source(template, tokenizer))


def config_of(folders: list[Path], template: str, **settings: Any) -> ServeConfig:
    fixed = {"chat_template": template, "device_map": "cpu", "dtype": "float32"}
    return ServeConfig(instruct=str(folders[0]), base=str(folders[1]), **{**fixed, **settings})


def group_of(name: str) -> Group:
    question, completions = PAIRS[name]
    return Group([Message(role="user", content=question)], [CompletionText(text) for text in completions])


def messages_of(name: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": PAIRS[name][0]}]


@pytest.mark.parametrize("name", PAIRS)
def test_tokens_equal_those_of_padded_pairs(pair: Pair, padded: PaddedPairs, name: str) -> None:
    group = pair.render(group_of(name), OPTIONS)
    expected = padded.encoded(messages_of(name), PAIRS[name][1])
    for index, encoded in enumerate(expected):
        rendered = group.instruct[index]
        assert group.base[index] is rendered
        assert (rendered.prompt_ids, rendered.scored_ids) == (encoded.prompt_ids, encoded.scored_ids)
        assert rendered.is_eos_scored == (rendered.scored_ids[-1] == pair.instruct.renderer.chat.end_of_turn_id)
        assert rendered.num_tokens <= MAX_LENGTH


@pytest.mark.parametrize("name", ["short", "a merge into one completion only", "both long"])
def test_rewards_equal_those_of_padded_pairs(pair: Pair, padded: PaddedPairs, folders: list[Path], name: str) -> None:
    results, _ = pair.score([pair.render(group_of(name), OPTIONS)])
    encoded = padded.encoded(messages_of(name), PAIRS[name][1])
    instruct_logps, base_logps = (padded.logps(folder, encoded) for folder in folders)
    for result, instruct_logp, base_logp in zip(results[0], instruct_logps, base_logps, strict=True):
        assert result.instruct_logp == pytest.approx(instruct_logp, abs=1e-3, rel=1e-6)
        assert result.reward == pytest.approx(instruct_logp - base_logp, abs=2e-3)


def test_only_cut_completions_are_marked_as_truncated(pair: Pair) -> None:
    truncated = {}
    for name in PAIRS:
        rendered = pair.render(group_of(name), OPTIONS).instruct.values()
        flags = [completion.is_truncated for completion in rendered]
        if any(flags):
            truncated[name] = flags
    assert truncated == {
        "a long prompt": [True, True],
        "a long completion": [True, False],
        "both long": [True, True],
        "a completion that fits once the prompt is cut": [True, True],
    }


@pytest.mark.parametrize(
    ("num_prompt_tokens", "num_scored_tokens", "longest", "kept"),
    [
        (128, 1920, 1920, (128, 1920)),
        (129, 1920, 1920, (128, 1920)),
        (128, 1921, 1921, (128, 1920)),
        (100, 1948, 1948, (100, 1948)),
        (100, 1949, 1949, (100, 1920)),
        (2000, 10, 49, (128, 10)),
        (2000, 10, 48, (2000, 10)),
        (100, 10, 1949, (100, 10)),
    ],
)
def test_cut_keeps_128_tokens_of_the_prompt_and_1920_of_the_completion(
    num_prompt_tokens: int, num_scored_tokens: int, longest: int, kept: tuple[int, int]
) -> None:
    prompt_ids = list(range(num_prompt_tokens))
    scored_ids = list(range(num_scored_tokens))
    short = cut(RenderedCompletion(prompt_ids, scored_ids, is_eos_scored=True, is_truncated=False), longest)
    assert (len(short.prompt_ids), len(short.scored_ids)) == kept
    assert short.prompt_ids == prompt_ids[num_prompt_tokens - kept[0] :]
    assert short.scored_ids == scored_ids[: kept[1]]
    assert short.is_eos_scored == (kept[1] == num_scored_tokens)
    assert short.is_truncated == (kept != (num_prompt_tokens, num_scored_tokens))


def test_both_models_read_the_same_also_with_a_plain_base_prompt(folders: list[Path]) -> None:
    pair = open_pair(config_of(folders, "lab", base_prompt="plain"))
    group = pair.render(group_of("short"), OPTIONS)
    assert group.instruct[0] is group.base[0]


def test_a_prompt_that_does_not_end_with_the_user_is_a_status(folders: list[Path]) -> None:
    pair = open_pair(config_of(folders, "lab"))
    group = Group([Message(role="assistant", content="Hi")], [CompletionText("a"), CompletionText("b")])
    refused = pair.render(group, OPTIONS).refused
    assert [refused[index].status for index in (0, 1)] == ["invalid_conversation"] * 2
    assert "should be user" in refused[0].error


def test_a_pair_beyond_max_tokens_is_too_long_and_not_cut_further(folders: list[Path]) -> None:
    pair = open_pair(config_of(folders, "lab", max_tokens=1000))
    group = pair.render(group_of("a long completion"), OPTIONS)
    assert group.refused[0].status == "too_long"
    assert list(group.instruct) == [1]
