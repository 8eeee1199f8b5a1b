"""The config of `winnow serve`: the pair of models, the engine, access of callers, and the queue's capacity."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from winnow.chat_config import ChatConfig
from winnow.config import Dtype, Fraction, NonNegative, Positive, Seconds, Section


class VllmConfig(Section):
    """The vLLM engine, one for each of the two models."""

    instruct_devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the instruct model's engine, like `0,1`; unset: all devices."""
    base_devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the base model's engine; unset: all devices."""
    tensor_parallel_size: Positive = 1
    """GPUs that share each model."""
    quantization: str | None = None
    """vLLM's name of the quantization, like `fp8`; unset: the checkpoint's own."""
    gpu_memory_utilization: Fraction = 0.9
    """Share of a GPU's memory that each engine takes; below 0.5 if both models are on the same GPUs."""
    enforce_eager: bool = False
    """Skip the capture of CUDA graphs, to start sooner. Prompt log-probabilities do not use them."""


class TlsConfig(Section):
    """The server's certificate. With `client_ca`, callers must show one of their own (mutual TLS)."""

    certificate: str
    """PEM file: the server's certificate, and the certificates between it and its authority."""
    key: str
    """PEM file: the certificate's private key."""
    client_ca: str | None = None
    """PEM file: the authorities whose clients may call."""


class QueueConfig(Section):
    """The queue's capacity, in tokens to compute (both models) and in groups; beyond it, calls get push-back."""

    max_tokens: Positive = 2_000_000
    """Most tokens that wait."""
    max_groups: Positive = 4096
    """Most groups that wait."""


class ServeConfig(ChatConfig):
    """A reward server: the pair of models whose log-ratio is the reward, and how it serves them."""

    instruct: str
    """Folder or hub id of the instruct model."""
    base: str
    """Folder or hub id of the base model; it must share the instruct model's tokenizer."""
    chat_template: str = "mixtral"
    """A name in winnow/templates, `tokenizer`, `tokenizer:NAME` for one of several, or a .jinja file."""
    base_prompt: Literal["same", "plain"] = "same"
    """Prompt of the base model: the instruct rendering (as in RewardBench), or the turns as plain paragraphs."""
    allow_different_tokenizers: bool = False
    """Accept models whose tokenizers differ. Each then sums over its own tokens, which is a different reward."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """Library that computes the log-probabilities; `transformers` computes a prompt once for its completions."""
    vllm: VllmConfig = VllmConfig()
    dtype: Dtype = "auto"
    """Precision of the weights; `auto`: the checkpoint's own."""
    device_map: str = "auto"
    """Device of each model (transformers): `auto` spreads it over all GPUs; or `cpu`, `cuda:0`, ..."""
    base_device_map: str | None = None
    """Device of the base model (transformers), if it is not the instruct model's."""
    token_budget: Positive = 16384
    """Most tokens of one forward pass; a larger group is split into chunks, and its prompt computed for each."""
    max_tokens: Positive | None = None
    """Longest conversation in tokens; unset: the smaller of the two models' own limits."""
    max_completions: Positive = 1024
    """Most completions of one request."""

    listen: str = "127.0.0.1:50051"
    """HOST:PORT to listen on; port 0: a free one."""
    metrics_listen: str | None = None
    """HOST:PORT of Prometheus metrics (plain HTTP, /metrics); unset: none."""
    tls: TlsConfig | None = None
    """Unset: plain text."""
    token_file: str | None = None
    """File of bearer tokens, one per line as `NAME TOKEN`; callers must send one of them. Unset: anyone may call."""
    allow_insecure: bool = False
    """Listen beyond loopback without mutual TLS and without a token file, or with tokens in plain text."""
    queue: QueueConfig = QueueConfig()
    cache_bytes: NonNegative = 256 * 1024 * 1024
    """Memory of the exact result cache; 0: none."""
    max_message_bytes: Annotated[int, Field(gt=0, lt=2**31)] = 64 * 1024 * 1024
    """Largest request or response, below 2 GiB."""
    max_connection_age_s: Seconds | None = None
    """Close connections at this age, so that a load balancer spreads callers over replicas; unset: never."""
    drain_s: Seconds = 20.0
    """Time for calls in progress to end when the server is stopped."""

    @model_validator(mode="after")
    def _check_devices(self) -> Self:
        if self.engine == "vllm" and (self.device_map != "auto" or self.base_device_map is not None):
            raise ValueError("device_map and base_device_map belong to engine transformers; set vllm.instruct_devices")
        return self
