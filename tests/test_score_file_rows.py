"""`winnow score`: a malformed row is named by its line before any is scored; a row too large to send has a status."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from reward_server.pb import reward_pb2 as pb
from tests.processes import winnow
from tests.score_jobs import DefinedService, arguments, make_rows
from tests.scripted_server import NO_SERVER, scripted_server
from tests.tiny_run import write_jsonl
from winnow.rows import read_jsonl

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}


class RefusingService(DefinedService):
    """Refuses every request after the first as malformed."""

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        if request.messages.messages[0].content != "Say 0.":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "I do not like it")
        return super().Score(request, context)


def row_of(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages), "completions": ["x"]}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"prompt": "a", "completions": ["\\ud800"]}', "line 1: an escape"),
        (b"[" * 100_000, "line 1: JSON that cannot be read (maximum recursion"),
        (b'{"prompt": "a", "completions": [], "n": ' + b"9" * 5000 + b"}", "line 1: JSON that cannot be read (Exceeds"),
        (b'{"prompt": "a", "completions": ["b"', "line 1: not valid JSON (Expecting ',' delimiter at column 36)"),
        (b'{"prompt": "a",', "line 1: not valid JSON (Expecting property name enclosed in double quotes at column 16)"),
        (b'{"prompt": "a\xc3\xa9\xff"}', "line 1: not UTF-8 text (byte 0xff at column 15); save it as UTF-8"),
        (b'\n{"prompt": "a", "completions": []}\r\n\n{"prompt": "\xe9"}', "line 4: not UTF-8 text (byte 0xe9"),
        (b"[1]", "line 1: should be a JSON object, is a list"),
        (b'{"prompt": "a", "completions": [], "v": NaN}', "line 1: v is NaN, which JSON has no word for; write null"),
        (
            b'{"prompt": "a", "completions": [], "v": {"w": [0, -1e999]}}',
            "line 1: v.w[1] is -Infinity, which JSON",
        ),
    ],
)
def test_a_line_without_a_row_is_an_error_of_one_line(tmp_path: Path, line: bytes, error: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(line + b"\n")
    result = winnow(*arguments(NO_SERVER, tmp_path))
    assert result.returncode == 1
    assert error in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"prompt": "hi"}, "'completions' should be a list of texts, is missing"),
        ({"prompt": "hi", "completions": "no list"}, "'completions' should be a list of texts, is a text"),
        ({"prompt": "hi", "completions": ["a", 1]}, "should be a list of texts; completions[1] is a number"),
        ({"prompt": "hi", "completions": [[5, 6]]}, "should be a list of texts; completions[0] is a list"),
        ({"prompt": 3, "completions": []}, "needs 'messages' (a list) or 'prompt' (a text); 'prompt' is a number"),
        (row_of({"role": "usr", "content": "a"}), "messages[0].role 'usr' is none of system, user, assistant"),
        (row_of(USER, ASSISTANT, {"role": "user"}), "messages[2]: content is missing"),
        (row_of({"role": "user", "content": None}), "messages[0].content is null, should be a text"),
        (row_of({**USER, "name": "n"}), "messages[0] has 'name', where a message has role and content only"),
        (row_of("a"), "messages[0] is a text, should be an object with role and content"),
        (
            row_of(USER, ASSISTANT),
            "messages[1] is the assistant's, where the last one should be the user's; move it to",
        ),
        (row_of(USER, USER), "turn 2 should be assistant, is user"),
        ({**row_of(USER), "prompt": "a"}, "has both 'messages' and 'prompt'; leave one of them out"),
        ({**row_of(USER), "rewards": []}, "has a field 'rewards', which the new rewards would replace; rename it"),
    ],
)
def test_a_malformed_row_at_the_end_is_named_before_anything_is_scored(
    tmp_path: Path, row: dict[str, Any], error: str
) -> None:
    write_jsonl(tmp_path / "in.jsonl", [*make_rows(3), row])
    service = DefinedService()
    with scripted_server(service) as address:
        result = winnow(*arguments(address, tmp_path))
    assert (result.returncode, service.num_seen) == (1, 0)
    assert "in.jsonl line 4: " in result.stderr
    assert error in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.glob("out*")) == []


def test_a_row_that_the_server_refuses_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n" + "\n\n".join(map(json.dumps, make_rows(2))))
    with scripted_server(RefusingService()) as address:
        result = winnow(*arguments(address, tmp_path))
    assert result.returncode == 2
    assert "in.jsonl line 5: the reward server refuses the request as malformed: I do not like it" in result.stderr
    assert "1 finished row is kept in" in result.stderr


def test_completions_too_large_for_a_message_have_a_status_and_the_others_rewards(tmp_path: Path) -> None:
    long = "x" * 3000
    rows = [
        {"prompt": "first", "completions": ["a", "bb"]},
        {"prompt": "some are too large", "completions": ["ccc", long, ""]},
        {"prompt": long, "completions": ["a", "bb"]},
        {"prompt": "too large together", "completions": ["x" * 900] * 3},
        *({"prompt": f"then {index}", "completions": ["x" * index]} for index in range(1, 60)),
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    service = DefinedService()
    service.max_message_bytes = 2000
    with scripted_server(service) as address:
        result = winnow(*arguments(address, tmp_path))
    assert result.returncode == 0, result.stderr
    assert "1 empty_completion, 65 ok, 3 too_long" in result.stdout
    scored = [row for _, row in read_jsonl(tmp_path / "out.jsonl")]
    for row, scored_row in zip(rows, scored, strict=True):
        assert {key: scored_row[key] for key in row} == row
    expected = [[1, 2], [3, None, None], [None, None], [900] * 3]
    for scored_row, rewards in zip(scored, expected, strict=False):
        assert [reward["reward"] for reward in scored_row["rewards"]] == rewards
    assert [row["rewards"][0]["reward"] for row in scored[4:]] == list(range(1, 60))
    assert "bytes larger than the server takes" in scored[1]["rewards"][1]["error"]
    assert "raise the server's max_message_bytes" in scored[1]["rewards"][1]["error"]


def test_a_row_that_recipe_rewardbench_cannot_send_in_one_request_has_a_status(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": ["x" * 900] * 3}, {"prompt": "p", "completions": ["x", "xx"]}]
    write_jsonl(tmp_path / "in.jsonl", rows)
    service = DefinedService()
    service.max_message_bytes = 2000
    with scripted_server(service) as address:
        result = winnow(*arguments(address, tmp_path, "--recipe", "rewardbench"))
    assert result.returncode == 0, result.stderr
    assert "2 ok, 3 too_long" in result.stdout
    (_, first), _ = read_jsonl(tmp_path / "out.jsonl")
    assert "these completions do not fit into one" in first["rewards"][0]["error"]
