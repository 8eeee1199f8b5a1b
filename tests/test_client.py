"""Both clients: light to import, clear when there is no server, patient with one that comes back, fair to several."""

import asyncio
import inspect
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_type_hints

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from reward_server.client import (
    AsyncRewardClient,
    CompletionText,
    Group,
    RetryPolicy,
    RewardClient,
    RewardOptions,
    read_token,
)
from reward_server.groups import OptionKeywords
from reward_server.pb import reward_pb2 as pb
from tests.scripted_server import ScriptedService, scripted_server
from winnow.errors import ServerBusyError, ServerError, UsageError

ROOT = Path(__file__).parent.parent
MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]
QUICK = RetryPolicy(first_pause_s=0.01, max_pause_s=0.02)
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Awaited:
    """The asynchronous client with the synchronous one's surface, so that one test asks both."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._client = AsyncRewardClient(*arguments, **keywords)
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not inspect.iscoroutinefunction(value):
            return value
        return lambda *arguments, **keywords: self._runner.run(value(*arguments, **keywords))

    def __repr__(self) -> str:
        return repr(self._client)

    def score_many(self, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        answers = self._client.score_many(*arguments, **keywords)
        try:
            while (scored := self._runner.run(_next(answers))) is not None:
                yield scored
        finally:
            self._runner.run(answers.aclose())  # type: ignore[attr-defined]

    def __enter__(self) -> "Awaited":
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


async def _next(answers: Any) -> Any:
    return await anext(answers, None)


@pytest.fixture(params=[RewardClient, Awaited], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def address(service: ScriptedService) -> Iterator[str]:
    with scripted_server(service) as address:
        yield address


@pytest.fixture
def client(connect: Any, address: str) -> Iterator[Any]:
    with connect(address, timeout_s=10, retries=QUICK) as connected:
        yield connected


def groups(number: int) -> Iterator[Group]:
    return (Group(MESSAGES, ["x" * (index + 1)]) for index in range(number))


def rewards(answers: Iterator[Any]) -> list[float]:
    return [scored[0].reward for scored in answers]


def test_importing_the_client_needs_the_base_install_only() -> None:
    absent = [
        "torch",
        "transformers",
        "safetensors",
        "pyarrow",
        "grpc_reflection",
        "jinja2",
        "tokenizers",
        "grpc_tools",
        "prometheus_client",
        "starlette",
        "uvicorn",
        "trl",
    ]
    imports = "import reward_server.client, reward_server.adapters.trl, reward_server.adapters.verl"
    imports += ", reward_server.adapters.http"
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); {imports}"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=ROOT)


def test_both_clients_have_one_surface() -> None:
    names = [name for name in vars(RewardClient) if not name.startswith("_")]
    assert names == [name for name in vars(AsyncRewardClient) if not name.startswith("_")]
    for name in ("__init__", "score", "server_info", "wait_until_ready", "close", "score_many"):
        ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (RewardClient, AsyncRewardClient))
        assert list(ours.parameters) == list(theirs.parameters), name


def test_the_keywords_are_the_fields_of_the_options() -> None:
    assert get_type_hints(OptionKeywords) == get_type_hints(RewardOptions)


def test_no_server_is_one_line_that_says_what_to_do(connect: Any) -> None:
    with (
        connect("127.0.0.1:1", timeout_s=2, retries=QUICK) as client,
        pytest.raises(ServerError, match=r"no reward server answers at 127\.0\.0\.1:1 .*start one with `winnow serve"),
    ):
        client.score(MESSAGES, ["yes"])


def test_no_server_fails_a_stream_and_the_wait_too(connect: Any) -> None:
    with connect("127.0.0.1:1", timeout_s=1, retries=QUICK) as client:
        with pytest.raises(ServerError, match="no reward server answers"):
            list(client.score_many(groups(3)))
        start = time.monotonic()
        with pytest.raises(ServerError, match="no reward server answers"):
            client.wait_until_ready(0.5)
        assert time.monotonic() - start < 5


def test_a_server_that_comes_back_is_tried_again(client: Any, service: ScriptedService) -> None:
    service.fail(UNAVAILABLE, times=2)
    assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
    assert service.num_seen == 3


def test_a_call_that_the_server_drops_as_it_stops_is_tried_again(client: Any, service: ScriptedService) -> None:
    service.fail(grpc.StatusCode.CANCELLED)
    assert client.score(MESSAGES, ["abc"])[0].reward == 3.0


def test_a_server_that_stays_away_is_given_up(client: Any, service: ScriptedService) -> None:
    service.fail(UNAVAILABLE, times=1000)
    with pytest.raises(ServerError, match="told to fail"):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 5


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (grpc.StatusCode.INTERNAL, ServerError, "INTERNAL: told to fail"),
        (grpc.StatusCode.INVALID_ARGUMENT, UsageError, "malformed: told to fail"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ServerError, "no answer within"),
        (grpc.StatusCode.UNAUTHENTICATED, ServerError, "give token= or --token-file"),
        (EXHAUSTED, ServerError, "RESOURCE_EXHAUSTED: told to fail"),
    ],
)
def test_other_errors_are_not_tried_again(
    client: Any, service: ScriptedService, code: grpc.StatusCode, kind: type[Exception], message: str
) -> None:
    service.fail(code)
    with pytest.raises(kind, match=message):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 1


def test_a_full_server_is_asked_again_when_it_said_so(client: Any, service: ScriptedService) -> None:
    service.fail(EXHAUSTED, times=7, pushback="30")
    start = time.monotonic()
    assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
    assert time.monotonic() - start >= 7 * 0.03
    assert service.num_seen == 8


@pytest.mark.parametrize("pushback", ["-1", "soon"])
@pytest.mark.parametrize("code", [EXHAUSTED, UNAVAILABLE])
def test_a_server_that_wants_no_retry_gets_none(
    client: Any, service: ScriptedService, code: grpc.StatusCode, pushback: str
) -> None:
    service.fail(code, pushback=pushback)
    with pytest.raises(ServerError):
        client.score(MESSAGES, ["abc"])
    assert service.num_seen == 1


def test_a_push_back_beyond_the_deadline_is_an_error_that_says_when_to_return(
    client: Any, service: ScriptedService
) -> None:
    service.fail(EXHAUSTED, pushback="60000")
    with pytest.raises(ServerBusyError, match="is full") as caught:
        client.score(MESSAGES, ["abc"])
    assert caught.value.retry_s == 60.0


def test_a_server_that_does_not_answer_in_time_is_named(connect: Any, service: ScriptedService, address: str) -> None:
    service.is_open.clear()
    with connect(address, timeout_s=0.2) as hurried:
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s; raise timeout_s"):
            hurried.score(MESSAGES, ["abc"])
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
            list(hurried.score_many(groups(2)))


def test_a_dead_replica_fails_no_call_while_another_lives(connect: Any, service: ScriptedService, address: str) -> None:
    with connect(["127.0.0.1:1", address, "127.0.0.1:2"], timeout_s=10) as client:
        assert [client.score(MESSAGES, ["abc"])[0].reward for _ in range(5)] == [3.0] * 5
        assert rewards(client.score_many(groups(20))) == list(range(1, 21))
        client.wait_until_ready(5)
    assert service.num_seen == 25


def test_several_servers_share_the_groups_and_the_order_stays(connect: Any) -> None:
    services = [ScriptedService() for _ in range(3)]
    services[0].delay_s = 0.05
    with ExitStack() as stack:
        addresses = [stack.enter_context(scripted_server(one)) for one in services]
        with connect(",".join(addresses), timeout_s=10) as client:
            assert rewards(client.score_many(groups(60), concurrency=6)) == list(range(1, 61))
    assert sum(one.num_seen for one in services) == 60
    assert all(one.num_seen >= 3 for one in services)
    assert services[0].num_seen < min(services[1].num_seen, services[2].num_seen)


def test_a_server_that_dies_in_the_middle_loses_nothing(connect: Any, service: ScriptedService, address: str) -> None:
    dying = ScriptedService()
    with ExitStack() as stack:
        other = stack.enter_context(scripted_server(dying))
        with connect([other, address], timeout_s=10, retries=QUICK) as client:
            answers = client.score_many(groups(200), concurrency=4)
            first = rewards(iter([next(answers) for _ in range(10)]))
            stack.close()
            assert first + rewards(answers) == list(range(1, 201))
    assert 0 < dying.num_seen < 200


def test_a_full_server_leaves_its_work_to_the_other(connect: Any, service: ScriptedService, address: str) -> None:
    full = ScriptedService()
    full.fail(EXHAUSTED, times=1000, pushback="60000")
    with scripted_server(full) as other, connect([other, address], timeout_s=10) as client:
        assert rewards(client.score_many(groups(50), concurrency=1)) == list(range(1, 51))
    assert full.num_seen == 1


def test_servers_with_other_models_are_refused_within_a_group(
    connect: Any, service: ScriptedService, address: str
) -> None:
    other_service = ScriptedService()
    other_service.weight_hash = "sha256:other"
    service.max_completions = other_service.max_completions = 1
    with (
        scripted_server(other_service) as other,
        connect([other, address], timeout_s=10) as client,
        pytest.raises(ServerError, match="different definitions, which do not compare"),
    ):
        client.score(MESSAGES, ["a", "b", "c", "d"])


def test_large_groups_are_sent_in_pieces_and_put_together(client: Any, service: ScriptedService) -> None:
    service.max_completions = 4
    scored = client.score(MESSAGES, ["x" * (index + 1) for index in range(10)])
    assert [one.reward for one in scored] == list(range(1, 11))
    assert [len(one.completions) for one in service.requests] == [4, 4, 2]
    assert all(one.messages.messages[0].content == MESSAGES[0]["content"] for one in service.requests)


@pytest.mark.parametrize("want_token_logprobs", [False, True])
def test_no_message_is_larger_than_the_server_takes(
    client: Any, service: ScriptedService, want_token_logprobs: bool
) -> None:
    service.max_message_bytes = 4000
    texts = ["\u00e9" * (index % 20 * 7 + 1) for index in range(60)]
    scored = client.score(MESSAGES, texts, want_token_logprobs=want_token_logprobs)
    assert [one.reward for one in scored] == [len(text) for text in texts]
    assert len(service.requests) > 1
    for request in service.requests:
        assert request.ByteSize() <= 4000
        num_tokens = sum(len(one.text.text.encode()) for one in request.completions)
        assert not want_token_logprobs or num_tokens * 13 <= 4000


def test_a_completion_that_fits_no_message_is_named(client: Any, service: ScriptedService) -> None:
    service.max_message_bytes = 1000
    with pytest.raises(UsageError, match="completion 1 with its prompt needs a message of"):
        client.score(MESSAGES, ["a", "b" * 2000])
    assert service.num_seen == 0


def test_no_completions_are_no_scores_and_no_call(client: Any, service: ScriptedService) -> None:
    assert client.score(MESSAGES, []) == []
    assert [len(one) for one in client.score_many([Group(MESSAGES, []), Group(MESSAGES, ["a"])])] == [0, 1]
    assert list(client.score_many(iter([]))) == []
    assert service.num_seen == 1


def test_groups_are_read_no_further_ahead_than_allowed(client: Any) -> None:
    read: list[int] = []

    def counted() -> Iterator[Group]:
        for index, group in enumerate(groups(200)):
            read.append(index)
            yield group

    for number, _ in enumerate(client.score_many(counted(), concurrency=4)):
        assert len(read) <= number + 16
    assert len(read) == 200


def test_one_slow_group_stops_no_server(client: Any, service: ScriptedService) -> None:
    service.is_open.clear()
    answers = client.score_many(groups(40), concurrency=4)
    opened = threading.Timer(0.2, service.is_open.set)
    opened.start()
    assert rewards(answers) == list(range(1, 41))
    opened.join()


def test_progress_is_told_in_order(client: Any) -> None:
    done: list[int] = []
    assert len(list(client.score_many(groups(7), concurrency=3, on_progress=done.append))) == 7
    assert done == [1, 2, 3, 4, 5, 6, 7]


def test_an_error_of_the_groups_reaches_the_caller(client: Any) -> None:
    def broken() -> Iterator[Group]:
        yield from groups(2)
        raise KeyError("messages")

    with pytest.raises(KeyError):
        list(client.score_many(broken(), concurrency=1))


def test_groups_before_a_malformed_one_are_answered(client: Any) -> None:
    answers = client.score_many([*groups(3), Group([{"role": "user"}], ["a"])], concurrency=2)
    assert [next(answers)[0].reward for _ in range(3)] == [1, 2, 3]
    with pytest.raises(UsageError, match="needs role and content"):
        next(answers)


def test_a_stream_that_is_left_early_ends(client: Any, service: ScriptedService) -> None:
    before = threading.active_count()
    answers = client.score_many(groups(1000), concurrency=2)
    assert rewards(iter([next(answers), next(answers)])) == [1, 2]
    service.is_open.clear()
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 5
    assert service.num_seen < 20
    deadline = time.monotonic() + 10
    while any(one.name.startswith("score-many") for one in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(one.name.startswith("score-many") for one in threading.enumerate())
    assert threading.active_count() <= before + 32  # the test server's own workers


def test_groups_may_come_from_an_async_iterator(address: str) -> None:
    async def produced() -> Any:
        for group in groups(5):
            await asyncio.sleep(0)
            yield group

    async def ask() -> list[float | None]:
        async with AsyncRewardClient(address) as client:
            return [scored[0].reward async for scored in client.score_many(produced())]

    assert asyncio.run(ask()) == [1, 2, 3, 4, 5]


def test_what_is_no_group_is_refused_before_it_is_sent(client: Any, service: ScriptedService) -> None:
    with pytest.raises(UsageError, match="a list of completions, not one text"):
        client.score(MESSAGES, "abc")
    with pytest.raises(UsageError, match="needs role and content"):
        client.score([{"role": "user"}], ["abc"])
    with pytest.raises(UsageError, match="both texts; this one is role: str, content: int"):
        client.score([{"role": "user", "content": 3}], ["abc"])
    with pytest.raises(UsageError, match="should be a list of completions, not a int"):
        client.score(MESSAGES, 5)
    with pytest.raises(UsageError, match="a prompt should be a list of messages or of token ids, is one text"):
        client.score("hello", ["abc"])
    with pytest.raises(UsageError, match="a prompt should be a list"):
        client.score(None, ["abc"])
    with pytest.raises(UsageError, match="this one is a int"):
        client.score([*MESSAGES, 3], [[5]])
    with pytest.raises(UsageError, match="a group should be Group"):
        list(client.score_many([(MESSAGES, ["abc"])]))
    with pytest.raises(UsageError, match="concurrency 0"):
        list(client.score_many(groups(2), concurrency=0))
    assert service.num_seen == 0


@pytest.mark.parametrize(
    ("completion", "error"),
    [
        (None, "completion 1 should be a text, .* is a NoneType"),
        (7, "completion 1 should be a text, .* is a int"),
        (b"abc", "completion 1 should be a text, .* is a bytes"),
        ({"text": "a"}, "completion 1 should be a text"),
        (CompletionText(None), "completion 1 should be a text"),  # type: ignore[arg-type]
        ([5, -1], "completion 1 should be token ids, whole numbers from 0"),
        ([2**40], "completion 1 should be token ids"),
        ([1.5], "completion 1 should be token ids"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_what_is_no_completion_is_refused_before_it_is_sent(
    client: Any, service: ScriptedService, completion: Any, error: str
) -> None:
    with pytest.raises(UsageError, match=error):
        client.score(MESSAGES, ["abc", completion])
    assert service.num_seen == 0


def test_a_closed_client_says_so(connect: Any, address: str) -> None:
    with connect(address) as client:
        assert client.score(MESSAGES, ["abc"])[0].reward == 3
        if isinstance(client, RewardClient):
            client.close()
        else:
            client._runner.run(client._client.close())
        with pytest.raises(UsageError, match="this client is closed"):
            client.score(MESSAGES, ["abc"])


def test_the_eos_policy_is_the_recipe_s_own_unless_named(client: Any, service: ScriptedService) -> None:
    client.score(MESSAGES, ["abc"], recipe="rewardbench")
    client.score(MESSAGES, ["abc"], eos_policy="exclude")
    sent = [request.options.eos_policy for request in service.requests]
    assert sent == [pb.EOS_POLICY_UNSPECIFIED, pb.EOS_POLICY_EXCLUDE]


def test_a_group_of_recipe_rewardbench_is_never_split(client: Any, service: ScriptedService) -> None:
    service.max_completions = 2
    assert len(client.score(MESSAGES, ["a", "b"], recipe="rewardbench")) == 2
    with pytest.raises(UsageError, match="these 3 completions need 2 requests; send its pairs as groups of two"):
        client.score(MESSAGES, ["a", "b", "c"], recipe="rewardbench")
    assert len(client.score(MESSAGES, ["a", "b", "c"])) == 3
    assert service.num_seen == 3


class OlderService(ScriptedService):
    """A server of a time before definitions, message limits and recipes: it leaves out what it does not know."""

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        return pb.ScoreResponse(completions=super().Score(request, context).completions)


def test_an_older_server_is_used_for_what_it_knows_and_for_nothing_else(connect: Any) -> None:
    service = OlderService()
    service.max_message_bytes = 0
    with scripted_server(service) as address, connect(address) as client:
        assert client.score(MESSAGES, ["abc"])[0].reward == 3
        with pytest.raises(ServerError, match="passed over the option recipe: it is older"):
            client.score(MESSAGES, ["abc"], recipe="rewardbench")
        with pytest.raises(ServerError, match="passed over the option instruction"):
            client.score(MESSAGES, ["abc"], instruction="Be kind.")


def test_an_unknown_option_is_named_with_the_known_ones(client: Any) -> None:
    with pytest.raises(UsageError, match="normalization 'avg' is none of sum, mean"):
        client.score(MESSAGES, ["abc"], normalization="avg")
    with pytest.raises(UsageError, match="none of include, exclude, if_finished"):
        client.score(MESSAGES, ["abc"], eos_policy="always")
    with pytest.raises(UsageError, match="recipe 'mine' is none of winnow, rewardbench"):
        RewardOptions(recipe="mine")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="beta nan"):
        RewardOptions(beta=float("nan"))
    for option, value in {"beta": "1", "instruction": None, "is_reference_free": "yes"}.items():
        with pytest.raises(UsageError, match=f"{option} {value!r} should be"):
            client.score(MESSAGES, ["abc"], **{option: value})
    with pytest.raises(UsageError, match="half of a surrogate pair"):
        RewardOptions(instruction="\udcff")
    with pytest.raises(UsageError, match="unknown option gamma; known: normalization"):
        client.score(MESSAGES, ["abc"], gamma=2)


def test_options_are_sent_and_keywords_change_them(client: Any, service: ScriptedService) -> None:
    options = RewardOptions(normalization="mean", beta=0.5, instruction="Be kind.", instruction_scope="instruct_only")
    client.score(MESSAGES, ["abc"], options, beta=2.0, recipe="rewardbench", eos_policy="include")
    sent = service.requests[0].options
    assert (sent.normalization, sent.beta, sent.eos_policy) == (pb.NORMALIZATION_MEAN, 2.0, pb.EOS_POLICY_INCLUDE)
    assert (sent.instruction, sent.instruction_scope) == ("Be kind.", pb.INSTRUCTION_SCOPE_INSTRUCT_ONLY)
    assert sent.recipe == pb.RECIPE_REWARDBENCH


def test_scores_say_what_they_were_made_with(client: Any) -> None:
    scored = client.score(MESSAGES, ["abc", ""])
    assert scored.definition.instruct_weight_hash == "sha256:one"
    assert [one.status for one in scored] == ["ok", "empty_completion"]
    assert (scored[1].reward, scored[1].error) == (None, "nothing to score")


def test_the_token_is_sent_and_never_shown(
    connect: Any, service: ScriptedService, address: str, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("trainer s3cret\n")
    with connect(address, token=read_token(tmp_path / "token"), timeout_s=5) as client:
        client.score(MESSAGES, ["abc"])
        assert service.tokens == ["Bearer s3cret"]
        service.fail(grpc.StatusCode.UNAUTHENTICATED)
        with pytest.raises(ServerError) as caught:
            client.score(MESSAGES, ["abc"])
        assert "s3cret" not in repr(client) + repr(caught.value)
    with pytest.raises(UsageError) as refused:
        connect(address, token="s3cret with blanks")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"address": ""}, "no address"),
        ({"address": "localhost"}, "'localhost' should be HOST:PORT"),
        ({"address": "localhost:"}, "'localhost:' should be HOST:PORT"),
        ({"address": ":50051"}, "':50051' should be HOST:PORT"),
        ({"address": "http://a:1"}, "'http://a:1' should be HOST:PORT"),
        ({"address": "a:1,b:99999"}, "'b:99999' should be HOST:PORT"),
        ({"address": None}, "address None should be HOST:PORT"),
        ({"address": "a:1", "timeout_s": float("nan")}, "timeout_s nan should be a number of seconds"),
        ({"address": "a:1", "timeout_s": float("inf")}, "timeout_s inf should be a number of seconds"),
        ({"address": "a:1", "timeout_s": 0}, "timeout_s 0 should be a number of seconds above 0"),
        ({"address": "a:1", "timeout_s": "5"}, "timeout_s '5' should be a number of seconds"),
        ({"address": "a:1", "tls_key": "k"}, "tls_certificate and tls_key together"),
        ({"address": "a:1", "tls_ca": "./nowhere.pem"}, "'./nowhere.pem' cannot be read"),
    ],
)
def test_access_that_cannot_work_is_refused(keywords: dict[str, Any], message: str) -> None:
    for kind in (RewardClient, AsyncRewardClient):
        with pytest.raises(UsageError, match=message):
            kind(**keywords)


@pytest.mark.parametrize("address", ["[::1]:1", "dns:///rewards.internal:1", "unix:/tmp/socket", "gpu-1_a.b:65535"])
def test_addresses_of_other_kinds_are_taken(address: str) -> None:
    with RewardClient(f"{address}, localhost:1") as client:
        assert client.address == f"{address},localhost:1"


def test_pem_files_that_cannot_be_used_are_refused_at_once(tmp_path: Path) -> None:
    noise = tmp_path / "noise.pem"
    noise.write_text("no certificate")
    mine, key = certificate(tmp_path, "mine")
    _, other = certificate(tmp_path, "other")
    for kind in (RewardClient, AsyncRewardClient):
        with pytest.raises(UsageError, match=r"noise\.pem' holds no PEM certificate"):
            kind("a:1", tls_ca=noise)
        with pytest.raises(UsageError, match="are no pair of PEM files"):
            kind("a:1", tls_certificate=mine, tls_key=other)
    RewardClient("a:1", tls_certificate=mine, tls_key=key).close()


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_mutual_tls_lets_known_callers_in_and_no_others(connect: Any, service: ScriptedService, tmp_path: Path) -> None:
    (server, server_key), (mine, my_key) = certificate(tmp_path, "server"), certificate(tmp_path, "mine")
    credentials = grpc.ssl_server_credentials(
        [(server_key.read_bytes(), server.read_bytes())], mine.read_bytes(), require_client_auth=True
    )
    with scripted_server(service, credentials=credentials) as address:
        with connect(address, tls_ca=server, tls_certificate=mine, tls_key=my_key, timeout_s=10) as client:
            assert client.score(MESSAGES, ["abc"])[0].reward == 3.0
        for wrong in ({}, {"tls_ca": server}, {"tls_ca": mine, "tls_certificate": mine, "tls_key": my_key}):
            with (
                connect(address, timeout_s=5, retries=RetryPolicy(max_attempts=1), **wrong) as client,
                pytest.raises(ServerError, match="no reward server answers"),
            ):
                client.score(MESSAGES, ["abc"])


@pytest.mark.parametrize("index", [0, 1])
def test_the_examples_of_the_docs_run(address: str, index: int, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.S)[index]
    exec(re.sub(r"localhost:50051|gpu1:50051,gpu2:50051", address, code), {"__name__": "example"})
    assert capsys.readouterr().out.splitlines()[0] in ("[8.0, 8.0]", "2.0")


def test_one_client_may_be_shared_between_threads(address: str) -> None:
    answers: dict[int, list[float]] = {}
    with RewardClient(address, timeout_s=10) as client:

        def ask(number: int) -> None:
            answers[number] = [client.score(MESSAGES, ["x" * number])[0].reward or 0.0 for _ in range(20)]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {number: [float(number)] * 20 for number in range(1, 9)}
