"""Facts about a reward server: the models that it has loaded, and the limits of a request."""

from dataclasses import dataclass, fields

from reward_server.pb import reward_pb2 as pb

# The limit of servers that do not state one.
DEFAULT_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class ModelInfo:
    """One model of the pair (`winnow.v1.ModelInfo`).

    name             folder or hub id, as configured
    weight_hash      hash of config.json and the weight files
    tokenizer_hash   hash of all that turns a text into token ids
    template_hash    hash of the chat template, its system prompt, BOS, end of turn, date and variables
    chat_template    name or path of the chat template
    dtype            precision of the weights, like "bfloat16"
    device           devices that hold the weights, like "cpu" or "cuda:0, cuda:1"
    end_of_turn_id   id of the token that closes an assistant turn; None if an older server does not state it
    """

    name: str
    weight_hash: str
    tokenizer_hash: str
    template_hash: str
    chat_template: str
    dtype: str
    device: str
    end_of_turn_id: int | None


@dataclass(frozen=True)
class ServerInfo:
    """The models and limits of a server (`winnow.v1.GetServerInfoResponse`).

    winnow_version         version of winnow that is running
    instruct, base         the two models
    base_prompt            "same": the base model reads the instruct model's rendering; "plain": the turns as
                           paragraphs, without roles
    has_shared_tokenizer   False if each model scores tokens of its own tokenizer
    max_tokens             most tokens of a prompt and one completion together
    max_completions        most completions of one request; clients split larger groups
    token_budget           most tokens of one forward pass
    max_message_bytes      largest message, in bytes
    max_queued_tokens      most tokens that wait to be computed, both models together
    """

    winnow_version: str
    instruct: ModelInfo
    base: ModelInfo
    base_prompt: str
    has_shared_tokenizer: bool
    max_tokens: int
    max_completions: int
    token_budget: int
    max_message_bytes: int
    max_queued_tokens: int


def parse_server_info(response: pb.GetServerInfoResponse) -> ServerInfo:
    """Return the facts of a server's response; a limit that an old server does not state gets its default."""
    return ServerInfo(
        winnow_version=response.winnow_version,
        instruct=_model_info(response.instruct),
        base=_model_info(response.base),
        base_prompt=response.base_prompt,
        has_shared_tokenizer=response.has_shared_tokenizer,
        max_tokens=response.max_tokens,
        max_completions=response.max_completions,
        token_budget=response.token_budget,
        max_message_bytes=response.max_message_bytes or DEFAULT_MESSAGE_BYTES,
        max_queued_tokens=response.max_queued_tokens,
    )


def _model_info(model: pb.ModelInfo) -> ModelInfo:
    values = {field.name: getattr(model, field.name) for field in fields(ModelInfo)}
    if not model.HasField("end_of_turn_id"):
        values["end_of_turn_id"] = None
    return ModelInfo(**values)
