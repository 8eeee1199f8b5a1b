"""What `winnow serve` reads: the pair of models, how they are computed, who may call, and how much may wait."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from winnow.config import Dtype, Fraction, NonNegative, Positive, Seconds, Section


class VllmConfig(Section):
    """The vLLM engine: the two models as two engines."""

    instruct_devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the instruct model's engine, like `0,1`; unset: all devices."""
    base_devices: str | None = None
    """The same of the base model's."""
    tensor_parallel_size: Positive = 1
    """GPUs that share each model."""
    quantization: str | None = None
    """vLLM's name of the quantization, like `fp8`; unset: the checkpoint's own."""
    gpu_memory_utilization: Fraction = 0.9
    """Share of a GPU's memory that each engine takes; below 0.5 where both models lie on the same GPUs."""
    enforce_eager: bool = False
    """Skip the capture of CUDA graphs: starts sooner. Prompt log-probabilities do not use them."""


class TlsConfig(Section):
    """The server's certificate. With `client_ca`, callers must show one of their own (mutual TLS)."""

    certificate: str
    """PEM file: the server's certificate, and those that lead to its authority."""
    key: str
    """PEM file: the certificate's private key."""
    client_ca: str | None = None
    """PEM file: the authorities whose clients may call."""


class QueueConfig(Section):
    """What may wait, in tokens to compute (both models) and in groups; beyond it calls are refused with push-back."""

    max_tokens: Positive = 2_000_000
    """Most tokens that wait."""
    max_groups: Positive = 4096
    """Most groups that wait."""


class ServeConfig(Section):
    """What `winnow serve` hosts: the pair of models whose log-ratio is the reward."""

    instruct: str
    """Folder or hub id of the instruct model."""
    base: str
    """Folder or hub id of the base model; it must share the instruct model's tokenizer."""
    chat_template: str = "mixtral"
    """How conversations are rendered: a name in winnow/templates, `tokenizer`, or a .jinja file."""
    base_prompt: Literal["same", "plain"] = "same"
    """What the base model reads: the instruct rendering (as RewardBench does) or the turns as plain paragraphs."""
    allow_different_tokenizers: bool = False
    """Accept models whose tokenizers differ: each then sums over tokens of its own, which is another reward."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What computes the log-probabilities; `transformers` shares a prompt between its completions."""
    vllm: VllmConfig = VllmConfig()
    dtype: Dtype = "auto"
    """Precision of the weights; `auto` takes the checkpoint's own."""
    device_map: str = "auto"
    """Where each model lies (transformers): `auto` spreads it over the GPUs there are, else `cpu`, `cuda:0`, ..."""
    base_device_map: str | None = None
    """Where the base model lies (transformers), if elsewhere than the instruct model."""
    token_budget: Positive = 16384
    """Most tokens of one forward pass; a larger group is split, its prompt computed once per piece."""
    max_tokens: Positive | None = None
    """Longest conversation in tokens; unset: the smaller of the two models' own limits."""
    max_completions: Positive = 1024
    """Most completions of one request."""

    listen: str = "127.0.0.1:50051"
    """HOST:PORT to listen on; port 0 takes a free one."""
    metrics_listen: str | None = None
    """HOST:PORT of Prometheus metrics (plain HTTP, /metrics); unset: none."""
    tls: TlsConfig | None = None
    """Unset: plain text."""
    token_file: str | None = None
    """File of bearer tokens, one a line as `NAME TOKEN`; callers must send one of them. Unset: anyone may call."""
    allow_insecure: bool = False
    """Listen beyond loopback although there is neither mutual TLS nor a token file, or tokens travel in plain text."""
    queue: QueueConfig = QueueConfig()
    cache_bytes: NonNegative = 256 * 1024 * 1024
    """Memory of the exact result cache; 0: none."""
    max_message_bytes: Annotated[int, Field(gt=0, lt=2**31)] = 64 * 1024 * 1024
    """Largest request or response, below 2 GiB."""
    max_connection_age_s: Seconds | None = None
    """Close connections of this age, so that a balancer spreads callers over replicas; unset: never."""
    drain_s: Seconds = 20.0
    """How long calls in progress have to end when the server is told to stop."""

    @model_validator(mode="after")
    def _devices_belong_to_transformers(self) -> Self:
        if self.engine == "vllm" and (self.device_map != "auto" or self.base_device_map is not None):
            raise ValueError("device_map and base_device_map are of engine transformers; set vllm.instruct_devices")
        return self
