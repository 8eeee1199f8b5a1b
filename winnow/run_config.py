"""The config of `winnow run`: one section for each step of the recipe, and `RunConfig`, which holds them all.

The string under a field gives its meaning and its unit; validators refuse values that contradict each other.
"""

import math
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from winnow.chat_config import ChatConfig
from winnow.config import Dtype, FolderName, Fraction, Positive, Seconds, Section
from winnow.reward_options import RewardSpec
from winnow.serve_config import ServeConfig


class RewardConfig(RewardSpec, Section):
    """The reward server, and the options of the reward (winnow/reward_options.py)."""

    address: str | None = None
    """HOST:PORT of a running reward server, or several separated by commas; unset: the score stage starts `server`."""
    token_file: str | None = None
    """File with the bearer token that the server at `address` requires."""
    tls_ca: str | None = None
    """PEM file of the authorities that vouch for the server at `address`; unset: plain text."""
    tls_certificate: str | None = None
    """PEM file of this client's certificate, if the server at `address` requires one (mutual TLS)."""
    tls_key: str | None = None
    """PEM file of the private key of `tls_certificate`."""
    server: ServeConfig | None = None
    """The server to start when no address is given."""
    timeout_s: Seconds = 600.0
    """Longest wait for the rewards of one prompt."""

    @model_validator(mode="after")
    def _check_server(self) -> Self:
        if (self.address is None) == (self.server is None):
            raise ValueError("give exactly one of address (a running server) and server (one to start)")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("give tls_certificate and tls_key together: a certificate proves nothing without its key")
        return self

    @model_validator(mode="after")
    def _check_recipe_before_sampling(self) -> Self:
        """Raise UsageError now: the server would raise it only after a round's sampling."""
        self.check_recipe()
        return self


class PolicyConfig(ChatConfig):
    """The model that is trained."""

    model: str
    """Folder or hub id of the model that LAB SFT starts from, or round 1 if there is no LAB SFT."""
    chat_template: str = "lab"
    """A name in winnow/templates, `tokenizer`, `tokenizer:NAME` for one of several, or a .jinja file."""
    system_prompt: str | None = None
    """System message of conversations without one; each model performs best with its own."""
    eos_token: str | None = Field(default=None, min_length=1)
    """Token that closes an assistant turn, added if the tokenizer lacks it; unset: the tokenizer's own."""
    added_tokens: tuple[str, ...] = ()
    """Special tokens to add to a tokenizer that lacks them, such as the LAB form's headers."""
    num_parameters: Positive | None = None
    """Size of the model, for `--dry-run` without the model."""
    teacher: str | None = None
    """Model that wrote the synthetic SFT rows; recorded, not loaded."""
    dtype: Dtype = "auto"
    """Precision of weights in training and sampling."""


class TrainConfig(Section):
    """One SFT job."""

    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    """Peak learning rate of AdamW."""
    num_epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows."""
    max_steps: Positive | None = None
    """Optimizer steps after which training stops, whatever num_epochs is; unset: num_epochs decides."""
    batch_size: Positive = 3840
    """Rows of one optimizer step, over all devices and accumulation."""
    micro_batch_size: Positive = 8
    """Rows of one forward pass on one device."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up, in optimizer steps."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up. LAB keeps it constant: a decay destabilises the next phase."""
    max_tokens: Positive = 4096
    """Longest row, in tokens; longer rows are dropped and counted, never truncated."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    is_gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: slower, with less memory."""
    save_steps: Positive | None = None
    """Optimizer steps between trainer checkpoints, from which a killed job resumes; unset: it starts from scratch."""

    @model_validator(mode="after")
    def _check_batch_size(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self

    def num_steps(self, num_rows: int) -> int:
        """Count the optimizer steps of a job on `num_rows` rows; the last batch of an epoch may be smaller.

            steps = ceil(num_epochs * ceil(num_rows / batch_size)), or max_steps where that is set

        LAB's first phase: 4 * ceil(630000 / 3840) = 660 steps, fewer than its warm-up of 800.

        >>> TrainConfig(learning_rate=1e-6, num_epochs=4, batch_size=3840).num_steps(630_000)
        660
        """
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.num_epochs * math.ceil(num_rows / self.batch_size))

    def warmup_warning(self, num_steps: int) -> str | None:
        """Return a warning if the warm-up is so long that the learning rate never reaches its peak, else None."""
        if self.warmup_steps < max(num_steps, 1):
            return None
        return (
            f"warm-up of {self.warmup_steps} steps is not shorter than training ({num_steps} steps); "
            "the learning rate never reaches its peak"
        )


class PhaseConfig(Section):
    """One LAB phase: its own rows, and a replay of rows of earlier phases."""

    name: FolderName
    """Also the name of its folder."""
    files: tuple[str, ...]
    """JSONL files of `{"messages": [...], "metadata": {...}}` rows."""
    replay_from: tuple[str, ...] = ()
    """Names of the earlier phases whose rows are replayed."""
    replay_fraction: Fraction = 1.0
    """Share of each replayed phase's rows that is drawn."""
    num_rows: Positive | None = None
    """Number of rows of the recipe's own data, for `--dry-run` without the files."""
    train: TrainConfig


class LabConfig(Section):
    """The supervised start: phases in order, each from the checkpoint of the one before; none: round 0 is the model."""

    phases: tuple[PhaseConfig, ...] = ()

    @model_validator(mode="after")
    def _check_replays(self) -> Self:
        earlier: list[str] = []
        for phase in self.phases:
            unknown = sorted(set(phase.replay_from) - set(earlier))
            if unknown:
                raise ValueError(
                    f"phase {phase.name} replays {', '.join(unknown)}; phases before it: {', '.join(earlier) or 'none'}"
                )
            if phase.name in earlier:
                raise ValueError(f"two phases are named {phase.name}")
            earlier.append(phase.name)
        return self


class PromptFile(Section):
    """One file of prompts."""

    path: str
    """JSONL: `{"messages": [...]}` or `{"prompt": "..."}` rows; a trailing assistant turn is dropped."""
    source: str | None = None
    """Source of rows without one; unset: the file's name."""


class PromptsConfig(Section):
    """The prompt pool, from which each round draws uniformly by source."""

    files: tuple[PromptFile, ...]
    num_prompts: Positive
    """Prompts of one round. Each round takes the next ones of each source; a source that is used up starts again."""


class SamplingConfig(Section):
    """Sampling of completions from the policy."""

    engine: Literal["transformers", "vllm"] = "transformers"
    num_completions: Positive = 8
    """N of best-of-N."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of sampling; 0: greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass of nucleus sampling; 1: all tokens."""
    max_new_tokens: Positive = 1024
    """Longest completion, in tokens; one that reaches it is marked unfinished."""
    shard_size: Positive = 256
    """Prompts of one file of completions; a killed run repeats the file that it was writing."""
    tensor_parallel_size: Positive = 1
    """GPUs that share the policy (vllm)."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that the engine takes (vllm)."""
    max_model_len: Positive | None = None
    """Longest prompt and completion in tokens (vllm); unset: the model's own."""


class SelectionConfig(Section):
    """The choice of the completions that are kept."""

    rule: Literal["best_of_n"] = "best_of_n"
    """`best_of_n` keeps the completion with the highest reward of each prompt."""


class RoundsConfig(Section):
    """The preference-tuning loop."""

    num_rounds: int = Field(default=3, ge=0)
    """Rounds after the SFT start; 0 only evaluates the start."""
    train: TrainConfig | None = None
    """The SFT job of each round, on its selected rows."""

    @model_validator(mode="after")
    def _check_train(self) -> Self:
        if self.num_rounds and self.train is None:
            raise ValueError("rounds.train is missing: each round trains on its selected rows")
        return self


class BenchmarkConfig(Section):
    """One lm-eval task."""

    task: str
    """Name of the task in lm-eval or in `task_dir`."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Solved examples before each item; unset: the task's own number, else 0. A task that sets 0 keeps 0."""
    metric: str
    """Metric and filter as lm-eval names them, like `acc,none` or `exact_match,strict-match`."""
    limit: Positive | None = None
    """Items of the task to use; unset: all."""
    chat_template: bool = False
    """Ask in the policy's chat format, with examples as earlier turns; false: plain text, as on the model cards."""
    generation_arguments: dict[str, Any] = Field(default={})
    """Added to the generation_kwargs of a task that generates, like {max_gen_toks: 512}."""
    is_guard: bool = True
    """Exclude a checkpoint from the peak if its loss against round 0 is significantly greater than guard_tolerance."""


class JudgeConfig(Section):
    """The judge of the answers to the question set."""

    kind: Literal["reference-judge", "llm"] = "reference-judge"
    """`reference-judge` compares with reference answers by rule; `llm` asks an OpenAI-compatible endpoint."""
    model: str | None = None
    """The judging model (llm)."""
    base_url: str | None = None
    """The endpoint (llm), up to /chat/completions, like http://localhost:8000/v1; the key is read from OPENAI_API_KEY.
    Unset: OPENAI_BASE_URL, or OpenAI's own."""
    prompts: str | None = None
    """Judge prompts in FastChat's judge_prompts.jsonl format (llm)."""
    temperature: float | None = Field(default=0.0, ge=0)
    """Temperature of the judge (llm), 0 as in MT-Bench; null: not sent, for models that refuse it, and the endpoint's
    default applies."""
    max_tokens: Positive = 2048
    """Longest reply of the judge, in tokens (llm); the reasoning of a reasoning model counts, too."""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name under which max_tokens is sent (llm): OpenAI's reasoning models accept only max_completion_tokens, some
    servers only max_tokens."""
    timeout_s: Seconds = 600.0
    """Longest wait for a reply (llm); it is asked for again after that."""
    num_parallel: Positive = 32
    """Most calls at a time (llm); an endpoint that is overloaded gets fewer."""
    max_unreadable: Fraction = 0.1
    """Share of unreadable verdicts above which a judged score is refused; it may be changed on --resume."""

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, base_url: str | None) -> str | None:
        if base_url is None:
            return None
        try:
            parts = urlsplit(base_url)
            is_http = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # brackets or a port at fault
            is_http = False
        if not is_http:
            raise ValueError(f"{base_url!r} is not an HTTP address; give one like http://localhost:8000/v1")
        return base_url

    @model_validator(mode="after")
    def _check_llm_judge(self) -> Self:
        if self.kind == "llm" and not (self.model and self.prompts):
            raise ValueError("judge kind llm needs model and prompts")
        return self


class QuestionsConfig(Section):
    """A two-turn question set in MT-Bench's file format."""

    questions: str
    """JSONL file of questions."""
    references: str | None = None
    """JSONL file of reference answers."""
    judge: JudgeConfig = JudgeConfig()
    num_runs: Positive = 1
    """Number of times that answers are generated and judged; mean, min and max are over these runs."""
    max_new_tokens: Positive = 1024
    """Longest answer, in tokens."""
    temperature: float | None = Field(default=None, ge=0)
    """Unset: MT-Bench's temperature for the question's category."""


class ProbeConfig(Section):
    """The probe: prompts on which the rewards of all rounds are compared; no round trains on them."""

    num_prompts: Positive = 256
    """Prompts of the probe, drawn once by seed, uniformly by source."""
    files: tuple[PromptFile, ...] = ()
    """Files of prompts for the probe; unset: at most a tenth of each source of `prompts.files`."""


class EvaluationConfig(Section):
    """The probe, benchmarks and questions on which every round is evaluated."""

    probe: ProbeConfig | None = ProbeConfig()
    """Prompts that every round's policy completes and the reward server scores; null: none. A run without rounds has
    none either."""

    benchmarks: tuple[BenchmarkConfig, ...] = ()
    task_dir: str | None = None
    """Folder of lm-eval task files, which come before lm-eval's own tasks."""
    batch_size: Positive | Literal["auto"] = 8
    """lm-eval's batch size; `auto`: the largest that fits."""
    add_bos_token: bool | None = None
    """Put BOS before the prompts of benchmarks; unset: the tokenizer decides."""
    questions: QuestionsConfig | None = None
    guard_alpha: float = Field(default=0.05, gt=0, lt=1)
    """One-sided significance (Holm over all guards and rounds) at which a loss above the tolerance is proven."""
    guard_tolerance: float = Field(default=0.0, ge=0, lt=1)
    """Accepted loss on a guard, as a fraction; a checkpoint is dropped if its loss is significantly greater."""


class RunConfig(Section):
    """A whole recipe. `winnow run` reads it; `config.json` in the run folder holds it resolved."""

    name: FolderName
    """The run's folder name."""
    runs_dir: str = "runs"
    """Folder in which the run's folder is made."""
    seed: int = 0
    """The seed from which every piece of the run derives its own."""
    stages: Literal["inline", "subprocess"] = "inline"
    """Run stages in this process, or each in a process of its own, whose memory is freed when it ends."""
    policy: PolicyConfig
    lab: LabConfig = LabConfig()
    prompts: PromptsConfig | None = None
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig | None = None
    selection: SelectionConfig = SelectionConfig()
    rounds: RoundsConfig = RoundsConfig(num_rounds=0)
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def probe(self) -> ProbeConfig | None:
        """The probe; None if it is turned off, or if there are no rounds to compare."""
        if self.rounds.num_rounds == 0:
            return None
        return self.evaluation.probe

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        if self.rounds.num_rounds and (self.prompts is None or self.reward is None):
            raise ValueError("rounds need prompts and reward; set rounds.num_rounds: 0 for the SFT start alone")
        return self
