"""A real open model, SmolLM2-135M-Instruct, on real data, through the public commands alone: `make test-real`.

The configs are the example's with other data and fewer steps. One set of weights is both models of the pair: the
instruct model reads ChatML, the base model plain paragraphs. Every bound holds whatever is sampled, which differs
between processors, because their matrix products round differently.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from tests.oracle import MAX_ERROR, MAX_TOKEN_ERROR, Oracle
from tests.processes import ROOT, read_address, server_process, winnow_command
from tests.tiny_run import write_config, write_jsonl
from winnow.rows import read_jsonl

# A slow processor takes minutes for what the fixtures compute.
TIMEOUT_S = 900
pytestmark = [pytest.mark.real, pytest.mark.timeout(TIMEOUT_S)]

EXAMPLE = ROOT / "examples" / "smollm2"
# The two readings of a prompt, as the instruct model's ChatML and as plain paragraphs.
CHATML = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PLAIN = "{}\n\n"
NUM_PAIRS = 20
NUM_ORACLE_ROWS = 3
NUM_INSTRUCTIONS = 12
NUM_COMPLETIONS = 4
NUM_PROBLEMS = 10

Row = dict[str, Any]


@pytest.fixture(scope="module")
def model(pytestconfig: pytest.Config) -> Path:
    """Return the checkpoint, which pytest's cache keeps from one run of the tests to the next."""
    assert pytestconfig.cache is not None
    folder: Path = pytestconfig.cache.mkdir("smollm2") / "model"
    call(sys.executable, "-m", "examples.smollm2.make_model", str(folder))
    return folder


@pytest.fixture(scope="module")
def example_config(model: Path) -> Row:
    """Return the example's config with the checkpoint in pytest's cache as policy, instruct and base model."""
    config: Row = yaml.safe_load((EXAMPLE / "config.yaml").read_text())
    config["policy"]["model"] = str(model)
    config["reward"]["server"].update(instruct=str(model), base=str(model))
    return config


@pytest.fixture(scope="module")
def scored_pairs(example_config: Row, reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Return the first of LLMBar's natural pairs, scored; `label` is the number of the preferred completion."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = json.loads((reference_data / "llmbar" / "natural.json").read_text())[:NUM_PAIRS]
    rows = []
    for pair in pairs:
        completions = [pair["output_1"], pair["output_2"]]
        rows.append({"prompt": pair["input"], "completions": completions, "label": pair["label"]})
    with reward_server(example_config["reward"]["server"], folder) as address:
        return score(address, rows, folder)


@pytest.fixture(scope="module")
def run_dir(example_config: Row, reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run: one round on real instructions, evaluated on real problems."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        **example_config,
        "runs_dir": str(folder / "runs"),
        "prompts": {
            "num_prompts": NUM_INSTRUCTIONS,
            "files": [{"path": write_jsonl(folder / "instructions.jsonl", instructions(reference_data))}],
        },
        "evaluation": evaluation(reference_data, folder),
    }
    train = {**config["rounds"]["train"], "batch_size": 4}
    config["rounds"] = {"num_rounds": 1, "train": train}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        call(*winnow_command("run", write_config(folder, config)))
    return folder / "runs" / str(config["name"])


def call(*command: str) -> None:
    """Call a command from the root of the repository; fail with its messages if it does."""
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stderr


@contextmanager
def reward_server(settings: Row, folder: Path) -> Iterator[str]:
    """Serve a pair with `winnow serve` and yield the server's address."""
    path = write_config(folder, {**settings, "listen": "127.0.0.1:0"}, "serve.yaml")
    with (folder / "server.log").open("w") as log, server_process([path], stderr=log) as process:
        yield read_address(process)


def score(address: str, rows: list[Row], folder: Path) -> list[Row]:
    """Score rows with `winnow score`, with the log-probability of each token."""
    in_path = write_jsonl(folder / "in.jsonl", rows)
    out_path = folder / "out.jsonl"
    options = ("--address", address, "--input", in_path, "--output", str(out_path), "--token-logprobs")
    call(*winnow_command("score", *options))
    return [row for _, row in read_jsonl(out_path)]


def instructions(reference_data: Path) -> list[Row]:
    """Return the first real instructions, with their inputs, that are short and have a short reference answer."""
    rows: list[Row] = []
    for _, task in read_jsonl(reference_data / "instructions" / "seed_tasks.jsonl"):
        instance = task["instances"][0]
        prompt = f"{task['instruction']}\n\n{instance['input']}".strip()
        if len(prompt) <= 300 and len(instance["output"]) <= 80:
            rows.append({"prompt": prompt})
    return rows[:NUM_INSTRUCTIONS]


def evaluation(reference_data: Path, folder: Path) -> Row:
    """Return an evaluation on GSM8K's first problems, and on a question for the greedy answer; write its files."""
    task_dir = folder / "tasks"
    task_dir.mkdir()
    (task_dir / "problems.yaml").write_text(yaml.safe_dump(problems_task(reference_data / "gsm8k" / "test.jsonl")))
    question = {"question_id": 1, "category": "extraction", "turns": ["What is the capital of France?", "Of Italy?"]}
    reference = {"question_id": 1, "choices": [{"turns": ["Paris", "Rome"]}]}
    return {
        "probe": None,  # every instruction is for the round
        "task_dir": str(task_dir),
        "batch_size": NUM_PROBLEMS,
        "benchmarks": [{"task": "problems", "metric": "exact_match,last-number", "limit": NUM_PROBLEMS}],
        "questions": {
            "questions": write_jsonl(folder / "question.jsonl", [question]),
            "references": write_jsonl(folder / "reference.jsonl", [reference]),
            "max_new_tokens": 24,
            "temperature": 0,
        },
    }


def problems_task(data: Path) -> Row:
    """Return a task file in lm-eval's format: a problem of GSM8K, answered greedily; the last number is the answer."""
    return {
        "task": "problems",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer.split('####')[-1].strip()}}",
        "generation_kwargs": {"do_sample": False, "max_gen_toks": 64, "until": ["Question:", "<|im_end|>"]},
        "filter_list": [
            {
                "name": "last-number",
                "filter": [
                    {"function": "regex", "regex_pattern": r"(-?\d+)", "group_select": -1},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def test_the_greedy_answer_is_the_models_own(run_dir: Path) -> None:
    _, answers = next(read_jsonl(run_dir / "round-00" / "eval" / "answers.jsonl"))
    assert answers["choices"][0]["turns"][0] == "The capital of France is Paris."


def test_the_reward_prefers_the_better_answer_in_most_real_pairs(scored_pairs: list[Row]) -> None:
    num_agreed = 0
    for row in scored_pairs:
        assert [scored["status"] for scored in row["rewards"]] == ["ok", "ok"]
        first, second = (scored["reward"] for scored in row["rewards"])
        num_agreed += (first > second) == (row["label"] == 1)
    assert len(scored_pairs) == NUM_PAIRS
    assert num_agreed > NUM_PAIRS / 2  # 12, and 63 of all 100 natural pairs


def test_served_logps_equal_the_oracles(model: Path, scored_pairs: list[Row]) -> None:
    oracle = Oracle(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for row in scored_pairs[:NUM_ORACLE_ROWS]:
        prompts = {"instruct": CHATML.format(row["prompt"]), "base": PLAIN.format(row["prompt"])}
        for completion, scored in zip(row["completions"], row["rewards"], strict=True):
            completion_ids = tokenizer.encode(f"{completion}<|im_end|>", add_special_tokens=False)
            assert scored["token_ids"] == completion_ids
            for reading, prompt in prompts.items():
                prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
                expected = oracle.logprobs(prompt_ids, completion_ids)
                logprobs = scored[f"{reading}_token_logprobs"]
                np.testing.assert_allclose(logprobs, expected, atol=MAX_TOKEN_ERROR, rtol=0)
                assert abs(scored[f"{reading}_logp"] - expected.sum()) <= MAX_ERROR


def test_the_selected_set_beats_the_random_control(run_dir: Path) -> None:
    metrics = json.loads((run_dir / "round-01" / "metrics.json").read_text())
    assert metrics["num_scored"] == NUM_INSTRUCTIONS * NUM_COMPLETIONS
    assert metrics["num_selected"] > NUM_INSTRUCTIONS / 4  # the rest have unfinished completions only
    assert metrics["batch_reward"] > metrics["random_control_reward"]


def test_training_raises_the_log_probability_of_the_selected_rows(
    example_config: Row, model: Path, run_dir: Path, tmp_path: Path
) -> None:
    rows = []
    for _, selected in read_jsonl(run_dir / "round-01" / "selected.jsonl"):
        *prompt, answer = selected["messages"]
        rows.append({"messages": prompt, "completions": [answer["content"]]})
    pair = {"instruct": str(run_dir / "round-01" / "checkpoint"), "base": str(model), "base_prompt": "same"}
    with reward_server({**example_config["reward"]["server"], **pair}, tmp_path) as address:
        scored_rows = score(address, rows, tmp_path)
    gains = [row["rewards"][0]["log_ratio"] for row in scored_rows]
    assert min(gains) > 0


def test_real_problems_are_evaluated_in_every_round(run_dir: Path) -> None:
    for round_name in ("round-00", "round-01"):
        folder = run_dir / round_name / "eval"
        results = json.loads((folder / "results.json").read_text())
        items = [row for _, row in read_jsonl(folder / "benchmark_items.jsonl")]
        assert len({item["item_id"] for item in items}) == NUM_PROBLEMS
        [result] = results["benchmarks"]
        assert result["n"] == NUM_PROBLEMS
        assert result["value"] == pytest.approx(fmean(item["value"] for item in items))
    assert json.loads((run_dir / "peak.json").read_text())["round"] in (0, 1)
