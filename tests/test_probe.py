"""The probe: prompts drawn once, which every round's policy completes and no round trains on."""

import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from sampler.metrics import probe_metrics, probe_rewards
from sampler.plan import plan
from sampler.probe import sample_probe, score_probe
from sampler.prompts import draw_probe, draw_prompts, read_pool, without_probe
from tests.processes import winnow, winnow_in_process
from tests.tiny_run import ledger_pieces, run_until, tiny_config, write_config, write_jsonl
from winnow.errors import InputError
from winnow.records import Message, Prompt, Reward, make_prompt
from winnow.rows import read_jsonl, read_parquet
from winnow.run_config import RunConfig
from winnow.rundir import Run, open_run

ROUNDS = (0, 1)
NUM_POOL = 60
NUM_PROBE = 5
PROBE_PIECES = ["sample/0000", "sample/0001", "score/0000", "score/0001", "metrics"]


def pool_of(**sizes: int) -> list[Prompt]:
    pool = []
    for source, size in sizes.items():
        for index in range(size):
            pool.append(make_prompt(source, (Message(role="user", content=f"{source} {index}"),)))
    return pool


def ids(prompts: list[Prompt]) -> set[str]:
    return {prompt.prompt_id for prompt in prompts}


def stored_prompts(path: Path) -> list[Prompt]:
    return [Prompt.model_validate(row) for _, row in read_jsonl(path)]


def content(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe")


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, Any]:
    """Return a run of one round with a probe of five prompts, in two shards; the server computes prompt by prompt.

    The last bits of a reward depend on what is computed with it, and that depends on the times of the calls.
    """
    config = tiny_config(folder)
    config["reward"]["server"]["token_budget"] = 1
    numbers = [{"prompt": f"Double {number}."} for number in range(NUM_POOL)]
    # A random model seldom writes its EOS. With a quarter of the vocabulary as stop ids, most completions are finished.
    stop_ids = {"eos_token_id": list(range(100, 200))}
    (folder / "student" / "generation_config.json").write_text(json.dumps(stop_ids))
    config["prompts"] = {"num_prompts": 8, "files": [{"path": write_jsonl(folder / "numbers.jsonl", numbers)}]}
    config["rounds"] = {**config["rounds"], "num_rounds": 1}
    config["evaluation"] = {"probe": {"num_prompts": NUM_PROBE}}
    return config


@pytest.fixture(scope="module")
def undisturbed(folder: Path, config: dict[str, Any]) -> Path:
    """Return the folder of a run that was not killed."""
    result = winnow("run", write_config(folder, config))
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "tiny"


def test_the_probe_takes_a_tenth_of_each_source_at_most() -> None:
    pool = pool_of(a=200, b=50, c=9)
    drawn = draw_probe(pool, 256, seed=0, is_shared=True)
    assert Counter(prompt.source for prompt in drawn) == {"a": 20, "b": 5}
    even = draw_probe(pool, 10, seed=0, is_shared=True)
    assert Counter(prompt.source for prompt in even) == {"a": 5, "b": 5}
    assert draw_probe(pool_of(a=9, b=1), 256, seed=0, is_shared=True) == []


def test_a_probe_of_its_own_files_takes_all_of_them() -> None:
    drawn = draw_probe(pool_of(a=3, b=40), 20, seed=0, is_shared=False)
    assert Counter(prompt.source for prompt in drawn) == {"a": 3, "b": 17}


def test_the_draw_of_the_probe_depends_on_the_seed_alone() -> None:
    pool = pool_of(a=200, b=50)
    drawn = draw_probe(pool, 16, seed=0, is_shared=True)
    assert draw_probe(pool[::-1], 16, seed=0, is_shared=True) == drawn
    assert ids(draw_probe(pool, 16, seed=1, is_shared=True)) != ids(drawn)


def test_no_round_draws_a_prompt_of_the_probe_however_many_rounds_there_are() -> None:
    pool = pool_of(a=200, b=50)
    probe = draw_probe(pool, 16, seed=0, is_shared=True)
    remaining = without_probe(pool, probe)
    drawn: set[str] = set()
    for round_number in range(1, 12):
        drawn |= ids(draw_prompts(remaining, 40, round_number, seed=0))
    assert drawn == ids(pool) - ids(probe)


def test_a_text_of_the_probe_is_no_prompt_of_another_source() -> None:
    messages = (Message(role="user", content="x"),)
    probe = [make_prompt("a", messages)]
    kept = make_prompt("a", (Message(role="user", content="y"),))
    assert without_probe([make_prompt("b", messages), kept], probe) == [kept]


def test_a_probe_that_leaves_no_prompt_for_the_rounds_is_refused() -> None:
    pool = pool_of(a=3)
    with pytest.raises(InputError, match=r"no prompts are left for the rounds: evaluation.probe.files holds all"):
        without_probe(pool, pool)


def test_metrics_of_the_probe_of_a_worked_example() -> None:
    prompts = pool_of(a=2, b=1)
    values: dict[int, list[float | None]] = {0: [1.0, 3.0], 1: [2.0, None], 2: [None, None]}
    rewards: dict[str, list[Reward]] = {}
    for index, prompt_values in values.items():
        prompt_id = prompts[index].prompt_id
        rewards[prompt_id] = []
        for completion_id, value in enumerate(prompt_values):
            status = "ok" if value is not None else "too_long"
            row = Reward(prompt_id=prompt_id, completion_id=completion_id, reward=value, status=status, num_tokens=4)
            rewards[prompt_id].append(row)
    metrics = probe_metrics(rewards, num_completions=2)
    assert (metrics["mean_reward"], metrics["best_of_n_reward"]) == (2.0, 2.5)
    assert (metrics["max_at_n"], metrics["max_at_n_prompts"]) == ([2.0, 2.5], [2, 2])
    assert (metrics["num_prompts"], metrics["num_scored"], metrics["failures"]) == (3, 3, {"too_long": 3})
    rows = probe_rewards(prompts, rewards)
    assert [(row.source, row.num_eligible, row.mean_reward, row.best_of_n_reward) for row in rows] == [
        ("a", 2, 2.0, 3.0),
        ("a", 1, 2.0, 2.0),
        ("b", 0, None, None),
    ]
    assert probe_metrics({}, num_completions=2)["mean_reward"] is None


def test_every_round_has_the_same_probe_and_draws_none_of_its_prompts(undisturbed: Path) -> None:
    run = open_run(undisturbed)
    probe = stored_prompts(run.probe_prompts_path)
    assert len(probe) == NUM_PROBE
    for round_number in ROUNDS:
        rewards = read_parquet(run.probe_dir(round_number) / "rewards", Reward)
        assert [row.prompt_id for row in rewards] == [prompt.prompt_id for prompt in probe for _ in range(3)]
    assert not ids(stored_prompts(run.prompts_path(1))) & ids(probe)
    assert len(read_pool(run.config.prompts.files)) == NUM_POOL  # type: ignore[union-attr]


def test_every_round_from_round_0_has_its_numbers(undisturbed: Path) -> None:
    run = open_run(undisturbed)
    for round_number in ROUNDS:
        metrics = content(run.probe_path(round_number))
        rows = [row for _, row in read_jsonl(run.probe_rewards_path(round_number))]
        means = [row["mean_reward"] for row in rows if row["num_eligible"]]
        assert (metrics["round"], metrics["num_prompts"], metrics["num_completions"]) == (round_number, NUM_PROBE, 3)
        assert metrics["by_source"] == {"numbers": NUM_PROBE}
        assert metrics["mean_reward"] == pytest.approx(fmean(means))
        assert metrics["best_of_n_reward"] == metrics["max_at_n"][-1] >= metrics["mean_reward"]
        assert len(metrics["max_at_n"]) == 3
    assert content(run.probe_path(0))["mean_reward"] != content(run.probe_path(1))["mean_reward"]


def test_peak_json_compares_the_rounds_on_the_probe(undisturbed: Path) -> None:
    peak = content(undisturbed / "peak.json")
    for round_number in ROUNDS:
        probe = peak["rounds"][round_number]["probe"]
        metrics = content(undisturbed / f"round-{round_number:02d}" / "probe.json")
        assert probe["mean_reward"] == pytest.approx(metrics["mean_reward"])
        assert probe["best_of_n_reward"] == pytest.approx(metrics["best_of_n_reward"])
        assert probe["num_prompts"] == metrics["max_at_n_prompts"][0]
    [gain] = peak["probe_gains"]
    assert gain["round"] == 1
    assert 1 < gain["num_prompts"] <= NUM_PROBE
    assert peak["saturation_round"] in (0, None)
    assert (peak["saturation_round"] is None) == (gain["p_value"] < 0.05)


@pytest.mark.timeout(900)  # four runs, on a slow processor
def test_a_killed_run_repeats_no_piece_of_the_probe_and_ends_with_the_same_files(
    folder: Path, config: dict[str, Any], undisturbed: Path
) -> None:
    killed = folder / "runs" / "killed"
    path = write_config(folder, {**config, "name": "killed"}, "killed.yaml")
    command = ["run", path]
    for piece in ("round-00/probe/sample/0000", "round-01/probe/score/0000"):
        run_until(command, lambda piece=piece: piece in ledger_pieces(killed))  # type: ignore[misc]
        command = ["run", path, "--resume"]
    result = winnow("run", path, "--resume")
    assert result.returncode == 0, result.stderr
    pieces = Counter(ledger_pieces(killed))
    expected = ["probe/prompts"]
    for round_number in ROUNDS:
        expected += [f"round-{round_number:02d}/probe/{piece}" for piece in PROBE_PIECES]
    assert {piece: count for piece, count in pieces.items() if "probe" in piece} == dict.fromkeys(expected, 1)
    assert set(pieces) == set(ledger_pieces(undisturbed))
    for name in ("probe/prompts.jsonl", "round-00/probe.json", "round-01/probe.json", "round-01/selected.jsonl"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_resuming_a_finished_run_probes_nothing(folder: Path, config: dict[str, Any], undisturbed: Path) -> None:
    before = ledger_pieces(undisturbed)
    result = winnow("run", write_config(folder, config), "--resume")
    assert result.returncode == 0, result.stderr
    assert ledger_pieces(undisturbed) == before


def test_status_counts_the_pieces_of_the_probe(undisturbed: Path) -> None:
    status = json.loads(winnow("status", str(undisturbed), "--json").stdout)
    assert status["probe_pieces"] == 5
    assert [round_status["probe"] for round_status in status["rounds"]] == [5, 5]
    assert "5/5" in winnow("status", str(undisturbed)).stdout


def test_the_probe_is_on_by_default_for_a_run_with_rounds_and_off_by_null(config: dict[str, Any]) -> None:
    default = RunConfig.model_validate({**config, "evaluation": {}})
    assert default.probe is not None
    assert default.probe.num_prompts == 256
    assert RunConfig.model_validate({**config, "evaluation": {"probe": None}}).probe is None
    start_alone = {**config, "evaluation": {}, "rounds": {"num_rounds": 0}}
    assert RunConfig.model_validate(start_alone).probe is None


def test_the_plan_has_the_probe_of_every_round_with_its_tokens(config: dict[str, Any]) -> None:
    stages = [stage for stage in plan(RunConfig.model_validate(config)) if stage.name.startswith("probe")]
    assert [stage.round_number for stage in stages] == [0, 1]
    assert {(stage.name, stage.num_rows, stage.max_tokens) for stage in stages} == {("probe (N = 3)", 15, 3 * 15 * 12)}
    default = RunConfig.model_validate({**config, "evaluation": {}})
    assert [stage.num_rows for stage in plan(default) if stage.name.startswith("probe")] == [18, 18]
    without = RunConfig.model_validate({**config, "evaluation": {"probe": None}})
    assert not [stage for stage in plan(without) if stage.name.startswith("probe")]


def dry_run(folder: Path, config: dict[str, Any], probe: dict[str, Any] | None) -> "tuple[int, str, str]":
    changed = {**config, "name": "planned", "evaluation": {"probe": probe}}
    result = winnow_in_process("run", write_config(folder, changed, "planned.yaml"), "--dry-run")
    return result.returncode, result.stdout, result.stderr


def test_the_preflight_tells_a_small_probe_and_warns_of_an_empty_one(folder: Path, config: dict[str, Any]) -> None:
    returncode, stdout, _ = dry_run(folder, config, {})
    assert returncode == 0
    assert "checked: the probe has 6 prompts, a tenth of each source (evaluation.probe.num_prompts: 256)" in stdout
    assert "the probe has" not in dry_run(folder, config, {"num_prompts": 5})[1]
    assert "the probe has" not in dry_run(folder, config, None)[1]
    few = write_jsonl(folder / "few.jsonl", [{"prompt": f"Halve {number}."} for number in range(9)])
    scarce = {**config, "prompts": {"num_prompts": 8, "files": [{"path": few}]}}
    assert "warning: the probe has no prompts, since no source of the pool has ten" in dry_run(folder, scarce, {})[1]


def test_the_preflight_reads_the_files_of_the_probe(folder: Path, config: dict[str, Any]) -> None:
    path = write_jsonl(folder / "held-out.jsonl", [{"prompt": "Halve 3."}, {"prompt": "Halve 4."}])
    returncode, stdout, _ = dry_run(folder, config, {"files": [{"path": path}]})
    assert returncode == 0
    assert "checked: 1 file of the probe's prompts, 2 of 2 rows" in stdout
    returncode, _, stderr = dry_run(folder, config, {"files": [{"path": str(folder / "nowhere.jsonl")}]})
    assert returncode == 2
    assert "nowhere.jsonl cannot be read" in stderr


def test_an_empty_probe_has_no_numbers_and_stops_no_stage(tmp_path: Path, config: dict[str, Any]) -> None:
    few = write_jsonl(tmp_path / "few.jsonl", [{"prompt": "Halve 3."}])
    scarce = {**config, "prompts": {"num_prompts": 1, "files": [{"path": few}]}}
    run = Run(tmp_path, RunConfig.model_validate(scarce))
    sample_probe(run, 0)
    score_probe(run, 0)
    metrics = content(run.probe_path(0))
    assert (metrics["num_prompts"], metrics["mean_reward"], metrics["best_of_n_reward"]) == (0, None, None)
