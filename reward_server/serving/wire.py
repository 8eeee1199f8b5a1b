"""Protobuf messages <-> the server's own types. What each field means stands in proto/winnow/v1/reward.proto.

A request that is wrong as a whole raises MalformedError; a completion that cannot be scored is not malformed.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

from reward_server.pb import reward_pb2 as pb
from reward_server.scoring.model_pair import CompletionResult, InstructionScope, ModelFacts, Options, Pair, Recipe
from reward_server.scoring.rendering import Conversation, Ids, PromptGroup, Text
from reward_server.scoring.reward import Normalization
from reward_server.scoring.spans import EosPolicy
from winnow import __version__
from winnow.serve_config import ServeConfig

Name = TypeVar("Name", bound=str)

# Of an error in an answer.
MAX_ERROR_CHARS = 500

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
INSTRUCTION_SCOPES: dict[int, InstructionScope] = {
    pb.INSTRUCTION_SCOPE_UNSPECIFIED: "both",
    pb.INSTRUCTION_SCOPE_BOTH: "both",
    pb.INSTRUCTION_SCOPE_INSTRUCT_ONLY: "instruct_only",
}
RECIPES: dict[int, Recipe] = {
    pb.RECIPE_UNSPECIFIED: "winnow",
    pb.RECIPE_WINNOW: "winnow",
    pb.RECIPE_REWARDBENCH: "rewardbench",
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
    if isinstance(prompt, Ids) and request.options.instruction:
        raise MalformedError("options.instruction is put into messages; send the prompt as messages, not as token ids")
    has_ids = any(isinstance(part, Ids) for part in (prompt, *completions))
    if has_ids and request.options.recipe == pb.RECIPE_REWARDBENCH:
        raise MalformedError("recipe rewardbench renders by itself; send messages and texts, no token ids")
    return PromptGroup(prompt, completions)


def parse_options(options: pb.ScoreOptions) -> Options:
    """How the reward is made. Raises MalformedError."""
    normalization = _known(NORMALIZATIONS, options.normalization, "normalization")
    eos_policy = _known(EOS_POLICIES, options.eos_policy, "eos_policy")
    scope = _known(INSTRUCTION_SCOPES, options.instruction_scope, "instruction_scope")
    recipe = _known(RECIPES, options.recipe, "recipe")
    beta = options.beta if options.HasField("beta") else 1.0
    if not (math.isfinite(beta) and beta > 0):
        raise MalformedError(f"options.beta should be a finite number above 0, is {beta}")
    if recipe == "rewardbench":
        _check_rewardbench(options, beta)
        return Options(eos_policy="include", is_reference_free=options.is_reference_free, recipe=recipe)
    return Options(normalization, beta, eos_policy, options.is_reference_free, options.instruction, scope, recipe)


def _known(names: Mapping[int, Name], value: int, option: str) -> Name:
    if value not in names:
        kind = "".join(part.title() for part in option.split("_"))
        raise MalformedError(f"options.{option} {value} is no value of {kind}")
    return names[value]


def _check_rewardbench(options: pb.ScoreOptions, beta: float) -> None:
    """Raise MalformedError for options that RewardBench's recipe fixes otherwise."""
    fixed = {
        "normalization sum": options.normalization in (pb.NORMALIZATION_UNSPECIFIED, pb.NORMALIZATION_SUM),
        "eos_policy include": options.eos_policy in (pb.EOS_POLICY_UNSPECIFIED, pb.EOS_POLICY_INCLUDE),
        "beta 1": beta == 1.0,
        "no instruction": not options.instruction,
    }
    if wrong := [name for name, holds in fixed.items() if not holds]:
        raise MalformedError(
            f"recipe rewardbench goes with {', '.join(wrong)}; set it so or leave it unset, or take recipe winnow"
        )


def reward_definition(pair: Pair, options: Options) -> pb.RewardDefinition:
    """Everything that decides a reward beside the prompt and the completion."""
    is_base_read = not options.is_reference_free
    is_base_plain = pair.is_base_plain and options.recipe == "winnow"
    base_template = pair.base if options.recipe == "winnow" else pair.instruct
    return pb.RewardDefinition(
        recipe=options.recipe,
        normalization=options.normalization,
        beta=options.beta,
        eos_policy=options.eos_policy,
        is_reference_free=options.is_reference_free,
        base_prompt=("plain" if is_base_plain else "same") if is_base_read else "",
        instruction=options.instruction,
        instruction_scope=options.instruction_scope if options.instruction else "",
        instruct_weight_hash=pair.instruct.facts.weight_hash,
        base_weight_hash=pair.base.facts.weight_hash if is_base_read else "",
        instruct_template_hash=pair.instruct.facts.template_hash,
        base_template_hash=base_template.facts.template_hash if is_base_read else "",
    )


def shortened(text: str, max_chars: int = MAX_ERROR_CHARS) -> str:
    """A text for an error; each completion of a group may carry one that quotes its prompt."""
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."


def completion_score(outcome: CompletionResult, options: Options, *, has_token_logprobs: bool) -> pb.CompletionScore:
    """The answer for one completion."""
    status = f"STATUS_{outcome.status.upper()}"
    if outcome.ratio is None or outcome.tokens is None:
        return pb.CompletionScore(status=status, error=shortened(outcome.error))
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
        max_message_bytes=config.max_message_bytes,
        max_queued_tokens=config.queue.max_tokens,
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
