"""`winnow score` against a real server: rows keep what they bring, and a row without completions has no rewards."""

from pathlib import Path
from typing import Any

from sampler.hosted import reward_client
from tests.tiny_run import make_pair, winnow, write_jsonl
from winnow.config import RewardConfig, parse_config
from winnow.rows import read_jsonl


def test_rows_come_back_in_order_with_their_rewards(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "What is 2 + 3?", "completions": ["5", ""], "id": "first"},
        {"prompt": "Nothing to score.", "completions": []},
        {"messages": [{"role": "user", "content": "Hi"}], "completions": ["Hello <|user|>", "Hello"]},
    ]
    in_path, out_path = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    config = parse_config({"server": make_pair(tmp_path)}, RewardConfig, "test")
    with reward_client(config, tmp_path) as client:
        arguments = ["--address", client.address, "--input", in_path, "--output", str(out_path)]
        result = winnow("score", *arguments)
    assert result.returncode == 0, result.stderr
    assert "1 empty_completion, 1 invalid_conversation, 2 ok" in result.stdout
    scored = [row for _, row in read_jsonl(out_path)]
    assert [{key: row[key] for key in given} for row, given in zip(scored, rows, strict=True)] == rows
    statuses = [[reward["status"] for reward in row["rewards"]] for row in scored]
    assert statuses == [["ok", "empty_completion"], [], ["invalid_conversation", "ok"]]
    first = scored[0]["rewards"][0]
    assert first["reward"] == first["instruct_logp"] - first["base_logp"]
