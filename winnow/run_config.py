"""What `winnow run` reads: one section for each step of the recipe, and the whole of it, `RunConfig`.

A string under a field says what the field means and in which unit; a validator beside it says what cannot be.
"""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from winnow.config import Dtype, Fraction, Positive, Seconds, Section
from winnow.serve_config import ServeConfig


class RewardConfig(Section):
    """Where rewards come from and how they are made of log-ratios."""

    address: str | None = None
    """HOST:PORT of a running reward server, several with commas; unset: the score stage starts `server`."""
    token_file: str | None = None
    """File with the bearer token that the server at `address` asks for."""
    tls_ca: str | None = None
    """PEM file of the authorities that vouch for the server at `address`; unset: plain text."""
    server: ServeConfig | None = None
    """The server to start when no address is given."""
    normalization: Literal["sum", "mean"] = "sum"
    """`sum` of the completion's log-ratios (the recipe), or their `mean` per token."""
    beta: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Scale of the reward."""
    eos_policy: Literal["include", "exclude", "if_finished"] | None = None
    """Whether the token that closes the turn is scored: always, never, or only where the policy emitted it.

    Unset: the recipe's own, `if_finished`, or `include` for rewardbench, which takes no other.
    """
    is_reference_free: bool = False
    """Reward the instruct model's logp alone, without the base model's."""
    instruction: str = ""
    """The rules of a domain, put before the first user message; empty: none."""
    instruction_scope: Literal["both", "instruct_only"] = "both"
    """Which models read the instruction."""
    recipe: Literal["winnow", "rewardbench"] = "winnow"
    """Whose way of rendering, cutting and scoring is followed."""
    timeout_s: Seconds = 600.0
    """Longest wait for the rewards of one prompt."""

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        if (self.address is None) == (self.server is None):
            raise ValueError(
                "give either address (a running server) or server (one to start), not both and not neither"
            )
        return self

    @model_validator(mode="after")
    def _rewardbench_has_fixed_options(self) -> Self:
        """The server refuses them too; but that would be after a round's sampling."""
        fixed = {"normalization": "sum", "beta": 1.0, "instruction": ""}
        wrong = [key for key, value in fixed.items() if getattr(self, key) != value]
        if self.eos_policy not in (None, "include"):
            wrong.append("eos_policy")
        if self.recipe == "rewardbench" and wrong:
            raise ValueError(f"recipe rewardbench fixes {', '.join(wrong)}; leave it unset, or take recipe winnow")
        return self


class PolicyConfig(Section):
    """The model that is trained."""

    model: str
    """Folder or hub id of the model that LAB SFT, or round 1 where there is none, starts from."""
    chat_template: str = "lab"
    """How its conversations are rendered."""
    system_prompt: str | None = None
    """System message of conversations that bring none; each model performs best with its own."""
    eos_token: str | None = None
    """Token that closes an assistant turn; unset: the tokenizer's own. One that it lacks is added."""
    added_tokens: tuple[str, ...] = ()
    """Special tokens to add to a tokenizer that lacks them, such as the LAB form's headers."""
    num_parameters: Positive | None = None
    """Size of the model, for `--dry-run` where the model is not at hand."""
    teacher: str | None = None
    """The model that wrote the synthetic SFT rows; recorded, not loaded."""
    dtype: Dtype = "auto"
    """Precision of weights in training and sampling."""


class TrainConfig(Section):
    """One SFT job."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    num_epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows."""
    max_steps: Positive | None = None
    """Stop after so many optimizer steps, whatever the epochs."""
    batch_size: Positive = 3840
    """Rows of one optimizer step, over all devices and accumulation."""
    micro_batch_size: Positive = 8
    """Rows of one forward pass on one device."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up, in optimizer steps."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up. LAB keeps it constant between phases: a decay destabilises the next phase."""
    max_tokens: Positive = 4096
    """Context; longer rows are dropped and counted, never truncated."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    is_gradient_checkpointing: bool = False
    """Trade compute for memory."""
    save_steps: Positive | None = None
    """Write a trainer checkpoint every so many steps, from which a killed job goes on; unset: start it anew."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
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
    """One LAB phase: its own rows and a replay of earlier phases'."""

    name: str
    """Also the name of its folder."""
    files: tuple[str, ...]
    """JSONL files of `{"messages": [...], "metadata": {...}}` rows."""
    replay_from: tuple[str, ...] = ()
    """Names of earlier phases whose rows are replayed."""
    replay_fraction: Fraction = 1.0
    """Share of each replayed phase's rows that is drawn."""
    num_rows: Positive | None = None
    """Rows the recipe's own data has, for `--dry-run` where the files are not at hand."""
    train: TrainConfig


class LabConfig(Section):
    """The supervised start: phases in order, each from the last one's checkpoint. Without any, round 0 is the model."""

    phases: tuple[PhaseConfig, ...] = ()

    @model_validator(mode="after")
    def _replays_name_earlier_phases(self) -> Self:
        seen: list[str] = []
        for phase in self.phases:
            if unknown := sorted(set(phase.replay_from) - set(seen)):
                raise ValueError(
                    f"phase {phase.name} replays {', '.join(unknown)}; phases before it: {', '.join(seen) or 'none'}"
                )
            if phase.name in seen:
                raise ValueError(f"two phases are named {phase.name}")
            seen.append(phase.name)
        return self


class PromptFile(Section):
    """One file of prompts."""

    path: str
    """JSONL: `{"messages": [...]}` or `{"prompt": "..."}` rows; a trailing assistant turn is dropped."""
    source: str | None = None
    """Source of rows that name none; unset: the file's name."""


class PromptsConfig(Section):
    """The prompt pool and how a round draws from it: uniformly by source."""

    files: tuple[PromptFile, ...]
    num_prompts: Positive
    """Prompts of one round; each round takes the next ones of each source, and starts over when a source is used up."""


class SamplingConfig(Section):
    """How completions are sampled from the policy."""

    engine: Literal["transformers", "vllm"] = "transformers"
    num_completions: Positive = 8
    """N of best-of-N."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: Positive = 1024
    """Longest completion; one that reaches it is marked unfinished."""
    shard_size: Positive = 256
    """Prompts of one file of completions, the piece of work that a killed run repeats."""
    tensor_parallel_size: Positive = 1
    """GPUs that share the policy (vllm)."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that the engine takes (vllm)."""
    max_model_len: Positive | None = None
    """Longest prompt and completion in tokens (vllm); unset: the model's own."""


class SelectionConfig(Section):
    """Which completions of a prompt are kept."""

    rule: Literal["best_of_n"] = "best_of_n"


class RoundsConfig(Section):
    """The preference-tuning loop."""

    num_rounds: int = Field(default=3, ge=0)
    """Rounds after the SFT start; 0 only evaluates the start."""
    train: TrainConfig | None = None
    """The SFT job of each round, on its selected rows."""

    @model_validator(mode="after")
    def _rounds_train(self) -> Self:
        if self.num_rounds and self.train is None:
            raise ValueError("rounds.train is missing: each round trains on its selected rows")
        return self


class BenchmarkConfig(Section):
    """One lm-eval task."""

    task: str
    num_fewshot: int = Field(default=0, ge=0)
    metric: str
    """Metric and filter as lm-eval names them, like `acc,none` or `exact_match,strict-match`."""
    limit: Positive | None = None
    """Items of the task to use; unset: all."""
    is_guard: bool = True
    """A checkpoint that is significantly worse here than round 0 cannot be the peak."""


class JudgeConfig(Section):
    """Who scores the answers of the question set."""

    kind: Literal["reference-judge", "llm"] = "reference-judge"
    """`reference-judge` compares with reference answers by rule; `llm` asks an OpenAI-compatible endpoint."""
    model: str | None = None
    """The judging model (llm)."""
    base_url: str | None = None
    """The endpoint (llm); the key is read from OPENAI_API_KEY."""
    prompts: str | None = None
    """Judge prompts in FastChat's judge_prompts.jsonl format (llm)."""

    @model_validator(mode="after")
    def _llm_is_whole(self) -> Self:
        if self.kind == "llm" and not (self.model and self.prompts):
            raise ValueError("judge kind llm needs model and prompts")
        return self


class QuestionsConfig(Section):
    """A two-turn question set in MT-Bench's file format."""

    questions: str
    references: str | None = None
    judge: JudgeConfig = JudgeConfig()
    num_runs: Positive = 1
    """How often answers are generated and judged; mean, min and max are taken over runs."""
    max_new_tokens: Positive = 1024
    temperature: float | None = Field(default=None, ge=0)
    """Unset: MT-Bench's temperature for the question's category."""


class EvaluationConfig(Section):
    """What every round is evaluated on."""

    benchmarks: tuple[BenchmarkConfig, ...] = ()
    task_dir: str | None = None
    """Folder of lm-eval task files; unset: lm-eval's own tasks."""
    batch_size: Positive = 8
    questions: QuestionsConfig | None = None
    guard_alpha: float = Field(default=0.05, gt=0, lt=1)
    """One-sided significance (Holm over all guards and rounds) at which a guard drops a checkpoint."""
    guard_tolerance: float = Field(default=0.0, ge=0, lt=1)
    """Loss on a guard, as a fraction, that is accepted however significant."""
    judge_tolerance: float = Field(default=0.0, ge=0)
    """Judged scores closer than this count as tied."""


class RunConfig(Section):
    """A whole recipe: `winnow run` reads it, `config.json` in the run folder holds it resolved."""

    name: str
    """The run's folder name."""
    runs_dir: str = "runs"
    seed: int = 0
    stages: Literal["inline", "subprocess"] = "inline"
    """Run stages in this process, or each as a process of its own, which really frees its memory."""
    policy: PolicyConfig
    lab: LabConfig = LabConfig()
    prompts: PromptsConfig | None = None
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig | None = None
    selection: SelectionConfig = SelectionConfig()
    rounds: RoundsConfig = RoundsConfig(num_rounds=0)
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _rounds_have_what_they_need(self) -> Self:
        if self.rounds.num_rounds and (self.prompts is None or self.reward is None):
            raise ValueError("rounds need prompts and reward; set rounds.num_rounds: 0 for the SFT start alone")
        return self
