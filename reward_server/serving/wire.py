"""Conversion between protobuf messages and the server's types. proto/winnow/v1/reward.proto explains the fields.

A request that is wrong as a whole raises MalformedError. A completion that cannot be scored gets a status instead.
"""

from typing import Any, cast

from reward_server.groups import CompletionText, Group, is_token_ids
from reward_server.pb import reward_pb2 as pb
from reward_server.scoring.model_pair import ModelFacts, Pair
from reward_server.scoring.reward import CompletionResult
from winnow import __version__
from winnow.errors import UsageError
from winnow.records import OK, Message, Role
from winnow.reward_options import RewardOptions, RewardSpec, choices_of, wire_name
from winnow.serve_config import ServeConfig

# Longest error message in a response.
MAX_ERROR_CHARS = 500
# The number of the value ..._UNSPECIFIED in every enum.
UNSPECIFIED = 0


class MalformedError(ValueError):
    """A request that is wrong as a whole; the message explains what to change."""


def parse_group(request: pb.ScoreRequest, max_completions: int) -> Group:
    """Return the prompt and completions of a request. Raises MalformedError."""
    num_completions = len(request.completions)
    if not 1 <= num_completions <= max_completions:
        raise MalformedError(f"completions should be 1 to {max_completions}, are {num_completions}")
    prompt = _parse_prompt(request)
    completions = []
    for index, completion in enumerate(request.completions):
        completions.append(_parse_completion(completion, index))
    has_prompt_ids = is_token_ids(prompt)
    if has_prompt_ids and not all(map(is_token_ids, completions)):
        raise MalformedError("with prompt_token_ids the completions should be token_ids too, not text")
    if has_prompt_ids and request.options.instruction:
        raise MalformedError("options.instruction is put into messages; send the prompt as messages, not as token ids")
    has_ids = has_prompt_ids or any(map(is_token_ids, completions))
    if has_ids and request.options.recipe == pb.RECIPE_REWARDBENCH:
        raise MalformedError("recipe rewardbench renders by itself; send messages and texts, no token ids")
    return Group(prompt, completions)


def parse_options(message: pb.ScoreOptions) -> RewardOptions:
    """Return the options of a request; an unset option has its default. Raises MalformedError."""
    values: dict[str, Any] = {}
    for option in RewardOptions.model_fields:
        field = message.DESCRIPTOR.fields_by_name[option]
        value = getattr(message, option)
        if field.enum_type is not None:
            if value != UNSPECIFIED:
                values[option] = _parse_choice(option, value, field.enum_type.name)
        elif not field.has_presence or message.HasField(option):
            values[option] = value
    try:
        options = RewardOptions(**values)
    except UsageError as error:
        raise MalformedError(f"options.{error}") from None
    try:
        options.check_recipe()
    except UsageError as error:
        raise MalformedError(str(error)) from None
    return options


def _parse_choice(option: str, number: int, enum_name: str) -> str:
    """Return the choice that a number of the option's enum stands for. Raises MalformedError."""
    for choice in choices_of(option):
        if getattr(pb, wire_name(option, choice)) == number:
            return choice
    raise MalformedError(f"options.{option} {number} is not a value of {enum_name}")


def reward_definition(pair: Pair, options: RewardOptions) -> pb.RewardDefinition:
    """Return everything that decides a reward besides the prompt and the completion.

    Fields without an effect are empty: the base model's fields if the reward is reference-free, and the scope of the
    instruction if there is none.
    """
    values = {option: getattr(options, option) for option in RewardSpec.model_fields}
    values["eos_policy"] = options.resolved_eos_policy
    definition = pb.RewardDefinition(
        **values,
        instruct_weight_hash=pair.instruct.facts.weight_hash,
        instruct_template_hash=pair.instruct.facts.template_hash,
    )
    if not options.instruction:
        definition.instruction_scope = ""
    if options.is_reference_free:
        return definition
    definition.base_weight_hash = pair.base.facts.weight_hash
    definition.base_prompt = "same"
    if options.recipe == "rewardbench":  # the base model reads the instruct model's rendering
        definition.base_template_hash = pair.instruct.facts.template_hash
        return definition
    if pair.is_base_plain:
        definition.base_prompt = "plain"
    definition.base_template_hash = pair.base.facts.template_hash
    return definition


def shorten(text: str, max_chars: int = MAX_ERROR_CHARS) -> str:
    """Cut a text to `max_chars`: an error may quote the prompt, and every completion of a group may repeat it."""
    if len(text) <= max_chars:
        return text
    return text[: max_chars - 3] + "..."


def completion_score(result: CompletionResult, options: RewardOptions) -> pb.CompletionScore:
    """Return the score of one completion as a message of the wire."""
    status = f"STATUS_{result.status.upper()}"
    if result.status != OK or result.rendered is None:
        return pb.CompletionScore(status=status, error=shorten(result.error))
    score = pb.CompletionScore(
        status=status,
        reward=result.reward,
        instruct_logp=result.instruct_logp,
        base_logp=result.base_logp,
        log_ratio=result.log_ratio,
        num_tokens=result.num_tokens,
        normalization=wire_name("normalization", options.normalization),
        is_eos_scored=result.rendered.is_eos_scored,
        is_truncated=result.rendered.is_truncated,
    )
    if options.want_token_logprobs:
        score.token_ids.extend(result.rendered.scored_ids)
        score.instruct_token_logprobs.extend(result.instruct_logprobs)
        score.base_token_logprobs.extend(result.base_logprobs or ())
    return score


def server_info(pair: Pair, config: ServeConfig) -> pb.GetServerInfoResponse:
    """Return the models that are loaded, and the limits of a request."""
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
        end_of_turn_id=facts.end_of_turn_id,
    )


def _parse_prompt(request: pb.ScoreRequest) -> tuple[Message, ...] | tuple[int, ...]:
    messages = request.messages.messages
    if messages:
        # Not validated here: the renderer finds an unknown role, which is a status of each completion, not a malformed
        # request.
        return tuple(
            Message.model_construct(role=cast("Role", message.role), content=message.content) for message in messages
        )
    if request.prompt_token_ids.ids:
        return tuple(request.prompt_token_ids.ids)
    raise MalformedError("the prompt is missing; set messages or prompt_token_ids, not empty")


def _parse_completion(completion: pb.Completion, index: int) -> CompletionText | tuple[int, ...]:
    kind = completion.WhichOneof("content")
    if kind == "text":
        return CompletionText(completion.text.text, completion.text.is_finished)
    if kind == "token_ids":
        return tuple(completion.token_ids.ids)
    raise MalformedError(f"completions[{index}] has neither text nor token_ids")
