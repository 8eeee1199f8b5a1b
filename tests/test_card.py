"""`winnow card`: the text of the card, the hub's metadata through its own parser, Every Eval Ever by its schema."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from eval.compare.results import TaskResult
from eval.judging.judged_scores import JudgedScore
from eval.probe import ProbeScore
from eval.publishing.card import card_text
from eval.publishing.content import CardContent, CardPrompt, read_content, run_content
from eval.publishing.every_eval_ever import every_eval_ever
from eval.publishing.intervals import task_interval
from eval.publishing.metadata import front_matter, hub_eval_results
from eval.publishing.writing import CardRequest, write_card
from eval.statistics.intervals import wilson_interval
from tests.finished_run import make_finished_run
from tests.processes import winnow_in_process
from tests.test_judge_summary import QUESTIONS
from tests.test_judgment_files import row, rows
from tests.tiny_run import write_jsonl
from winnow.errors import UsageError, WinnowError
from winnow.rows import file_sha256
from winnow.rundir import Run

SYSTEM_PROMPT = "You are careful."
GSM8K = TaskResult(
    "gsm8k",
    "exact_match,strict-match",
    642 / 1319,
    0.0138,
    1319,
    is_higher_better=True,
    conditions={"shots": 5, "lm-eval version": "0.4.13", "limit": None},
)
ARC = TaskResult("arc_challenge", "acc_norm,none", 0.5, 0.05, 100, conditions={"shots": 0})
JUDGED = JudgedScore(
    judge="gpt-4",
    mean=7.5,
    min=7.25,
    max=7.75,
    sd=0.35,
    runs=(7.25, 7.75),
    by_category={"writing": 8.0, "math": 7.0},
    by_turn={"1": 8.0, "2": 7.0},
    num_judgments=8,
    num_unparsable=1,
    mean_answer_chars=10.0,
    stderr=0.5,
    by_category_stderr={"writing": None, "math": 0.25},
    by_turn_stderr={"1": 0.1, "2": 0.1},
)
CONTENT = CardContent("tiny", (GSM8K, ARC), JUDGED, start_model="mistralai/Mistral-7B-v0.1")

STRINGS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
MODEL_INFO: dict[str, Any] = {
    "type": "object",
    "required": ["name", "id", "additional_details"],
    "properties": {
        "name": {"type": "string"},
        "id": {"type": "string"},
        "additional_details": {
            **STRINGS,
            "required": ["deployment_type", "model_availability"],
            "properties": {
                "deployment_type": {"enum": ["self_deployed", "externally_managed", "unknown"]},
                "model_availability": {"enum": ["open_weights", "closed_weights", "unknown"]},
            },
        },
    },
}
UNCERTAINTY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "standard_error": {"type": "object", "required": ["value"], "properties": {"value": {"type": "number"}}},
        "confidence_interval": {
            "type": "object",
            "required": ["lower", "upper"],
            "properties": {key: {"type": "number"} for key in ("lower", "upper", "confidence_level")},
        },
        "num_samples": {"type": "integer"},
    },
}
METRIC: dict[str, Any] = {
    "type": "object",
    "required": ["lower_is_better"],
    "properties": {
        "lower_is_better": {"type": "boolean"},
        "score_type": {"enum": ["binary", "continuous", "levels"]},
        "llm_scoring": {
            "type": "object",
            "required": ["judges", "input_prompt"],
            "properties": {
                "judges": {"type": "array", "minItems": 1, "items": {"properties": {"model_info": MODEL_INFO}}},
                "input_prompt": {"type": "string"},
            },
        },
    },
    "if": {"required": ["score_type"], "properties": {"score_type": {"const": "continuous"}}},
    "then": {"required": ["min_score", "max_score"]},
}
RESULT: dict[str, Any] = {
    "type": "object",
    "required": ["evaluation_name", "source_data", "metric_config", "score_details"],
    "properties": {
        "evaluation_name": {"type": "string"},
        "source_data": {
            "type": "object",
            "required": ["dataset_name", "source_type"],
            "properties": {"source_type": {"enum": ["hf_dataset", "other"]}, "samples_number": {"type": "integer"}},
        },
        "metric_config": METRIC,
        "score_details": {
            "type": "object",
            "required": ["score"],
            "properties": {"score": {"type": "number"}, "details": STRINGS, "uncertainty": UNCERTAINTY},
        },
        "generation_config": {"type": "object", "properties": {"additional_details": STRINGS}},
    },
}
# The part of Every Eval Ever 0.3.0 that winnow writes: required keys, types and choices.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        *("schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info", "eval_library"),
        "evaluation_results",
    ],
    "properties": {
        "schema_version": {"const": "0.3.0"},
        "evaluation_id": {"type": "string"},
        "retrieved_timestamp": {"type": "string"},
        "source_metadata": {
            "type": "object",
            "required": ["source_type", "source_organization_name", "evaluator_relationship"],
            "properties": {
                "source_type": {"enum": ["documentation", "evaluation_run"]},
                "evaluator_relationship": {"enum": ["first_party", "third_party", "collaborative", "other"]},
            },
        },
        "eval_library": {
            "type": "object",
            "required": ["name", "version"],
            "properties": {"additional_details": STRINGS},
        },
        "model_info": MODEL_INFO,
        "evaluation_results": {"type": "array", "items": RESULT},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_finished_run(tmp_path_factory.mktemp("card"), system_prompt=SYSTEM_PROMPT)


def table(text: str, title: str) -> list[list[str]]:
    """Return the cells of the table of a section."""
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_the_cards_names_other_shots_and_items() -> None:
    header, _, cells, *published = table(card_text(CONTENT), "Results")
    assert header == [
        *("model", "MT-Bench", "MMLU (5)", "ARC-C (25)", "HellaSwag (10)", "Winogrande (5)"),
        "GSM8K strict (5)",
    ]
    assert cells == ["tiny", "7.50", "-", "50.00 (0-shot, 100 items)", "-", "-", "48.67"]
    assert ["Merlinite-7b-pt (published)", "-", "63.59", "64.50", "84.28", "79.72", "48.67"] in published
    assert published[-1] == ["Granite-7b-lab (published)", "-", "51.91", "-", "-", "-", "-"]


def test_benchmarks_have_wilsons_interval_and_their_settings() -> None:
    low, high = wilson_interval(642, 1319)
    row = table(card_text(CONTENT), "Benchmarks")[2]
    interval = f"{low:.4f} to {high:.4f}"
    settings = "5-shot, exact_match,strict-match, lm-eval 0.4.13"
    assert row == ["gsm8k", "0.4867", "0.0138", interval, "1319", settings]


def test_a_value_that_is_not_a_share_has_a_normal_interval_or_none() -> None:
    perplexity = TaskResult("wiki", "perplexity,none", 12.5, 1.0, 10, is_higher_better=False)
    published = task_interval(perplexity)
    assert published is not None
    assert published.method == "normal"
    assert published.interval == pytest.approx((12.5 - 1.959964, 12.5 + 1.959964))
    assert task_interval(replace(perplexity, stderr=None)) is None
    weighted_mean = task_interval(replace(perplexity, value=0.123))
    assert weighted_mean is not None
    assert weighted_mean.method == "normal"


def test_mt_bench_has_turns_categories_and_runs() -> None:
    text = card_text(CONTENT)
    names = [cells[0] for cells in table(text, "MT-Bench")[2:]]
    assert names == ["all", "turn 1", "turn 2", "writing", "math"]
    assert table(text, "MT-Bench")[5] == ["writing", "8.00", "-", "-"]
    assert "Judged by gpt-4 in 2 runs, 7.25 to 7.75, standard deviation 0.35; 1 of 8 verdicts unreadable." in text


def test_a_bar_or_a_fence_in_a_text_does_not_break_the_card() -> None:
    prompt = CardPrompt("a\n```\nb", "own.jinja", "Use ```` twice.")
    text = card_text(replace(CONTENT, prompt=prompt, settings={"a|b": "c"}))
    assert "`````text\nUse ```` twice.\n`````" in text
    assert "````jinja\na\n```\nb\n````" in text
    assert "| a\\|b | `c` |" in text


def test_the_model_index_is_read_back_by_the_hubs_library() -> None:
    from huggingface_hub import ModelCard

    data: Any = ModelCard(card_text(CONTENT)).data
    assert data.model_name == "tiny"
    assert data.base_model == "mistralai/Mistral-7B-v0.1"
    results = {(result.dataset_type, result.metric_type): result for result in data.eval_results}
    assert results["openai/gsm8k", "exact_match"].metric_value == 48.67
    assert results["openai/gsm8k", "exact_match"].dataset_args == {"num_few_shot": 5}
    assert results["openai/gsm8k", "exact_match"].dataset_config == "main"
    assert results["mt_bench", "score"].metric_value == 7.5
    assert len(results) == 3


def test_a_card_without_results_has_no_model_index() -> None:
    assert "model-index" not in yaml.safe_load(front_matter(CardContent("tiny", ())))


def test_gsm8k_is_written_for_the_hubs_benchmark_page_and_read_back() -> None:
    from huggingface_hub import parse_eval_result_entries

    flexible = replace(GSM8K, metric="exact_match,flexible-extract", value=0.5)
    files = hub_eval_results(replace(CONTENT, tasks=(GSM8K, flexible, ARC)))
    assert set(files) == {"gsm8k-strict-match.yaml", "gsm8k-flexible-extract.yaml"}
    [entry] = parse_eval_result_entries(yaml.safe_load(files["gsm8k-strict-match.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 48.67)
    assert entry.notes == "5-shot, exact_match,strict-match, lm-eval 0.4.13"


def test_a_part_of_gsm8k_and_task_files_of_the_runs_own_are_not_written_for_the_hub() -> None:
    assert hub_eval_results(replace(CONTENT, tasks=(replace(GSM8K, num_items=50),))) == {}
    assert hub_eval_results(replace(CONTENT, has_own_tasks=True)) == {}


def test_every_eval_ever_holds_the_schema_with_intervals_and_the_judge() -> None:
    record = every_eval_ever(CONTENT, "a team", 1_790_000_000)
    jsonschema.validate(record, SCHEMA)
    named = {result["evaluation_name"]: result for result in record["evaluation_results"]}
    assert set(named) == {"gsm8k", "arc_challenge", "mt_bench", "mt_bench/writing", "mt_bench/math"}
    uncertainty = named["gsm8k"]["score_details"]["uncertainty"]
    assert uncertainty["standard_error"]["value"] == 0.0138
    assert uncertainty["confidence_interval"]["lower"] == pytest.approx(wilson_interval(642, 1319).low)
    assert (uncertainty["num_samples"], uncertainty["confidence_interval"]["method"]) == (1319, "Wilson")
    judge = named["mt_bench"]["metric_config"]["llm_scoring"]["judges"][0]["model_info"]
    assert judge["name"] == "gpt-4"
    assert record["source_metadata"]["source_organization_name"] == "a team"
    assert record["eval_library"]["additional_details"] == {"lm_eval_version": "0.4.13"}


def test_the_schema_of_the_test_refuses_a_record_at_fault() -> None:
    record = every_eval_ever(CONTENT, "a team", 1_790_000_000)
    del record["evaluation_results"][0]["metric_config"]["lower_is_better"]
    with pytest.raises(jsonschema.ValidationError, match="lower_is_better"):
        jsonschema.validate(record, SCHEMA)


def test_the_records_of_a_run_and_of_results_hold_the_schema(run: Run) -> None:
    """With WINNOW_EVERY_EVAL_EVER_SCHEMA set to the project's own eval.schema.json, that is the schema."""
    schema = SCHEMA
    if "WINNOW_EVERY_EVAL_EVER_SCHEMA" in os.environ:
        schema = json.loads(Path(os.environ["WINNOW_EVERY_EVAL_EVER_SCHEMA"]).read_text())
    for content in (CONTENT, run_content(run)):
        jsonschema.validate(every_eval_ever(content, "a team", 1_790_000_000), schema)


def test_a_metric_of_unknown_direction_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results_1.json"
    folder.write_text('{"results": {"wiki": {"oddness,none": 3.0, "perplexity,none": 4.0}}}')
    write_card(CardRequest([str(folder)], tmp_path / "README.md"))
    record = json.loads((tmp_path / "every_eval_ever.json").read_text())
    [result] = record["evaluation_results"]
    assert result["metric_config"]["metric_name"] == "perplexity,none"
    assert result["metric_config"]["lower_is_better"] is True
    assert "wiki oddness,none is left out of every_eval_ever.json" in capsys.readouterr().err


def test_the_card_of_a_run_has_rounds_settings_hashes_and_the_prompt(run: Run) -> None:
    text = card_text(run_content(run))
    assert table(text, "Rounds")[2:] == [
        ["0", "-", "-", "5.00"],
        ["**1** (peak)", "1.000", "0.000", "7.00"],
    ]
    settings = dict(cells[:2] for cells in table(text, "Settings"))
    assert settings["completions of a prompt"] == "`3`"
    hashes = dict(cells[:2] for cells in table(text, "Hashes"))
    assert hashes["model.safetensors"] == f"`{file_sha256(run.checkpoint_dir(1) / 'model.safetensors')}`"
    assert hashes["config.json"] == f"`{file_sha256(run.config_path)}`"
    assert f"```text\n{SYSTEM_PROMPT}\n```" in text
    assert "Chat template `lab`" in text
    assert "{{- '<|assistant|>\\n' if add_generation_prompt else '' -}}" in text
    assert table(text, "Benchmarks")[2][:2] == ["sums", "0.8000"]


def test_rewards_on_the_probe_have_their_standard_errors(run: Run) -> None:
    content = run_content(run)
    assert content.peak is not None
    first, last = content.peak.rounds
    probe = ProbeScore(
        mean_reward=1.5, mean_reward_stderr=0.25, best_of_n_reward=2.0, best_of_n_stderr=None, num_prompts=1
    )
    rounds = (first, last.model_copy(update={"probe": probe}))
    peak = content.peak.model_copy(update={"rounds": rounds})
    rows = table(card_text(replace(content, peak=peak)), "Rounds")
    assert rows[0][4:] == ["probe: mean reward", "probe: best of N"]
    assert [cells[4:] for cells in rows[2:]] == [["-", "-"], ["1.500 +- 0.250", "2.000"]]


def test_a_peak_of_another_version_is_refused_with_the_remedy(run: Run, tmp_path: Path) -> None:
    older = Run(tmp_path, run.config)
    older.peak_path.write_text('{"round": 1}')
    with pytest.raises(
        WinnowError, match=r"peak\.json is not of this version \(checkpoint: Field required\); run `winnow"
    ):
        run_content(older)


def test_the_verb_writes_every_file_and_names_it(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "card" / "README.md"
    result = winnow_in_process("card", str(run.root), "--output", str(output), "--name", "peak")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(output), str(output.with_name("every_eval_ever.json"))]
    assert "# peak\n" in output.read_text()


def test_results_of_several_kinds_are_joined(tmp_path: Path) -> None:
    judgments = tmp_path / "judgments.jsonl"
    questions = tmp_path / "question.jsonl"
    write_jsonl(judgments, [row(81, 1, score=9), row(81, 2, score=7), row(82, 1, score=4), row(82, 2, score=2)])
    write_jsonl(questions, QUESTIONS)
    benchmarks = tmp_path / "results_1.json"
    benchmarks.write_text('{"results": {"gsm8k": {"exact_match,strict-match": 0.5}}, "n-shot": {"gsm8k": 5}}')
    content = read_content([str(benchmarks), str(judgments)], questions=questions)
    assert content.name == "results_1"
    assert content.judged is not None
    assert content.judged.by_category == {"writing": 8.0, "math": 3.0}
    assert [result.task for result in content.tasks] == ["gsm8k"]
    folder = tmp_path.name
    assert set(content.hashes) == {f"{folder}/results_1.json", f"{folder}/judgments.jsonl"}


def test_arguments_that_do_not_join_are_refused(run: Run, tmp_path: Path) -> None:
    judgments = write_jsonl(tmp_path / "judgments.jsonl", rows())
    benchmarks = tmp_path / "results_1.json"
    benchmarks.write_text('{"results": {"gsm8k": {"exact_match,strict-match": 0.5}}}')
    with pytest.raises(UsageError, match="is a run, whose card has its own results; give it alone"):
        read_content([judgments, str(run.root)])
    with pytest.raises(UsageError, match="a second judged score; give one"):
        read_content([judgments, judgments])
    with pytest.raises(UsageError, match="a second result of gsm8k exact_match,strict-match; give each task once"):
        read_content([str(benchmarks), str(benchmarks)])
    with pytest.raises(UsageError, match=r"is a folder; give the card's file, like .*/README\.md"):
        write_card(CardRequest([judgments], tmp_path))
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "ledger.jsonl").write_text("")
    with pytest.raises(WinnowError, match=r"is not a run folder"):
        read_content([str(tmp_path / "unfinished")])


def test_real_judgments_give_their_published_mean(reference_data: Path, tmp_path: Path) -> None:
    folder = reference_data / "mt_bench"
    argument = f"{folder}/model_judgment/gpt-4_single.jsonl#vicuna-7b-v1.3"
    content = read_content([argument], "vicuna", folder / "question.jsonl")
    assert content.judged is not None
    assert (content.judged.mean, len(content.judged.by_category)) == (6.103125, 8)
    assert table(card_text(content), "Results")[2][:2] == ["vicuna", "6.10"]
