"""The client of a reward server. Needs the base install only: no torch, no transformers.

    with RewardClient("localhost:50051") as client:
        scores = client.score([{"role": "user", "content": "What is 2 + 3?"}], ["It is 5.", "It is 6."])
        scores[0].reward, scores[0].instruct_logp, scores[0].base_logp, scores[0].num_tokens

Rewards compare within a prompt only (reward_server/reward.py says why). A completion that cannot be scored comes back
with a `status` other than "ok" and an `error`; the rest of its group is scored.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from reward_server.calls import Caller
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceStub
from winnow.errors import ServerError, UsageError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
SERVICE_NAME = "winnow.v1.RewardService"
POLL_S = 0.2

Normalization = Literal["sum", "mean"]
EosPolicy = Literal["include", "exclude", "if_finished"]


@dataclass(frozen=True)
class CompletionText:
    """A completion as text, without EOS; `is_finished` when the policy ended it itself."""

    text: str
    is_finished: bool = True


Prompt = Sequence[Mapping[str, str]] | Sequence[int]
CompletionContent = str | CompletionText | Sequence[int]


@dataclass(frozen=True)
class Group:
    """One prompt (messages up to the assistant turn, or token ids with BOS) and its completions.

    A completion is a text, taken as finished; a `CompletionText`; or token ids as sampled, with EOS where it ended.
    """

    messages: Prompt
    completions: Sequence[CompletionContent]


@dataclass(frozen=True)
class ScoredCompletion:
    """What the server says of one completion; logps are natural logarithms, summed over `num_tokens` scored tokens.

    `status` is "ok", or a name of `winnow.v1.Status` in lower case ("too_long", ...); then the numbers are None. The
    base model's numbers are None where reference-free, the tokens' where they were not asked for.
    """

    status: str
    error: str
    reward: float | None
    instruct_logp: float | None
    base_logp: float | None
    log_ratio: float | None
    num_tokens: int
    normalization: str
    is_eos_scored: bool
    is_truncated: bool
    token_ids: tuple[int, ...] | None
    instruct_token_logprobs: tuple[float, ...] | None
    base_token_logprobs: tuple[float, ...] | None


class RewardClient:
    """A connection to one reward server; a context manager. May be shared between threads.

    `timeout_s` bounds the wait for one group's rewards, in seconds, retries of an unreachable server included.
    """

    def __init__(self, address: str, timeout_s: float = 600.0) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, options=_channel_options())
        self._stub = RewardServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._caller = Caller(address, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in progress end."""
        self._channel.close()

    def score(
        self,
        messages: Prompt,
        completions: Sequence[CompletionContent],
        *,
        normalization: Normalization = "sum",
        beta: float = 1.0,
        eos_policy: EosPolicy = "if_finished",
        is_reference_free: bool = False,
        want_token_logprobs: bool = False,
    ) -> list[ScoredCompletion]:
        """The scores of one prompt's completions, in order.

        Raises ServerError when the server cannot be reached or fails, UsageError when it calls the request malformed.
        """
        options = _options(normalization, beta, eos_policy, is_reference_free, want_token_logprobs)
        response = self._caller.call(self._stub.Score, _request(Group(messages, completions), options))
        return _scores(response, options)

    def score_many(
        self,
        groups: Iterable[Group],
        *,
        concurrency: int = 8,
        normalization: Normalization = "sum",
        beta: float = 1.0,
        eos_policy: EosPolicy = "if_finished",
        is_reference_free: bool = False,
        want_token_logprobs: bool = False,
    ) -> Iterator[list[ScoredCompletion]]:
        """The scores of group after group, in the order of `groups`, which is read only `concurrency` ahead.

        Raises as `score` does; the groups before a malformed one have been answered by then.
        """
        if concurrency < 1:
            raise UsageError(f"concurrency {concurrency} should be at least 1")
        options = _options(normalization, beta, eos_policy, is_reference_free, want_token_logprobs)
        requests = (_request(group, options, str(index)) for index, group in enumerate(groups))
        for response in self._caller.stream(self._stub.ScoreStream, requests, concurrency):
            yield _scores(response, options)

    def server_info(self) -> pb.GetServerInfoResponse:
        """What the server has loaded, and its limits. Raises ServerError."""
        info: pb.GetServerInfoResponse = self._caller.call(self._stub.GetServerInfo, pb.GetServerInfoRequest())
        return info

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return once the server answers and serves. Raises ServerError when it does not within `timeout_s` seconds."""
        patient = Caller(self.address, timeout_s, max_attempts=None, retry_s=POLL_S)
        response = patient.call(HealthStub(self._channel).Check, HealthCheckRequest(service=SERVICE_NAME))
        if response.status != HealthCheckResponse.SERVING:
            raise ServerError(f"the reward server at {self.address} is not serving: it is stopping")


def _channel_options() -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # Retries are made in reward_server/calls.py: gRPC's own skip requests above its retry buffer, in silence.
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]


def _options(
    normalization: str, beta: float, eos_policy: str, is_reference_free: bool, want_token_logprobs: bool
) -> pb.ScoreOptions:
    return pb.ScoreOptions(
        normalization=_enum_name(pb.Normalization, "normalization", normalization),
        beta=beta,
        eos_policy=_enum_name(pb.EosPolicy, "eos_policy", eos_policy),
        is_reference_free=is_reference_free,
        want_token_logprobs=want_token_logprobs,
    )


def _enum_name(enum: type[pb.Normalization] | type[pb.EosPolicy], option: str, value: str) -> str:
    """The enum's name for "sum" and the like. Raises UsageError."""
    names = [name.removeprefix(f"{option.upper()}_").lower() for name in enum.keys()[1:]]
    if value not in names:
        raise UsageError(f"{option} {value!r} is none of {', '.join(names)}")
    return f"{option}_{value}".upper()


def _request(group: Group, options: pb.ScoreOptions, request_id: str = "") -> pb.ScoreRequest:
    """The request of a group. Raises UsageError."""
    if isinstance(group.completions, str):
        raise UsageError("completions should be a list of completions, not one text")
    request = pb.ScoreRequest(
        request_id=request_id, completions=[_completion(one) for one in group.completions], options=options
    )
    for item in group.messages:
        if not isinstance(item, Mapping):
            request.prompt_token_ids.ids.append(item)
        elif {"role", "content"} <= item.keys():
            request.messages.messages.add(role=item["role"], content=item["content"])
        else:
            raise UsageError(f"a message needs role and content, has {', '.join(item) or 'nothing'}")
    return request


def _completion(content: CompletionContent) -> pb.Completion:
    if isinstance(content, str):
        content = CompletionText(content)
    if isinstance(content, CompletionText):
        return pb.Completion(text=pb.CompletionText(text=content.text, is_finished=content.is_finished))
    return pb.Completion(token_ids=pb.TokenIds(ids=content))


def _scores(response: pb.ScoreResponse, options: pb.ScoreOptions) -> list[ScoredCompletion]:
    return [_scored(score, options) for score in response.completions]


def _scored(score: pb.CompletionScore, options: pb.ScoreOptions) -> ScoredCompletion:
    is_ok = score.status == pb.STATUS_OK
    has_tokens = is_ok and options.want_token_logprobs
    has_base = is_ok and score.HasField("base_logp")
    return ScoredCompletion(
        status=pb.Status.Name(score.status).removeprefix("STATUS_").lower(),
        error=score.error,
        reward=score.reward if is_ok else None,
        instruct_logp=score.instruct_logp if is_ok else None,
        base_logp=score.base_logp if has_base else None,
        log_ratio=score.log_ratio if has_base else None,
        num_tokens=score.num_tokens,
        normalization=pb.Normalization.Name(options.normalization).removeprefix("NORMALIZATION_").lower(),
        is_eos_scored=score.is_eos_scored,
        is_truncated=score.is_truncated,
        token_ids=tuple(score.token_ids) if has_tokens else None,
        instruct_token_logprobs=tuple(score.instruct_token_logprobs) if has_tokens else None,
        base_token_logprobs=tuple(score.base_token_logprobs) if has_tokens and has_base else None,
    )
