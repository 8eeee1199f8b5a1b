"""Protobuf messages <-> the server's own types. What each field means stands in proto/winnow/v1/reward.proto.

A request that is wrong as a whole raises MalformedError; a completion that cannot be scored is not malformed.
"""

import math

from reward_server.pair import ModelFacts, Options, Outcome, Pair
from reward_server.pb import reward_pb2 as pb
from reward_server.rendering import Conversation, Ids, PromptGroup, Text
from reward_server.reward import Normalization
from reward_server.spans import EosPolicy
from winnow import __version__
from winnow.serve_config import ServeConfig

NORMALIZATIONS: dict[int, Normalization] = {
    pb.NORMALIZATION_UNSPECIFIED: "sum",
    pb.NORMALIZATION_SUM: "sum",
    pb.NORMALIZATION_MEAN: "mean",
}
EOS_POLICIES: dict[int, EosPolicy] = {
    pb.EOS_POLICY_UNSPECIFIED: "if_finished",
    pb.EOS_POLICY_INCLUDE: "include",
    pb.EOS_POLICY_EXCLUDE: "exclude",
    pb.EOS_POLICY_IF_FINISHED: "if_finished",
}


class MalformedError(ValueError):
    """The request is wrong as a whole; the message says what to change."""


def parse_group(request: pb.ScoreRequest, max_completions: int) -> PromptGroup:
    """The prompt and completions of a request. Raises MalformedError."""
    num_completions = len(request.completions)
    if not 1 <= num_completions <= max_completions:
        raise MalformedError(f"completions should be 1 to {max_completions}, are {num_completions}")
    prompt = _prompt(request)
    completions = tuple(_completion(one, index) for index, one in enumerate(request.completions))
    if isinstance(prompt, Ids) and any(isinstance(one, Text) for one in completions):
        raise MalformedError("with prompt_token_ids the completions should be token_ids too, not text")
    return PromptGroup(prompt, completions)


def parse_options(options: pb.ScoreOptions) -> Options:
    """How the reward is made. Raises MalformedError."""
    if options.normalization not in NORMALIZATIONS:
        raise MalformedError(f"options.normalization {options.normalization} is no value of Normalization")
    if options.eos_policy not in EOS_POLICIES:
        raise MalformedError(f"options.eos_policy {options.eos_policy} is no value of EosPolicy")
    beta = options.beta if options.HasField("beta") else 1.0
    if not (math.isfinite(beta) and beta > 0):
        raise MalformedError(f"options.beta should be a finite number above 0, is {beta}")
    return Options(
        normalization=NORMALIZATIONS[options.normalization],
        beta=beta,
        eos_policy=EOS_POLICIES[options.eos_policy],
        is_reference_free=options.is_reference_free,
    )


def completion_score(outcome: Outcome, options: Options, *, has_token_logprobs: bool) -> pb.CompletionScore:
    """The answer for one completion."""
    status = f"STATUS_{outcome.status.upper()}"
    if outcome.ratio is None or outcome.tokens is None:
        return pb.CompletionScore(status=status, error=outcome.error)
    ratio, span = outcome.ratio, outcome.tokens.span
    score = pb.CompletionScore(
        status=status,
        reward=ratio.reward,
        instruct_logp=ratio.instruct_logp,
        base_logp=ratio.base_logp,
        log_ratio=ratio.log_ratio,
        num_tokens=ratio.num_tokens,
        normalization=f"NORMALIZATION_{options.normalization.upper()}",
        is_eos_scored=span.is_eos_scored,
        is_truncated=outcome.tokens.is_truncated,
    )
    if has_token_logprobs:
        score.token_ids.extend(span.token_ids)
        score.instruct_token_logprobs.extend([] if outcome.instruct_logprobs is None else outcome.instruct_logprobs)
        score.base_token_logprobs.extend([] if outcome.base_logprobs is None else outcome.base_logprobs)
    return score


def server_info(pair: Pair, config: ServeConfig) -> pb.GetServerInfoResponse:
    """What is loaded, and the limits of a request."""
    return pb.GetServerInfoResponse(
        winnow_version=__version__,
        instruct=_model_info(pair.instruct.facts),
        base=_model_info(pair.base.facts),
        base_prompt=config.base_prompt,
        has_shared_tokenizer=pair.has_shared_tokenizer,
        max_tokens=pair.instruct.renderer.limits.max_tokens,
        max_completions=config.max_completions,
        token_budget=config.token_budget,
    )


def _model_info(facts: ModelFacts) -> pb.ModelInfo:
    return pb.ModelInfo(
        name=facts.name,
        weight_hash=facts.weight_hash,
        tokenizer_hash=facts.tokenizer_hash,
        template_hash=facts.template_hash,
        chat_template=facts.chat_template,
        dtype=facts.dtype,
        device=facts.device,
    )


def _prompt(request: pb.ScoreRequest) -> Conversation | Ids:
    if request.messages.messages:
        return Conversation(tuple((message.role, message.content) for message in request.messages.messages))
    if request.prompt_token_ids.ids:
        return Ids(tuple(request.prompt_token_ids.ids))
    raise MalformedError("the prompt is missing; set messages or prompt_token_ids, not empty")


def _completion(completion: pb.Completion, index: int) -> Text | Ids:
    kind = completion.WhichOneof("content")
    if kind == "text":
        return Text(completion.text.text, completion.text.is_finished)
    if kind == "token_ids":
        return Ids(tuple(completion.token_ids.ids))
    raise MalformedError(f"completions[{index}] has neither text nor token_ids")
