"""`encode`: the tokens that carry loss, the rows that are left out and counted, and errors if no row is left."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_models import make_tokenizer
from sft.encoding import IGNORED, encode
from winnow.chat import Chat
from winnow.completion_ids import decode, without_stop
from winnow.errors import TrainingError
from winnow.records import Message
from winnow.run_config import TrainConfig

EOS = 1  # ids of the tiny tokenizer
SYSTEM = 3


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat(make_tokenizer(tmp_path_factory.mktemp("tokenizer")), "lab", "Be careful.")


def row(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


def test_labels_are_the_assistant_turns_through_their_end_of_sequence_token(chat: Chat) -> None:
    encoded = encode([row("Add 2 and 3.", "It is 5.", "And one more?", "Six.")], chat, 200)
    labels = [int(label) for label in encoded.labels[0] if label != IGNORED]
    assert chat.tokenizer.decode(labels) == "It is 5.<|endoftext|>Six.<|endoftext|>"
    assert encoded.num_loss_tokens == len(labels)
    kept = encoded.labels[0] != IGNORED
    assert (encoded.labels[0][kept] == encoded.input_ids[0][kept]).all()


def test_long_rows_are_dropped_and_counted_and_never_cut(chat: Chat) -> None:
    short = row("Name a sea.", "Salt.")
    long = row("Name a sea.", "waves " * 100)
    length = len(encode([short], chat, 200).input_ids[0])
    encoded = encode([long, short], chat, length)
    assert (len(encoded.input_ids), encoded.num_dropped_long) == (1, 1)
    assert len(encoded.input_ids[0]) == length


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": "x"}, "no list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role: Input should be"),
        ({"messages": [{"role": "user"}]}, "content: Field required"),
        ({**row("Name a sea.", "Salt."), "tools": [{"type": "function"}]}, "the row has tools"),
        (row("Only a question."), "the last message should be assistant"),
        (row("Say <|endoftext|>.", "No."), "control token"),
    ],
)
def test_rows_that_cannot_be_rendered_are_counted_by_reason(chat: Chat, bad: dict[str, Any], reason: str) -> None:
    encoded = encode([bad, row("Name a sea.", "Salt."), bad], chat, 200)
    assert len(encoded.input_ids) == 1
    [(message, count)] = encoded.invalid_reasons.items()
    assert reason in message
    assert count == 2


def test_the_error_for_no_rows_left_counts_the_reasons(chat: Chat) -> None:
    with pytest.raises(
        TrainingError, match=r"of 2 rows 1 are longer than max_tokens 60 and 1 cannot be rendered \(1 x"
    ):
        encode([row("Name a sea.", "waves " * 100), {"messages": []}], chat, 60)
    with pytest.raises(TrainingError, match="of 0 rows"):
        encode([], chat, 60)


def test_rows_train_on_the_last_turn_alone_if_the_earlier_ones_are_part_of_the_prompt(chat: Chat) -> None:
    encoded = encode([row("Add 2 and 3.", "It is 5.", "And one more?", "Six.")], chat, 200, is_last_turn_only=True)
    labels = [int(label) for label in encoded.labels[0] if label != IGNORED]
    assert chat.tokenizer.decode(labels) == "Six.<|endoftext|>"


def sampled_row(chat: Chat, token_ids: list[int], **metadata: Any) -> dict[str, Any]:
    """Return a row as the stage `select` writes it for a completion whose text does not give its ids back."""
    text = decode(chat.tokenizer, without_stop(token_ids, chat.stop_ids))
    known = {"completion_ids": token_ids, "tokenizer_hash": chat.tokenizer_hash}
    return {**row("Name a sea.", text), "metadata": {**known, **metadata}}


@pytest.mark.parametrize("is_last_turn_only", [False, True])
def test_sampled_ids_carry_the_loss_where_the_row_has_them(chat: Chat, is_last_turn_only: bool) -> None:
    letters = [chat.encode(letter)[0] for letter in "sea"]
    broken = chat.encode("sea \U0001f600")[:-1]
    prompt_ids = chat.prompt_ids([Message(role="user", content="Name a sea.")])
    for content in (letters, broken):
        sampled = sampled_row(chat, [*content, EOS])
        encoded = encode([sampled], chat, 200, is_last_turn_only=is_last_turn_only)
        assert encoded.input_ids[0].tolist() == [*prompt_ids, *content, EOS]
        assert encoded.labels[0].tolist() == [*[IGNORED] * len(prompt_ids), *content, EOS]


def test_a_sampled_turn_is_closed_by_the_end_of_turn_whatever_stopped_its_sampling(chat: Chat) -> None:
    two_stops = Chat(chat.tokenizer, "lab", generation_eos_ids=[EOS, SYSTEM])
    letters = [chat.encode(letter)[0] for letter in "sea"]
    encoded = encode([sampled_row(two_stops, [*letters, SYSTEM])], two_stops, 200)
    assert encoded.input_ids[0].tolist()[-4:] == [*letters, EOS]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer_hash": "another"}, "of another tokenizer than the model's; train the model that sampled them"),
        ({"tokenizer_hash": None}, "of another tokenizer than the model's"),
        ({"completion_ids": [90, EOS]}, "the last message is not the text of metadata.completion_ids"),
        ({"completion_ids": "sea"}, "should be a list of token ids"),
        ({"completion_ids": [10**6]}, "should be a list of token ids"),
        ({"completion_ids": [4, 90, EOS]}, "hold '<|user|>' \\(id 4\\) at position 0, before its end"),
    ],
)
def test_sampled_ids_that_are_not_the_rows_are_refused_by_reason(
    chat: Chat, changes: dict[str, Any], reason: str
) -> None:
    letters = [chat.encode(letter)[0] for letter in "sea"]
    encoded = encode([sampled_row(chat, [*letters, EOS], **changes), row("Name a sea.", "Salt.")], chat, 200)
    assert len(encoded.input_ids) == 1
    [(message, count)] = encoded.invalid_reasons.items()
    assert re.search(reason, message)
    assert count == 1


def test_a_row_without_loss_stops_the_job(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "mute.jinja").write_text("{{ bos_token + eos_token + messages[0].content }}")
    mute = Chat(chat.tokenizer, str(tmp_path / "mute.jinja"), allow_changed_messages=True)
    with pytest.raises(TrainingError, match="row 1 has no token that carries loss"):
        encode([row("Name a sea.", "Salt.")], mute, 60)


def test_content_hash_depends_on_the_rows_and_their_order(chat: Chat) -> None:
    rows = [row("Name a sea.", "Salt."), row("Name a colour.", "Blue.")]
    content_hash = encode(rows, chat, 60).content_hash()
    assert encode(rows, chat, 60).content_hash() == content_hash
    assert encode(rows[::-1], chat, 60).content_hash() != content_hash


def test_num_steps_counts_passes_and_their_last_smaller_batch() -> None:
    recipe = TrainConfig(learning_rate=1e-6, num_epochs=4, batch_size=3840, warmup_steps=800)
    assert recipe.num_steps(630_000) == 660
    assert recipe.num_steps(3840) == 4
    assert recipe.model_copy(update={"num_epochs": 0.5}).num_steps(1) == 1
    assert recipe.model_copy(update={"max_steps": 7}).num_steps(630_000) == 7


def test_warmup_warning_for_a_warm_up_that_is_not_shorter_than_training() -> None:
    recipe = TrainConfig(learning_rate=1e-6, warmup_steps=800)
    assert (
        recipe.warmup_warning(656)
        == "warm-up of 800 steps is not shorter than training (656 steps); the learning rate never reaches its peak"
    )
    assert recipe.warmup_warning(800) is not None
    assert recipe.warmup_warning(801) is None
    assert TrainConfig(learning_rate=1e-6).warmup_warning(1) is None
