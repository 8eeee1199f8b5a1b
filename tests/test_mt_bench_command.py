"""`winnow eval MODEL --suite mt-bench`: a checkpoint, a run's round, a server, work that is kept, flags at fault."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from eval.judging.suite import LocalModel
from eval.suites.mt_bench_command import MtBenchFlags, request_of
from sampler.engines.endpoint_settings import EndpointSettings
from tests.chat_server import chat_server, openai_error, prompts_fixture  # noqa: F401
from tests.processes import winnow_in_process
from tests.test_judge_suite import QUESTIONS, rating, stored
from tests.tiny_models import make_model
from tests.tiny_run import write_jsonl
from winnow import cli
from winnow.errors import ConfigError, ModelError, UsageError
from winnow.rows import read_jsonl_files
from winnow.run_config import PolicyConfig, RunConfig, SamplingConfig
from winnow.rundir import start_run
from winnow.suite_flags import FLAGS_OF_ALL, FLAGS_OF_SUITE

REFERENCES = [{"question_id": 101, "choices": [{"turns": ["5", "10"]}]}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model("llama", tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def files(tmp_path: Path, prompts: str) -> list[str]:
    """Write questions and references beside the judge prompts; return the flags that name them."""
    assert Path(prompts).parent == tmp_path
    questions = write_jsonl(tmp_path / "question.jsonl", QUESTIONS)
    references = write_jsonl(tmp_path / "reference.jsonl", REFERENCES)
    return ["--suite", "mt-bench", "--questions", questions, "--references", references, "--max-tokens", "6"]


@pytest.fixture
def flags(model: str, tmp_path: Path, prompts: str) -> Callable[..., MtBenchFlags]:
    """Return a function that makes the flags of a call with the defaults, but for some."""

    def made(**changes: Any) -> MtBenchFlags:
        defaults = MtBenchFlags(
            model=model,
            checkpoint=model,
            round_number=0,
            questions=Path(write_jsonl(tmp_path / "question.jsonl", QUESTIONS)),
            references=None,
            prompts=Path(prompts),
            judge={"model": "judge-1"},
            max_unreadable=0.1,
            num_runs=1,
            num_rejudged=0,
            base_url=None,
            template="lab",
            system_prompt=None,
            eos_token=None,
            max_tokens=6,
            max_tokens_name="max_tokens",
            temperature=None,
            seed=0,
            engine=None,
            dtype=None,
            output=None,
        )
        return replace(defaults, **changes)

    return made


def test_a_checkpoint_is_evaluated_once(model: str, files: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    with chat_server(rating) as (address, requests):
        judge = ["--judge-model", "judge-1", "--judge-base-url", address, "--judge-temperature", "none"]
        repeated = ["--template", "lab", "--num-runs", "2", "--rejudge", "1", "--output", str(output)]
        arguments = ["eval", model, *files, *judge, *repeated]
        result = winnow_in_process(*arguments)
        assert result.returncode == 0, result.stderr
        # The check, and two judgings of two turns of two questions in two runs.
        assert len(requests) == 1 + 16
        before = stored(output)
        again = winnow_in_process(*arguments)
        assert len(requests) == 2 + 16
    assert again.stdout == result.stdout
    assert stored(output) == before
    assert "temperature" not in requests[1]
    lines = result.stdout.splitlines()
    assert lines[0].startswith("MT-Bench of tiny, judged by judge-1, 2 questions: ")
    assert lines[1].startswith("2 runs: mean ")
    assert any(line.startswith("noise of the judge: sd ") for line in lines)
    assert lines[-1] == str(output)
    compared = winnow_in_process("compare", str(output), str(output))
    assert compared.returncode == 0, compared.stderr
    assert "judged score" in compared.stdout


def test_a_round_has_the_settings_of_its_run(
    model: str, tmp_path: Path, flags: Callable[..., MtBenchFlags], files: list[str]
) -> None:
    policy = PolicyConfig(model=model, chat_template="plain", system_prompt="Be brief.")
    config = RunConfig(name="tiny-run", runs_dir=str(tmp_path), policy=policy, sampling=SamplingConfig(shard_size=7))
    run = start_run(config, is_resumed=False)
    request = request_of(flags(model=str(run.root), checkpoint=run.policy_path(0), template=None))
    assert isinstance(request.model, LocalModel)
    assert (request.model.policy, request.model.sampling) == (policy, config.sampling)
    assert request.name == "tiny-run-round-0"
    changed = request_of(flags(model=str(run.root), checkpoint=run.policy_path(0), template="lab"))
    assert isinstance(changed.model, LocalModel)
    assert (changed.model.policy.chat_template, changed.model.policy.system_prompt) == ("lab", "Be brief.")
    with chat_server(rating) as (address, _):
        judge = ["--judge-model", "judge-1", "--judge-base-url", address, "--output", str(tmp_path / "out")]
        result = winnow_in_process("eval", str(run.root), "--round", "0", *files, *judge)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("MT-Bench of tiny-run-round-0, judged by judge-1")


def test_a_server_is_evaluated(files: list[str], tmp_path: Path) -> None:
    with chat_server(lambda _: "an answer") as (server, requests), chat_server(rating) as (address, _):
        judge = ["--judge-model", "judge-1", "--judge-base-url", address, "--output", str(tmp_path / "out")]
        result = winnow_in_process("eval", "org/served", "--base-url", server, *files, *judge, "--temperature", "0.5")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("MT-Bench of org/served, judged by judge-1, 2 questions: ")
    assert {(request["model"], request["temperature"], request["max_tokens"]) for request in requests} == {
        ("org/served", 0.5, 6)
    }
    assert len(read_jsonl_files([tmp_path / "out" / "answers.jsonl"])) == 2


def test_the_default_folder_is_named_by_the_inputs(flags: Callable[..., MtBenchFlags]) -> None:
    folder = request_of(flags()).output
    assert folder.parent == Path("eval-results")
    assert folder.name.startswith("tiny-mt-bench-")
    assert request_of(flags(num_runs=5, num_rejudged=2)).output == folder
    changed: list[dict[str, Any]] = [{"seed": 1}, {"system_prompt": "Be brief."}, {"template": "plain"}]
    changed.append({"judge": {"model": "judge-2"}})
    folders = {request_of(flags(**changes)).output for changes in changed}
    assert len(folders | {folder}) == 5


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--limit", "2"], "--limit belongs to --suite card; take it out, or give --suite card"),
        (["--chat-template"], "--chat-template belongs to --suite card"),
        (["--round", "1"], "is not a run's folder and has no round 1"),
        ([], "--judge-model is missing; --suite mt-bench needs --questions and --judge-model"),
        (["--judge-model", "m", "--base-url", "http://localhost:1/v1", "--dtype", "float32"], "--dtype is for a"),
        (["--judge-model", "m", "--base-url", "http://localhost:1/v1", "--round", "1"], "--round is for a checkpoint"),
        (["--judge-model", "m", "--judge-temperature", "warm"], "winnow eval: temperature"),
        (["--judge-model", "m", "--engine", "hf"], "winnow eval: engine"),
    ],
)
def test_wrong_flags_are_refused_by_name(model: str, files: list[str], arguments: list[str], fault: str) -> None:
    result = winnow_in_process("eval", model, *files, *arguments)
    assert result.returncode == 2
    assert fault in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_values_are_checked_before_a_model_is_loaded(flags: Callable[..., MtBenchFlags], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no template; .* \(flags: --template, --eos-token\)"):
        request_of(flags(template=None))
    with pytest.raises(UsageError, match="--questions is missing"):
        request_of(flags(questions=None))
    with pytest.raises(UsageError, match=r"no judge_prompts.jsonl beside .* --prompts"):
        request_of(flags(questions=tmp_path / "x" / "y" / "question.jsonl", prompts=None))
    with pytest.raises(ConfigError, match="'ftp://judge' is not an HTTP address"):
        request_of(flags(judge={"model": "judge-1", "base_url": "ftp://judge"}))
    with pytest.raises(UsageError, match="--max-tokens-name 'tokens' is unknown; give max_tokens or"):
        request_of(flags(checkpoint=None, template=None, max_tokens_name="tokens"))


def test_errors_of_the_server_and_the_judge_name_different_flags(files: list[str], tmp_path: Path) -> None:
    settings = EndpointSettings("model", None, "served")
    assert [settings.name_of(key) for key in ("model", "base_url")] == ["MODEL", "--base-url"]
    missing = openai_error(404, "Not found.", None, None)
    judge = ["--judge-model", "judge-1", "--output", str(tmp_path / "out")]
    with chat_server(lambda _: missing) as (address, _):
        arguments = ["--base-url", "http://localhost:1/v1", *judge, "--judge-base-url", address]
        result = winnow_in_process("eval", "served", *files, *arguments)
        assert "set --judge-base-url to the address" in result.stderr
        with chat_server(rating) as (judge_address, _):
            arguments = ["--base-url", address, *judge, "--judge-base-url", judge_address]
            result = winnow_in_process("eval", "served", *files, *arguments)
    assert "set --base-url to the address" in result.stderr
    assert json.loads((tmp_path / "out" / "inputs.json").read_text())["name"] == "served"


def test_every_flag_of_the_verb_has_its_place() -> None:
    parameters = {parameter.name for parameter in typer.main.get_command(cli.app).commands["eval"].params}  # type: ignore[attr-defined]
    of_suites = set.union(*FLAGS_OF_SUITE.values(), FLAGS_OF_ALL)
    assert parameters - of_suites == {"model", "round_number", "suite"}
    assert of_suites <= parameters
