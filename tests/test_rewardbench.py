"""Recipe rewardbench: the tokens and the rewards of a padded pair, short and cut; what goes along with it."""

from pathlib import Path
from typing import Any

import pytest

from reward_server.engines.transformers import TransformersEngine
from reward_server.scoring.load_pair import open_pair
from reward_server.scoring.model_pair import Options, Pair
from reward_server.scoring.rendering import Conversation, PromptGroup, ScoredTokens, Text
from reward_server.scoring.rewardbench import MAX_LENGTH, Row, cut
from tests.padded_pairs import PaddedPairs
from tests.tiny_models import make_model
from winnow.chat import template_source
from winnow.serve_config import ServeConfig

RECIPE = Options(eos_policy="include", recipe="rewardbench")
CHATML_LIKE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GLUED = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ eos_token if messages | length > 1 }}"
WORDS = "The quick brown fox jumps over the lazy dog near the river bank. "

SHORT = ("What is 2 + 3?", ("It is 5.", "It is the lazy dog, I think."))
PAIRS = {
    "short": SHORT,
    "empty": ("What is 2 + 3?", ("", "It is 5.")),
    "a control token": ("What is 2 + 3?", ("It is<|endoftext|> 5.", "</s><s>")),
    "a merge into one answer only": ("The quick brow", ("n fox", "!")),
    "the prompt in the answer": ("Say it.", ("<s>Say it.\n\nSay it.", "<s><|user|>\nSay it.\n yes")),
    "a long prompt": (WORDS * 130, ("It is 5.", "It is the lazy dog.")),
    "a long answer": ("What is 2 + 3?", (WORDS * 160, "It is 5.")),
    "both long": (WORDS * 130, ("It is 5.", WORDS * 160)),
    "an answer that fits once the prompt is cut": (WORDS * 100, ("It is 5.", WORDS * 60)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("pair")
    return [
        make_model("llama", root / name, seed, max_position_embeddings=4096)
        for seed, name in enumerate(["instruct", "base"])
    ]


@pytest.fixture(scope="module", params=["lab", "mixtral-hf", "plain", CHATML_LIKE, GLUED])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if "{" not in request.param:
        return str(request.param)
    path = tmp_path_factory.mktemp("template") / "own.jinja"
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


def group_of(name: str) -> PromptGroup:
    question, answers = PAIRS[name]
    return PromptGroup(Conversation((("user", question),)), tuple(Text(answer, True) for answer in answers))


def messages_of(name: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": PAIRS[name][0]}]


@pytest.mark.parametrize("name", PAIRS)
def test_the_tokens_are_those_of_a_padded_pair(pair: Pair, padded: PaddedPairs, name: str) -> None:
    work = pair.prepare(group_of(name), RECIPE)
    expected = padded.encoded(messages_of(name), PAIRS[name][1])
    for index, theirs in enumerate(expected):
        ours, base = work.tokens[index]
        assert ours is base
        assert (ours.prompt_ids, ours.span.token_ids) == (theirs.before, theirs.scored)
        assert len(ours.prompt_ids) + len(ours.span.token_ids) <= MAX_LENGTH


@pytest.mark.parametrize("name", ["short", "a merge into one answer only", "both long"])
def test_the_rewards_are_those_of_a_padded_pair(
    pair: Pair, padded: PaddedPairs, folders: list[Path], name: str
) -> None:
    outcomes = pair.score([pair.prepare(group_of(name), RECIPE)])[0]
    encoded = padded.encoded(messages_of(name), PAIRS[name][1])
    model, reference = (padded.logps(folder, encoded) for folder in folders)
    for outcome, ours, theirs in zip(outcomes, model, reference, strict=True):
        assert outcome.ratio is not None
        assert outcome.ratio.instruct_logp == pytest.approx(ours, abs=1e-3, rel=1e-6)
        assert outcome.ratio.reward == pytest.approx(ours - theirs, abs=2e-3)


def test_what_is_cut_says_so_and_nothing_else_does(pair: Pair) -> None:
    cuts = {
        name: [ours.is_truncated for ours, _ in pair.prepare(group_of(name), RECIPE).tokens.values()] for name in PAIRS
    }
    assert {name: flags for name, flags in cuts.items() if any(flags)} == {
        "a long prompt": [True, True],
        "a long answer": [True, False],
        "both long": [True, True],
        "an answer that fits once the prompt is cut": [True, True],
    }


@pytest.mark.parametrize(
    ("num_prompt", "num_scored", "longest", "kept"),
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
def test_the_limits_are_128_1920_and_2048(
    num_prompt: int, num_scored: int, longest: int, kept: tuple[int, int]
) -> None:
    row = Row(list(range(num_prompt)), list(range(num_scored)))
    short = cut(row, longest)
    assert (len(short.prompt_ids), len(short.scored_ids)) == kept
    assert short.prompt_ids == row.prompt_ids[num_prompt - kept[0] :]
    assert short.scored_ids == row.scored_ids[: kept[1]]
    assert short.is_cut == (kept != (num_prompt, num_scored))


def test_the_base_model_reads_the_same_also_where_it_has_a_plain_form(folders: list[Path]) -> None:
    pair = open_pair(config_of(folders, "lab", base_prompt="plain"))
    ours, theirs = pair.prepare(group_of("short"), RECIPE).tokens[0]
    assert ours is theirs


def test_a_conversation_that_ends_otherwise_is_a_status(folders: list[Path]) -> None:
    pair = open_pair(config_of(folders, "lab"))
    group = PromptGroup(Conversation((("assistant", "Hi"),)), (Text("a", True), Text("b", True)))
    refused = pair.prepare(group, RECIPE).refused
    assert [refused[index].status for index in (0, 1)] == ["invalid_conversation"] * 2
    assert "should be user" in refused[0].error


def test_what_the_models_cannot_read_is_too_long_and_not_cut(folders: list[Path]) -> None:
    pair = open_pair(config_of(folders, "lab", max_tokens=1000))
    work = pair.prepare(group_of("a long answer"), RECIPE)
    assert work.refused[0].status == "too_long"
    assert isinstance(work.tokens[1][0], ScoredTokens)
    assert isinstance(pair.instruct.engine, TransformersEngine)
