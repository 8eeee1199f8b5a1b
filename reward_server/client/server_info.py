"""Facts about a reward server: the models that it has loaded, and the limits of a request."""

from dataclasses import dataclass, fields

from reward_server.pb import reward_pb2 as pb

# The limit of servers that do not state one.
DEFAULT_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class ModelInfo:
    """One model of the pair (`winnow.v1.ModelInfo`)."""

    name: str
    """Folder or hub id, as configured."""
    weight_hash: str
    """Hash of config.json and the weight files."""
    tokenizer_hash: str
    """Hash of the vocabulary, the special tokens and the ids of a probe text."""
    template_hash: str
    """Hash of the chat template, its system prompt, BOS and EOS."""
    chat_template: str
    """Name or path of the chat template."""
    dtype: str
    """Precision of the weights, like "bfloat16"."""
    device: str
    """Devices that hold the weights, like "cpu" or "cuda:0, cuda:1"."""


@dataclass(frozen=True)
class ServerInfo:
    """Models and limits of a server (`winnow.v1.GetServerInfoResponse`)."""

    winnow_version: str
    """Version of winnow that is running."""
    instruct: ModelInfo
    base: ModelInfo
    base_prompt: str
    """Prompt of the base model: "same" as the instruct model's, or "plain", the turns as paragraphs without roles."""
    has_shared_tokenizer: bool
    """False if each model scores tokens of its own tokenizer."""
    max_tokens: int
    """Most tokens of a prompt and one completion together."""
    max_completions: int
    """Most completions of one request; clients split larger groups."""
    token_budget: int
    """Most tokens of one forward pass."""
    max_message_bytes: int
    """Largest message, in bytes."""
    max_queued_tokens: int
    """Most tokens that wait to be computed, both models' together."""


def parse_server_info(response: pb.GetServerInfoResponse) -> ServerInfo:
    """Convert a message of the wire."""
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
    return ModelInfo(**{field.name: getattr(model, field.name) for field in fields(ModelInfo)})
