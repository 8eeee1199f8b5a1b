"""`winnow eval-reward` as a user calls it: against a real server, several servers, killed and resumed, on bad input."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import RewardClient
from tests.pairs import open_pair
from tests.processes import winnow, winnow_in_process
from tests.score_jobs import DefinedService, GatedService, start_winnow, wait_in_process
from tests.scripted_server import NO_SERVER, scripted_server
from tests.served import ServerThread, tiny_serve_config
from tests.tiny_run import write_jsonl
from winnow.rows import read_jsonl


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """Yield a real server on tiny models."""
    config = tiny_serve_config(tmp_path_factory.mktemp("pair"))
    with ServerThread(config, open_pair(config)) as server_thread:
        yield server_thread


def make_pairs(num_pairs: int) -> list[dict[str, Any]]:
    """Return pairs of which every third has the longer completion as its chosen one, and every seventh none at all."""
    rows = []
    for index in range(num_pairs):
        texts = ["five", "The answer is six."]
        if index % 3 == 0:
            texts.reverse()
        if index % 7 == 6:
            texts[1] = ""
        rows.append({"prompt": f"What is {index} + 3?", "chosen": texts[0], "rejected": texts[1], "subset": "sums"})
    return rows


def arguments(address: str, folder: Path, *flags: str) -> list[str]:
    paths = ["--pairs", str(folder / "pairs.jsonl"), "--output", str(folder / "audit")]
    return ["eval-reward", "--address", address, *paths, *flags]


def read_report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "audit.json").read_text())
    return report


def printed_rows(stdout: str) -> list[str]:
    """Return the printed lines, with single spaces."""
    return [" ".join(line.split()) for line in stdout.splitlines()]


def test_a_real_server_is_audited_with_its_own_rewards(server: ServerThread, tmp_path: Path) -> None:
    rows = [
        {"prompt": "What is 2 + 3?", "chosen": "It is 5.", "rejected": "It is 6.", "subset": "hep-go", "id": 1},
        {"prompt": "Say it.", "chosen": "It", "rejected": "It", "subset": "hep-go", "id": 2},
        {"prompt": "Say it.", "chosen": "", "rejected": "The lazy dog.", "subset": "shp", "id": 1},
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    result = winnow_in_process(*arguments(server.address, tmp_path, "--beta", "2"))
    assert result.returncode == 0, result.stderr
    with RewardClient(server.address) as client:
        chosen, rejected = client.score(
            [{"role": "user", "content": "What is 2 + 3?"}], ["It is 5.", "It is 6."], beta=2.0
        )
    assert chosen.reward is not None
    assert rejected.reward is not None
    is_right = chosen.reward > rejected.reward
    report = read_report(tmp_path / "audit")
    accuracy = report["accuracy"]["by_subset"]["hep-go"]
    assert (accuracy["num_right"], accuracy["num_wrong"], accuracy["num_ties"]) == (is_right, not is_right, 1)
    assert report["accuracy"]["by_subset"]["shp"]["num_failed"] == 1
    assert report["statuses"] == {"empty_completion": 1}
    assert report["rewardbench"]["incomplete_subsets"] == {"hep-go": [2, 164], "shp": [1, 1741]}
    assert report["options"]["beta"] == 2.0
    assert report["server"]["instruct"]["name"] == server.config.instruct
    _, scored = next(read_jsonl(tmp_path / "audit" / "rewards.jsonl"))
    assert [reward["reward"] for reward in scored["rewards"]] == [chosen.reward, rejected.reward]
    leaderboard = json.loads((tmp_path / "audit" / "rewardbench" / "eval-set.json").read_text())
    assert leaderboard == {
        "chat_template": "lab",
        "hep-go": is_right / 2,
        "model": server.config.instruct,
        "model_type": "DPO",
        "ref_model": server.config.base,
    }
    assert "RewardBench's scores count 1 ties and 1 failed pairs as losses" in result.stdout
    assert "not RewardBench's data: hep-go (2 of 164), shp (1 of 1741)" in result.stdout


def test_recipe_rewardbench_scores_a_pair_as_one_request(server: ServerThread, tmp_path: Path) -> None:
    long = "The quick brown fox jumps over the lazy dog near the river bank. " * 4
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Say it.", "chosen": "", "rejected": long, "subset": "sums"}])
    result = winnow_in_process(*arguments(server.address, tmp_path, "--recipe", "rewardbench"))
    assert result.returncode == 0, result.stderr
    with RewardClient(server.address) as client:
        together = client.score([{"role": "user", "content": "Say it."}], ["", long], recipe="rewardbench")
    _, scored = next(read_jsonl(tmp_path / "audit" / "rewards.jsonl"))
    assert [reward["reward"] for reward in scored["rewards"]] == [completion.reward for completion in together]
    assert read_report(tmp_path / "audit")["options"]["recipe"] == "rewardbench"
    assert not (tmp_path / "audit" / "rewardbench").exists()


def test_llmbars_real_files_are_audited(server: ServerThread, tmp_path: Path, reference_data: Path) -> None:
    names = ("manual", "gptout")
    flags = ["--output", str(tmp_path)]
    for name in names:
        items = json.loads((reference_data / "llmbar" / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(items[:5]))
        flags += ["--pairs", str(tmp_path / f"{name}.json")]
    result = winnow_in_process("eval-reward", "--address", server.address, *flags)
    assert result.returncode == 0, result.stderr
    report = read_report(tmp_path)
    by_subset = report["accuracy"]["by_subset"]
    assert {name: accuracy["num_pairs"] for name, accuracy in by_subset.items()} == {"manual": 5, "gptout": 5}
    statuses: Counter[str] = Counter()
    for _, row in read_jsonl(tmp_path / "rewards.jsonl"):
        statuses.update(reward["status"] for reward in row["rewards"])
    # Some outputs are longer than the tiny models' context.
    assert statuses.keys() == {"ok", "too_long"}
    assert report["statuses"] == {"too_long": statuses["too_long"]}


def test_the_tables_show_subsets_and_length_bias(tmp_path: Path) -> None:
    """The scripted reward is the length of the text."""
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(7))
    with scripted_server(DefinedService()) as address:
        result = winnow_in_process(*arguments(address, tmp_path))
    assert result.returncode == 0, result.stderr
    rows = printed_rows(result.stdout)
    # Of pairs 0 to 5 the chosen completion is the longer one in 0 and 3; pair 6 has an empty one.
    assert "sums 7 33.3 9.7 .. 70.0 0 1" in rows
    assert "all 7 33.3 9.7 .. 70.0 0 1" in rows
    assert "chosen is shorter 4 0.0 0.0 .. 49.0 0 0" in rows
    assert "chosen is longer 2 100.0 34.2 .. 100.0 0 0" in rows
    assert "equal 0 - - 0 0" in rows
    assert "not scored: 1 empty_completion completions; their pairs are in no accuracy" in rows
    assert f"report: {tmp_path / 'audit' / 'audit.json'}" in result.stderr


def test_a_killed_audit_resumes_and_gives_the_same_report(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(80))
    with scripted_server(DefinedService()) as address:
        undisturbed = winnow_in_process(*arguments(address, tmp_path))
    assert undisturbed.returncode == 0, undisturbed.stderr
    (tmp_path / "audit").rename(tmp_path / "undisturbed")
    part = tmp_path / "audit" / "rewards.jsonl.part"
    service = GatedService(num_free=30)
    with scripted_server(service) as address:
        process = start_winnow(arguments(address, tmp_path))
        wait_in_process(lambda: part.exists() and part.read_bytes().count(b"\n") >= 15, process)
        process.kill()
        process.communicate()
        num_kept = part.read_bytes().count(b"\n")
        refused = winnow_in_process(*arguments(address, tmp_path))
        assert refused.returncode == 2
        assert "holds rewards of an audit that was stopped; continue with --resume" in refused.stderr
        service.gate.set()
        service.requests.clear()
        resumed = winnow_in_process(*arguments(address, tmp_path, "--resume"))
    assert (resumed.returncode, resumed.stdout) == (0, undisturbed.stdout), resumed.stderr
    assert service.num_seen == 80 - num_kept
    for name in ("audit.json", "rewards.jsonl"):
        assert (tmp_path / "audit" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_a_finished_audit_needs_no_server_and_is_not_replaced(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(7))
    with scripted_server(DefinedService()) as address:
        first = winnow_in_process(*arguments(address, tmp_path))
    report = (tmp_path / "audit" / "audit.json").read_bytes()
    refused = winnow_in_process(*arguments(NO_SERVER, tmp_path))
    assert (refused.returncode, "audit.json exists; set another --output, or --resume" in refused.stderr) == (2, True)
    resumed = winnow_in_process(*arguments(NO_SERVER, tmp_path, "--resume", "--timeout-s", "5"))
    assert (resumed.returncode, resumed.stdout) == (0, first.stdout)
    assert "is finished; its models are not checked" in resumed.stderr
    assert (tmp_path / "audit" / "audit.json").read_bytes() == report
    changed = winnow_in_process(*arguments(NO_SERVER, tmp_path, "--resume", "--beta", "2"))
    assert (changed.returncode, "options.beta: 1.0 -> 2.0" in changed.stderr) == (2, True)


def test_other_pairs_are_refused_and_leave_the_audit_as_it_is(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(3))
    with scripted_server(DefinedService()) as address:
        assert winnow_in_process(*arguments(address, tmp_path)).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "audit").iterdir()}
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(4))
    refused = winnow_in_process(*arguments(NO_SERVER, tmp_path, "--resume"))
    assert (refused.returncode, "rewards.jsonl has rewards of other pairs" in refused.stderr) == (2, True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "audit").iterdir()} == before


def test_several_servers_share_the_pairs(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(60))
    services = [GatedService(num_free=0), GatedService(num_free=0)]
    with scripted_server(services[0]) as first, scripted_server(services[1]) as second:
        process = start_winnow(arguments(f"{first},{second}", tmp_path))
        wait_in_process(lambda: all(service.num_seen for service in services), process)
        for service in services:
            service.gate.set()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert sum(service.num_seen for service in services) == 60
    assert "score: 60/60 prompts" in errors


def test_gold_scores_are_audited_with_the_servers_rewards(tmp_path: Path) -> None:
    """The scripted reward is the length of the text; the gold score of the middle length is the highest."""
    completions = ["x", "xx", "xxx"]
    rows = [{"prompt": f"Say {index}.", "completions": completions, "gold_scores": [0, 2, 1]} for index in range(4)]
    rows.append({"prompt": "Say it.", "completions": ["", "xx", "xxx"], "gold_scores": [0, None, 1]})
    rows.append({"prompt": "Say nothing.", "completions": [""], "gold_scores": [0]})
    write_jsonl(tmp_path / "gold.jsonl", rows)
    paths = ["--best-of-n", str(tmp_path / "gold.jsonl"), "--output", str(tmp_path / "audit")]
    with scripted_server(DefinedService()) as address:
        result = winnow_in_process("eval-reward", "--address", address, *paths)
    assert result.returncode == 0, result.stderr
    best_of_n = read_report(tmp_path / "audit")["best_of_n"]
    assert [(point["n"], point["num_prompts"]) for point in best_of_n["curve"]] == [(1, 5), (2, 4), (3, 4)]
    # Best of 2 of {1, 2}, {1, 3}, {2, 3}: gold 2, 1, 1. Best of 3: gold 1.
    means = [point["gold"]["mean"] for point in best_of_n["curve"]]
    assert means == pytest.approx([1.0, 4 / 3, 1.0])
    assert [point["gold_gain"]["mean"] for point in best_of_n["curve"]] == pytest.approx([0.0, 1 / 3, 0.0])
    assert best_of_n["completions_left_out"] == {"empty_completion": 2, "no gold score": 1}
    assert best_of_n["num_prompts_left_out"] == 1
    assert best_of_n["rank_correlation"]["mean"] == pytest.approx(0.5)
    lines = printed_rows(result.stdout)
    assert "2 4 1.333 ± 0.000 0.333 ± 0.000 0.667 ± 0.000 0.667 ± 0.000" in lines
    assert "rank correlation within a prompt: 0.500 ± 0.000" in lines
    assert "best of n leaves out: 2 empty_completion, 1 no gold score completions" in lines


def test_rewards_that_are_present_need_no_server(tmp_path: Path) -> None:
    plain = {"prompt": "a", "completions": ["x", "y"], "gold_scores": [0.0, 1.0], "rewards": [1.0, None]}
    write_jsonl(tmp_path / "plain.jsonl", [plain, {**plain, "rewards": [1.0, 2.0]}])
    scored = {**plain, "rewards": [{"reward": None, "status": "too_long"}, {"reward": 2.0, "status": "ok"}]}
    write_jsonl(tmp_path / "scored.jsonl", [scored, {**plain, "rewards": [1.0, 2.0]}])
    left_out = {}
    for name in ("plain", "scored"):
        paths = ["--best-of-n", str(tmp_path / f"{name}.jsonl"), "--output", str(tmp_path / name)]
        result = winnow_in_process("eval-reward", *paths)
        assert result.returncode == 0, result.stderr
        left_out[name] = read_report(tmp_path / name)["best_of_n"]["completions_left_out"]
    assert left_out == {"plain": {"no reward": 1}, "scored": {"too_long": 1}}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"gold_scores": None}, "'gold_scores' is null, should be a list with a number for each completion"),
        ({"gold_scores": [1]}, "1 gold_scores for 2 completions; give each of them one"),
        ({"gold_scores": [1, "2"]}, "gold_scores[1] is a text, should be a number or null"),
        ({"gold_scores": [1, True]}, "gold_scores[1] is true or false, should be a number or null"),
        ({"gold_scores": [1, float("nan")]}, "gold_scores[1] is nan; write null if there is none"),
        ({"completions": "x"}, "'completions' is a text, should be a list of texts"),
        ({"completions": ["x", 1]}, "completions[1] is a number, should be a text"),
        ({"prompt": None}, "a prompt row needs 'messages' (a list) or 'prompt' (a text)"),
        ({"rewards": [1, 2]}, "some rows have 'rewards' and others have none"),
    ],
)
def test_a_malformed_row_of_gold_scores_is_found_before_any_is_scored(
    tmp_path: Path, fields: dict[str, Any], error: str
) -> None:
    row = {"prompt": "a", "completions": ["x", "y"], "gold_scores": [0.0, 1.0]}
    write_jsonl(tmp_path / "gold.jsonl", [row, {**row, **fields}])
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(2))
    result = winnow_in_process(*arguments(NO_SERVER, tmp_path, "--best-of-n", str(tmp_path / "gold.jsonl")))
    assert result.returncode == 1
    assert result.stderr.startswith(f"winnow: {tmp_path / 'gold.jsonl'} line 2: ")
    assert error in result.stderr
    assert not (tmp_path / "audit").exists()


def test_rewards_of_winnow_score_are_checked(tmp_path: Path) -> None:
    row = {"prompt": "a", "completions": ["x", "y"], "gold_scores": [0.0, 1.0], "rewards": [{"reward": 1.0}, {}]}
    write_jsonl(tmp_path / "gold.jsonl", [row])
    result = winnow_in_process("eval-reward", "--best-of-n", str(tmp_path / "gold.jsonl"))
    assert result.returncode == 1
    assert "gold.jsonl line 1: rewards[1] has no 'reward'" in result.stderr


def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(2))
    nothing = winnow_in_process("eval-reward", "--address", NO_SERVER)
    assert (nothing.returncode, nothing.stderr) == (2, "winnow: give --pairs FILE or --best-of-n FILE\n")
    flags = ["--pairs", str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "audit")]
    no_address = winnow_in_process("eval-reward", *flags)
    assert no_address.returncode == 2
    assert "has no rewards, so a server is needed; give --address HOST:PORT" in no_address.stderr
    assert not (tmp_path / "audit").exists()


def test_an_audit_in_which_nothing_could_be_scored_fails(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "", "rejected": "b"}])
    write_jsonl(tmp_path / "gold.jsonl", [{"prompt": "a", "completions": [""], "gold_scores": [1]}])
    with scripted_server(DefinedService()) as address:
        pairs = winnow_in_process(*arguments(address, tmp_path))
        paths = ["--best-of-n", str(tmp_path / "gold.jsonl"), "--output", str(tmp_path / "gold")]
        gold = winnow_in_process("eval-reward", "--address", address, *paths)
    assert pairs.returncode == 1
    assert "no pair could be scored: 1 empty_completion" in pairs.stderr
    assert "pairs 1 - - 0 1" in printed_rows(pairs.stdout)
    assert gold.returncode == 1
    assert "no completion has both a reward and a gold score: 1 empty_completion" in gold.stderr


def test_a_server_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(3))
    result = winnow(*arguments(NO_SERVER, tmp_path, "--timeout-s", "2"))
    assert result.returncode == 1
    assert NO_SERVER in result.stderr
    assert result.stderr.count("\n") == 1
