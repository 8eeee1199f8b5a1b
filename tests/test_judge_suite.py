"""MT-Bench outside a run: a checkpoint or a server, its folder, repeated runs, what is kept and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.judging.suite import LocalModel, MtBenchRequest, MtBenchResults, result_lines, run_mt_bench
from sampler.engines.endpoint_settings import EndpointSettings
from tests.chat_server import chat_server, openai_error, prompts_fixture  # noqa: F401
from tests.tiny_models import make_model
from tests.tiny_run import write_jsonl
from winnow.errors import ServerError, UsageError
from winnow.records import digest
from winnow.rows import read_jsonl_files
from winnow.run_config import JudgeConfig, PolicyConfig, QuestionsConfig, SamplingConfig

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["A colour?", "Another one."]},
    {"question_id": 101, "category": "math", "turns": ["2 + 3?", "Double it."]},
]


def rating(request: dict[str, Any]) -> str:
    """Reply with a rating that depends on the prompt alone."""
    return f"Rating: [[{int(digest(request['messages']), 16) % 10 + 1}]]"


def question_set(folder: Path, address: str, prompts: str, **changes: Any) -> QuestionsConfig:
    return QuestionsConfig(
        questions=write_jsonl(folder / "question.jsonl", QUESTIONS),
        references=write_jsonl(folder / "reference.jsonl", [{"question_id": 101, "choices": [{"turns": ["5", "10"]}]}]),
        judge=JudgeConfig(kind="llm", model="judge-1", base_url=address, prompts=prompts),
        **{"max_new_tokens": 6, **changes},
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    policy = PolicyConfig(model=str(make_model("llama", tmp_path_factory.mktemp("model"))), dtype="float32")
    return LocalModel(policy, SamplingConfig(), identity="weights-1")


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_is_answered_judged_and_summarized(local: LocalModel, tmp_path: Path, prompts: str) -> None:
    output = tmp_path / "out"
    with chat_server(rating) as (address, requests):
        config = question_set(tmp_path, address, prompts, num_runs=2)
        results = run_mt_bench(MtBenchRequest(local, "tiny", config, output))
        assert len(requests) == 1 + 8
        before = stored(output)
        assert run_mt_bench(MtBenchRequest(local, "tiny", config, output)) == results
        assert len(requests) == 2 + 8
    assert stored(output) == before
    assert MtBenchResults.model_validate_json((output / "results.json").read_text()) == results
    assert (results.num_questions, results.score.num_judgments, len(results.score.runs)) == (2, 8, 2)
    assert results.judge_sd is None
    assert results.answer_sd is None
    lines = list(result_lines(results))
    assert lines[0].startswith("MT-Bench of tiny, judged by judge-1, 2 questions: ")
    assert "standard error over questions" in lines[0]
    assert lines[1].startswith("2 runs: mean ")
    assert [line.split(":")[0].strip() for line in lines[2:]] == ["turn 1", "turn 2", "writing", "math"]
    answers = read_jsonl_files([output / "answers.jsonl"])
    assert [(row["model_id"], row["run_id"]) for row in answers] == [("tiny", 0)] * 2 + [("tiny", 1)] * 2


def test_more_runs_and_judgings_add_to_a_folder(local: LocalModel, tmp_path: Path, prompts: str) -> None:
    output = tmp_path / "out"
    calls: list[int] = []

    def reply(request: dict[str, Any]) -> str:
        calls.append(1)
        return f"Rating: [[{len(calls) % 3 + 5}]]"

    with chat_server(reply) as (address, requests):
        run_mt_bench(MtBenchRequest(local, "tiny", question_set(tmp_path, address, prompts), output))
        answers = read_jsonl_files([output / "answers.jsonl"])
        judgments = read_jsonl_files([output / "judgments.jsonl"])
        assert len(requests) == 1 + 4
        config = question_set(tmp_path, address, prompts, num_runs=2)
        results = run_mt_bench(MtBenchRequest(local, "tiny", config, output, num_rejudged=1))
        # The check, run 1 in the first judging, both runs in the second.
        assert len(requests) == 1 + 4 + 1 + 4 + 8
    assert read_jsonl_files([output / "answers.jsonl"])[:2] == answers
    assert read_jsonl_files([output / "judgments.jsonl"])[:4] == judgments
    assert len(read_jsonl_files([output / "judgments-2.jsonl"])) == 8
    assert results.num_judgings == 2
    assert results.judge_sd is not None
    assert results.answer_sd is not None
    assert [line for line in result_lines(results) if line.startswith("noise of the judge: sd ")]


def test_a_folder_takes_no_other_weights_or_settings(local: LocalModel, tmp_path: Path, prompts: str) -> None:
    output = tmp_path / "out"
    with chat_server(rating) as (address, _):
        config = question_set(tmp_path, address, prompts)
        run_mt_bench(MtBenchRequest(local, "tiny", config, output))
        reweighted = LocalModel(local.policy, local.sampling, identity="weights-2")
        with pytest.raises(UsageError, match=r"holds results of other inputs \(model differ"):
            run_mt_bench(MtBenchRequest(reweighted, "tiny", config, output))
        longer = question_set(tmp_path, address, prompts, max_new_tokens=7)
        with pytest.raises(UsageError, match=r"other inputs \(settings differ"):
            run_mt_bench(MtBenchRequest(local, "tiny", longer, output))


def test_a_judge_at_fault_is_found_before_a_question_is_answered(tmp_path: Path, prompts: str) -> None:
    settings = EndpointSettings("model", None, "tiny", "http://127.0.0.1:1/v1")
    with chat_server(lambda request: openai_error(401, "No key.", None, None)) as (address, _):
        config = question_set(tmp_path, address, prompts)
        with pytest.raises(ServerError, match=r"judge-1 at .* answers 401"):
            run_mt_bench(MtBenchRequest(settings, "tiny", config, tmp_path / "out"))
    assert not (tmp_path / "out" / "answers.jsonl").exists()


def test_a_server_answers_each_turn_after_the_turn_before(tmp_path: Path, prompts: str) -> None:
    def answer(request: dict[str, Any]) -> Any:
        if "2 + 3?" in json.dumps(request):
            return openai_error(400, "The prompt is too long.", None, None)
        return f"answer {len(request['messages'])}"

    output = tmp_path / "out"
    with chat_server(answer) as (server, asked_for), chat_server(rating) as (address, _):
        settings = EndpointSettings("model", None, "served", server)
        config = question_set(tmp_path, address, prompts, num_runs=2)
        results = run_mt_bench(MtBenchRequest(settings, "served", config, output))
        # Two turns in each of two runs, and a refused question, which is greedy: it counts for both runs.
        assert len(asked_for) == 4 + 1
        assert run_mt_bench(MtBenchRequest(settings, "served", config, output)) == results
        assert len(asked_for) == 5 + 1  # a refused prompt may be accepted now
    assert (results.score.num_judgments, results.score.num_unanswered) == (4, 4)
    rows = read_jsonl_files([output / "answers.jsonl"])
    assert rows[0]["choices"][0]["turns"] == ["answer 1", "answer 3"]
    assert "too long" in rows[1]["errors"][0]
    second_turn = max(asked_for, key=lambda request: len(request["messages"]))
    assert [message["content"] for message in second_turn["messages"]] == ["A colour?", "answer 1", "Another one."]
    assert (second_turn["temperature"], second_turn["max_tokens"]) == (0.7, 6)
