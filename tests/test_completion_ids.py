"""What is stored is what was sampled: token ids, the text they decode to, and whether the text gives them back."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.tiny_models import make_tokenizer
from reward_server.scoring.spans import UnscorableError, refuse_control_tokens
from sampler.engines import SamplingParams, sample_conversations
from winnow.chat import Chat, load_tokenizer
from winnow.records import Completion, Message
from winnow.rows import read_parquet, write_parquet

EOS = 1  # ids of the tiny tokenizer
PAD = 2
SYSTEM = 3
QUESTION = [Message(role="user", content="What is 2 + 3?")]


class ScriptedSampler:
    """An engine that gives the same sequences to every prompt."""

    max_tokens: int | None = None

    def __init__(self, sequences: Sequence[list[int]]) -> None:
        self.sequences = sequences

    def sample(self, prompts: Mapping[str, list[int]], params: SamplingParams) -> dict[str, list[list[int]]]:
        return {prompt_id: list(self.sequences) for prompt_id in prompts}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return Chat(load_tokenizer(str(folder)), "lab")


def completions_of(chat: Chat, *sequences: list[int], num_completions: int = 0) -> list[Completion]:
    """Return the completions of a prompt for which an engine sampled these sequences."""
    count = num_completions or len(sequences)
    params = SamplingParams(num_completions=count, temperature=1.0, top_p=1.0, max_new_tokens=64, seed=0)
    return sample_conversations(ScriptedSampler(sequences), chat, {"a": QUESTION}, params)["a"]


def test_a_plain_completion_keeps_its_ids_and_its_text_gives_them_back(chat: Chat) -> None:
    ids = [*chat.encode("It is 5."), EOS]
    [row] = completions_of(chat, ids)
    assert (row.text, row.token_ids, row.num_tokens) == ("It is 5.", tuple(ids), len(ids))
    assert (row.has_exact_text, row.is_finished, row.status, row.error) == (True, True, "ok", "")
    assert row.tokenizer_hash == chat.tokenizer_hash


def test_an_unfinished_completion_has_exact_text_although_its_rendering_is_closed(chat: Chat) -> None:
    ids = chat.encode("It is 5. Thank you")
    [row] = completions_of(chat, ids)
    assert (row.token_ids, row.has_exact_text, row.is_finished) == (tuple(ids), True, False)


def test_a_control_token_before_the_end_is_stored_and_has_the_status_of_the_reward_server(chat: Chat) -> None:
    ids = chat.encode("It is 5.<|user|>\nWhat is 4?<|endoftext|>")
    [row] = completions_of(chat, ids)
    assert row.text == "It is 5.<|user|>\nWhat is 4?"
    assert row.token_ids == tuple(ids)
    assert (row.status, row.is_finished, row.has_exact_text) == ("control_token", True, False)
    with pytest.raises(UnscorableError) as refusal:
        refuse_control_tokens(ids, chat.stop_ids, chat.control_tokens)
    assert (row.status, row.error) == (refusal.value.status, str(refusal.value))
    assert "'<|user|>' (id 4) at position 4, before its end" in row.error


def test_bytes_that_are_not_utf8_keep_their_ids(chat: Chat) -> None:
    smile = chat.encode("\U0001f600")
    [row] = completions_of(chat, [*chat.encode("sea "), *smile[:-1], EOS])
    assert row.text == "sea \ufffd"
    assert row.token_ids == (*chat.encode("sea "), *smile[:-1], EOS)
    assert (row.has_exact_text, row.status) == (False, "ok")
    [whole] = completions_of(chat, [*chat.encode("sea \U0001f600"), EOS])
    assert (whole.text, whole.has_exact_text) == ("sea \U0001f600", True)


def test_a_text_that_is_cut_into_other_tokens_does_not_give_the_ids_back(chat: Chat) -> None:
    letters = [chat.encode(letter)[0] for letter in "sea"]
    assert letters != chat.encode("sea")
    cut, merged = completions_of(chat, [*letters, EOS], [*chat.encode("sea"), EOS])
    assert cut.text == merged.text == "sea"
    assert (cut.has_exact_text, merged.has_exact_text) == (False, True)


def test_a_template_that_trims_completions_does_not_give_the_ids_back(chat: Chat, tmp_path: Path) -> None:
    template = tmp_path / "trimming.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}\n<|assistant|>\n"
        "{% else %}{{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    trimming = Chat(chat.tokenizer, str(template))
    spaced, tight = completions_of(trimming, [*chat.encode(" It is 5.\n"), EOS], [*chat.encode("It is 5."), EOS])
    assert (spaced.text, spaced.has_exact_text) == (" It is 5.\n", False)
    assert (tight.text, tight.has_exact_text) == ("It is 5.", True)


def test_a_completion_ends_at_the_first_of_several_stop_ids(chat: Chat) -> None:
    two_stops = Chat(chat.tokenizer, "lab", generation_eos_ids=[EOS, SYSTEM])
    assert two_stops.stop_ids == {EOS, SYSTEM}
    content = chat.encode("It is 5.")
    for stop in (EOS, SYSTEM):
        [row] = completions_of(two_stops, [*content, stop, PAD, EOS, *content])
        assert (row.text, row.token_ids) == ("It is 5.", (*content, stop))
        assert (row.is_finished, row.has_exact_text, row.status) == (True, True, "ok")


def test_an_empty_completion_is_an_empty_text(chat: Chat) -> None:
    [row] = completions_of(chat, [EOS, PAD, PAD])
    assert (row.text, row.token_ids, row.num_tokens) == ("", (EOS,), 1)
    assert (row.has_exact_text, row.is_finished, row.status) == (True, True, "ok")


def test_a_greedy_completion_is_repeated_with_its_ids(chat: Chat) -> None:
    ids = [*chat.encode("sea \U0001f600")[:-1], EOS]
    rows = completions_of(chat, ids, num_completions=3)
    assert [row.completion_id for row in rows] == [0, 1, 2]
    assert {(row.token_ids, row.has_exact_text, row.text) for row in rows} == {(tuple(ids), False, "sea \ufffd")}


def test_ids_are_stored_in_32_bits_and_read_back(chat: Chat, tmp_path: Path) -> None:
    rows = completions_of(chat, [*chat.encode("It is 5."), EOS], chat.encode("sea <|user|>"))
    prompts = {"b": [Message(role="user", content="a <|user|> b")]}
    params = SamplingParams(num_completions=1, temperature=1.0, top_p=1.0, max_new_tokens=64, seed=0)
    refused = sample_conversations(ScriptedSampler([]), chat, prompts, params)["b"]
    for name, part in {"some": rows + refused, "none": refused}.items():
        path = tmp_path / f"{name}.parquet"
        write_parquet(path, part)
        assert read_parquet(path, Completion) == part
        assert str(pq.read_schema(path).field("token_ids").type) == "list<element: int32>"
