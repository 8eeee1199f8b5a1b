"""`train`: the loss, the batches and the files of one SFT job; equal jobs give equal bytes, also after a kill."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.encoding import encode
from sft.train import train
from sft.trainer_checkpoints import last_checkpoint, trainer_folder
from tests.processes import ROOT, wait_until
from tests.sft_job import ROWS, conversation_row, make_job, run_job
from tests.tiny_models import make_model
from winnow.chat import Chat, load_chat, load_tokenizer
from winnow.errors import ModelError, TrainingError
from winnow.run_config import PolicyConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model("mistral", tmp_path_factory.mktemp("models") / "mistral"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_checkpoint_is_whole_and_names_the_token_that_ends_a_turn(model: str, tmp_path: Path) -> None:
    report = run_job(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert trained.generation_config.eos_token_id == trained.config.eos_token_id == tokenizer.eos_token_id
    assert json.loads((tmp_path / "out" / "train_report.json").read_text()) == report.model_dump()
    assert (report.num_rows, report.steps, report.num_invalid, report.num_dropped_long) == (16, 3, 0, 0)


def test_a_checkpoint_stops_at_every_id_at_which_its_start_stopped(model: str, tmp_path: Path) -> None:
    start = Path(shutil.copytree(model, tmp_path / "start"))
    (start / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5, 3]}))
    policy = PolicyConfig(model=str(start))
    chat = load_chat(policy, str(start))
    train(replace(make_job(str(start), tmp_path / "out"), chat=chat))
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [1, 3, 5]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 1
    assert load_chat(policy, str(tmp_path / "out")).stop_ids == chat.stop_ids == {1, 3, 5}


def test_the_end_of_turn_is_written_where_it_is_not_the_tokenizers_eos(model: str, tmp_path: Path) -> None:
    """Gemma's template ends a turn with <end_of_turn>, its EOS is <eos>; its list holds both."""
    template = tmp_path / "pads.jinja"
    template.write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|pad|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat = Chat(load_tokenizer(model), str(template), generation_eos_ids=[1, 2])
    assert chat.end_of_turn == "<|pad|>"
    train(replace(make_job(model, tmp_path / "out"), chat=chat))
    for name, expected in {"generation_config.json": [2, 1], "config.json": 2}.items():
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == expected


def test_the_loss_is_the_token_mean_of_the_assistant_turns(model: str, tmp_path: Path) -> None:
    report = run_job(model, tmp_path / "out", max_steps=1, batch_size=16, micro_batch_size=2)
    encoded = encode(ROWS, Chat(load_tokenizer(model), "lab", "Be careful."), 64)
    start = AutoModelForCausalLM.from_pretrained(model)
    total = 0.0
    for input_ids, labels in zip(encoded.input_ids, encoded.labels, strict=True):
        with torch.inference_mode():
            logprobs = start(torch.tensor(input_ids[None].astype(int))).logits[0].log_softmax(dim=-1)
        total -= sum(float(logprobs[i - 1, label]) for i, label in enumerate(labels) if label >= 0)
    assert report.num_loss_tokens == encoded.num_loss_tokens
    assert report.final_loss == pytest.approx(total / encoded.num_loss_tokens, rel=1e-4)


def test_the_tokens_of_a_batch_have_equal_weight_for_any_micro_batch_size(model: str, tmp_path: Path) -> None:
    """Plain means of unequal micro-batches would differ: the rows have from 2 to 6 loss tokens."""
    run_job(model, tmp_path / "whole", micro_batch_size=8)
    run_job(model, tmp_path / "cut", micro_batch_size=1)
    whole = weights(tmp_path / "whole")
    cut = weights(tmp_path / "cut")
    start = weights(Path(model))
    assert whole.keys() == cut.keys() == start.keys()
    for name in whole:
        moved = (whole[name] - start[name]).abs().max()
        assert (whole[name] - cut[name]).abs().max() <= 0.02 * moved, name


def test_equal_jobs_give_equal_bytes_and_another_seed_or_order_another_model(model: str, tmp_path: Path) -> None:
    run_job(model, tmp_path / "first")
    torch.rand(5)
    run_job(model, tmp_path / "second")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    run_job(model, tmp_path / "third", rows=ROWS[::-1])
    first_weights = (tmp_path / "first" / "model.safetensors").read_bytes()
    train(replace(make_job(model, tmp_path / "fourth"), seed=2))
    for different in ("third", "fourth"):
        assert (tmp_path / different / "model.safetensors").read_bytes() != first_weights


def test_training_lowers_the_loss(model: str, tmp_path: Path) -> None:
    first = run_job(model, tmp_path / "short", max_steps=1).final_loss
    schedule: dict[str, Any] = {"num_epochs": 6, "max_steps": None, "lr_schedule": "cosine", "warmup_steps": 2}
    report = run_job(model, tmp_path / "long", learning_rate=1e-2, **schedule)
    assert report.steps == 12
    assert report.final_loss < 0.5 * first


def test_left_out_rows_are_in_the_report(model: str, tmp_path: Path) -> None:
    long = conversation_row("x " * 80, "sea")
    report = run_job(model, tmp_path / "out", rows=[*ROWS, long, {"messages": []}])
    assert (report.num_rows, report.num_dropped_long, report.num_invalid) == (16, 1, 1)
    assert report.invalid_reasons == {"a conversation needs at least one message": 1}


def test_bfloat16_is_trained_in_float32_and_stored_in_bfloat16(model: str, tmp_path: Path) -> None:
    """One step of 1e-5 is below the resolution of most bfloat16 weights; 20 steps are not."""
    run_job(model, tmp_path / "out", dtype="bfloat16", learning_rate=1e-5, max_steps=20)
    trained = weights(tmp_path / "out")
    start = weights(Path(model))
    assert {tensor.dtype for tensor in trained.values()} == {torch.bfloat16}
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (trained[name] != start[name].bfloat16()).float().mean()
    assert moved > 0.05


def test_a_loss_that_is_not_finite_stops_the_job_and_leaves_no_checkpoint(model: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss of step \d+ is (nan|inf); lower learning_rate"):
        run_job(model, tmp_path / "out", learning_rate=1e30, max_steps=20)
    assert not (tmp_path / "out").exists()


def test_float16_is_refused_without_a_gpu(model: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("float16 can be trained here")
    with pytest.raises(TrainingError, match="dtype float16 needs a GPU"):
        run_job(model, tmp_path / "out", dtype="float16")


def test_a_too_long_warm_up_is_reported_on_stderr(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(model, tmp_path / "out", max_steps=1, warmup_steps=5)
    assert "train: warm-up of 5 steps is not shorter than training (1 steps)" in capsys.readouterr().err


def test_a_folder_without_a_model_is_one_clear_line(model: str, tmp_path: Path) -> None:
    job = make_job(model, tmp_path / "out")
    with pytest.raises(ModelError, match="no model could be loaded"):
        train(replace(job, model=str(tmp_path)))


def test_a_killed_job_resumes_from_its_last_step_and_ends_with_equal_bytes(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"max_steps": 60, "save_steps": 1}
    saved = tmp_path / ".out.trainer"
    command = [sys.executable, "-m", "tests.sft_job", model, str(tmp_path / "out"), json.dumps(changes)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def has_saved_step_3() -> bool:
        assert process.poll() is None, "the job ended before it could be killed"
        return bool(list(saved.glob("checkpoint-[3-9]/trainer_state.json")))

    wait_until(has_saved_step_3, "a trainer checkpoint of step 3", timeout_s=120.0)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    assert run_job(model, tmp_path / "out", **changes).steps == 60
    assert "train: resuming from checkpoint-" in capsys.readouterr().err
    assert not saved.exists()
    run_job(model, tmp_path / "undisturbed", max_steps=60)
    resumed_weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert resumed_weights == (tmp_path / "undisturbed" / "model.safetensors").read_bytes()


def test_trainer_checkpoints_that_are_cut_short_or_of_another_job_are_not_resumed(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), trainer_folder(tmp_path / "out", "job a") as folder:
        for step in (9, 10, 11):
            (folder / f"checkpoint-{step}").mkdir()
        for step in (9, 10):
            (folder / f"checkpoint-{step}" / "trainer_state.json").write_text('{"global_step": 1}')
        (folder / "checkpoint-11" / "trainer_state.json").write_text('{"global_st')
        raise KeyboardInterrupt
    with suppress(KeyboardInterrupt), trainer_folder(tmp_path / "out", "job a") as folder:
        assert last_checkpoint(folder) == folder / "checkpoint-10"
        raise KeyboardInterrupt
    with trainer_folder(tmp_path / "out", "job b") as folder:
        assert last_checkpoint(folder) is None
    assert not folder.exists()
