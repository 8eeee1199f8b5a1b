"""`winnow score`: a row that is none is named by its line before any is scored; what cannot be sent has a status."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from reward_server.pb import reward_pb2 as pb
from tests.score_jobs import DefinedService, arguments, rows
from tests.scripted_server import scripted_server
from tests.tiny_run import winnow, write_jsonl
from winnow.rows import read_jsonl

USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}


class RefusingService(DefinedService):
    """Calls every request after the first malformed."""

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        if request.messages.messages[0].content != "Say 0.":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "I do not like it")
        return super().Score(request, context)


def asked(*messages: Any) -> dict[str, Any]:
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
def test_lines_that_are_no_rows_are_one_line(tmp_path: Path, line: bytes, error: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(line + b"\n")
    result = winnow(*arguments("127.0.0.1:1", tmp_path))
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
        (asked({"role": "usr", "content": "a"}), "messages[0].role 'usr' is none of system, user, assistant"),
        (asked(USER, ANSWER, {"role": "user"}), "messages[2]: content is missing"),
        (asked({"role": "user", "content": None}), "messages[0].content is null, should be a text"),
        (asked({**USER, "name": "n"}), "messages[0] has 'name', where a message has role and content only"),
        (asked("a"), "messages[0] is a text, should be an object with role and content"),
        (asked(USER, ANSWER), "messages[1] is the assistant's, where the last one should be the user's; move it to"),
        (asked(USER, USER), "turn 2 should be assistant, is user"),
        ({**asked(USER), "prompt": "a"}, "has both 'messages' and 'prompt'; leave one of them out"),
        ({**asked(USER), "rewards": []}, "has a field 'rewards', which those of the output would replace; rename it"),
    ],
)
def test_a_malformed_row_at_the_end_is_named_before_anything_is_scored(
    tmp_path: Path, row: dict[str, Any], error: str
) -> None:
    write_jsonl(tmp_path / "in.jsonl", [*rows(3), row])
    service = DefinedService()
    with scripted_server(service) as address:
        result = winnow(*arguments(address, tmp_path))
    assert (result.returncode, service.num_seen) == (1, 0)
    assert "in.jsonl line 4: " in result.stderr
    assert error in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.glob("out*")) == []


def test_a_row_that_the_server_refuses_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n" + "\n\n".join(map(json.dumps, rows(2))))
    with scripted_server(RefusingService()) as address:
        result = winnow(*arguments(address, tmp_path))
    assert result.returncode == 2
    assert "in.jsonl line 5: the reward server calls the request malformed: I do not like it" in result.stderr
    assert "1 finished row is kept in" in result.stderr


def test_what_no_message_can_hold_has_a_status_and_the_others_their_rewards(tmp_path: Path) -> None:
    long = "x" * 3000
    given = [
        {"prompt": "first", "completions": ["a", "bb"]},
        {"prompt": "some are too large", "completions": ["ccc", long, ""]},
        {"prompt": long, "completions": ["a", "bb"]},
        {"prompt": "too large together", "completions": ["x" * 900] * 3},
        *({"prompt": f"then {index}", "completions": ["x" * index]} for index in range(1, 60)),
    ]
    write_jsonl(tmp_path / "in.jsonl", given)
    service = DefinedService()
    service.max_message_bytes = 2000
    with scripted_server(service) as address:
        result = winnow(*arguments(address, tmp_path))
    assert result.returncode == 0, result.stderr
    assert "1 empty_completion, 65 ok, 3 too_long" in result.stdout
    scored = [row for _, row in read_jsonl(tmp_path / "out.jsonl")]
    assert [{key: row[key] for key in old} for row, old in zip(scored, given, strict=True)] == given
    assert [[one["reward"] for one in row["rewards"]] for row in scored[:4]] == [
        [1, 2],
        [3, None, None],
        [None, None],
        [900] * 3,
    ]
    assert [row["rewards"][0]["reward"] for row in scored[4:]] == list(range(1, 60))
    assert "bytes larger than the server takes" in scored[1]["rewards"][1]["error"]
    assert "raise the server's max_message_bytes" in scored[1]["rewards"][1]["error"]


def test_a_row_that_recipe_rewardbench_cannot_send_in_one_piece_has_a_status(tmp_path: Path) -> None:
    given = [{"prompt": "p", "completions": ["x" * 900] * 3}, {"prompt": "p", "completions": ["x", "xx"]}]
    write_jsonl(tmp_path / "in.jsonl", given)
    service = DefinedService()
    service.max_message_bytes = 2000
    with scripted_server(service) as address:
        result = winnow(*arguments(address, tmp_path, "--recipe", "rewardbench"))
    assert result.returncode == 0, result.stderr
    assert "2 ok, 3 too_long" in result.stdout
    (_, first), _ = read_jsonl(tmp_path / "out.jsonl")
    assert "these completions do not fit into one" in first["rewards"][0]["error"]
