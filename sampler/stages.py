"""The sampler's stages of a round: sample, score, select. Each takes a run and a round, and skips what is finished.

sample   prompt pool -> prompts.jsonl -> completions/<shard>.parquet      (a ledger line per shard)
score    completions/<shard>.parquet -> rewards/<shard>.parquet           (a ledger line per shard)
select   prompts, completions, rewards -> selected.jsonl, metrics.json    (one ledger line)
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from sampler.metrics import round_metrics
from sampler.prompts import draw, group_by_source, read_pool
from sampler.selection import best_of_n
from winnow.chat import Chat, load_chat
from winnow.errors import ChatError
from winnow.progress import progress
from winnow.records import Completion, Message, Prompt, Reward, Selection, digest, seed_from
from winnow.rows import read_jsonl, read_parquet, write_json, write_jsonl, write_parquet
from winnow.rundir import Run

if TYPE_CHECKING:
    from sampler.engines import Sampled, SamplingEngine

Shard = tuple[str, Sequence[Prompt]]


class Unrendered(NamedTuple):
    """Why a prompt is not completed: a status of `winnow.v1.Status` in lower case, and what is wrong."""

    status: str
    error: str


def sample(run: Run, number: int) -> None:
    """Sample N completions of each prompt of the round from the last round's policy."""
    shards = _shards(run, _round_prompts(run, number))
    inputs = {name: _sampling_inputs(run, number, name, prompts) for name, prompts in shards}
    pending = [s for s in shards if not run.ledger.is_finished(_piece(run, number, "sample", s[0]), inputs[s[0]])]
    if not pending:
        return
    from sampler.engines import open_engine

    config = run.config
    model = run.policy_path(number - 1)
    chat = load_chat(config.policy, model)
    engine = open_engine(config.sampling, model, chat, config.policy.dtype)
    with progress(f"round {number}: sample", sum(len(p) for _, p in pending), "prompts") as advance:
        for name, prompts in pending:
            with run.ledger.record(_piece(run, number, "sample", name), inputs[name]) as facts:
                rows = list(_completions(engine, chat, prompts, run, seed_from(config.seed, number, name)))
                write_parquet(run.completions_dir(number) / f"{name}.parquet", rows)
                facts.update(num_completions=len(rows), num_tokens=sum(row.num_tokens for row in rows))
            advance(len(prompts))


def score(run: Run, number: int) -> None:
    """Score the round's completions on the reward server, which is started first if the config describes one."""
    shards = _shards(run, _read_prompts(run, number))
    inputs = {name: _scoring_inputs(run, number, name) for name, _ in shards}
    pending = [s for s in shards if not run.ledger.is_finished(_piece(run, number, "score", s[0]), inputs[s[0]])]
    if not pending:
        return
    from sampler.managed_server import reward_client
    from sampler.score import score_completions

    config = run.config.reward
    assert config is not None  # RunConfig: rounds need reward
    num_prompts = sum(len(prompts) for _, prompts in pending)
    with (
        reward_client(config, run.round_dir(number)) as client,
        progress(f"round {number}: score", num_prompts, "prompts") as advance,
    ):
        for name, prompts in pending:
            with run.ledger.record(_piece(run, number, "score", name), inputs[name]) as facts:
                completions = read_parquet(run.completions_dir(number) / f"{name}.parquet", Completion)
                rows: list[Reward] = []
                by_id = {prompt.prompt_id: prompt for prompt in prompts}
                for rewards in score_completions(client, config, by_id, completions):
                    rows += rewards
                    advance()
                write_parquet(run.rewards_dir(number) / f"{name}.parquet", rows)
                facts.update(num_rewards=len(rows), num_failed=sum(row.reward is None for row in rows))


def select(run: Run, number: int) -> None:
    """Keep the best completion of each prompt as a training row; write the round's metrics."""
    piece, inputs = f"{run.round_name(number)}/select", _selection_inputs(run, number)
    if run.ledger.is_finished(piece, inputs):
        return
    with run.ledger.record(piece, inputs) as facts:
        prompts = _read_prompts(run, number)
        groups = rewards_by_prompt(read_parquet(run.rewards_dir(number), Reward))
        texts = {
            (row.prompt_id, row.completion_id): row.text
            for row in read_parquet(run.completions_dir(number), Completion)
        }
        selected = [
            selection(prompt, best, texts[best.prompt_id, best.completion_id], number)
            for prompt in prompts
            if (best := best_of_n(groups.get(prompt.prompt_id, [])))
        ]
        metrics = round_metrics(groups, run.config.sampling.num_completions, seed_from(run.config.seed, number))
        by_source = {source: len(group) for source, group in sorted(group_by_source(prompts).items())}
        write_jsonl(run.selected_path(number), selected)
        write_json(run.metrics_path(number), {"round": number, **metrics, "by_source": by_source})
        facts.update(num_selected=len(selected), batch_reward=metrics["batch_reward"], gap=metrics["gap"])


def rewards_by_prompt(rewards: Sequence[Reward]) -> dict[str, list[Reward]]:
    """Each prompt's rewards; rows of one prompt stand together."""
    return {prompt_id: list(rows) for prompt_id, rows in groupby(rewards, key=lambda row: row.prompt_id)}


def selection(prompt: Prompt, best: Reward, text: str, number: int) -> Selection:
    """The kept completion as a training row; the winner is an assistant turn after the prompt's own messages."""
    metadata: dict[str, Any] = {
        "prompt_id": prompt.prompt_id,
        "completion_id": best.completion_id,
        "source": prompt.source,
        "round": number,
        "reward": best.reward,
    }
    return Selection(messages=(*prompt.messages, Message(role="assistant", content=text)), metadata=metadata)


def _completions(
    engine: "SamplingEngine", chat: Chat, prompts: Sequence[Prompt], run: Run, seed: int
) -> Iterator[Completion]:
    """The completions of a shard; a prompt that cannot be completed gives rows that say why."""
    from sampler.engines import Sampling

    config = run.config.sampling
    limit = None if engine.max_tokens is None else engine.max_tokens - config.max_new_tokens
    rendered = {prompt.prompt_id: _rendered(chat, prompt, limit) for prompt in prompts}
    prompt_ids = [ids for ids in rendered.values() if isinstance(ids, list)]
    sampling = Sampling(config.num_completions, config.temperature, config.top_p, config.max_new_tokens, seed)
    sampled = iter(engine.sample(prompt_ids, sampling) if prompt_ids else [])
    for prompt in prompts:
        ids = rendered[prompt.prompt_id]
        if isinstance(ids, Unrendered):
            yield from _failed(prompt, config.num_completions, ids)
        else:
            yield from _sampled(prompt, next(sampled))


def _rendered(chat: Chat, prompt: Prompt, limit: int | None) -> list[int] | Unrendered:
    """The prompt's token ids, or why it has none; `limit` is the longest prompt that leaves room to complete it."""
    try:
        ids = chat.prompt_ids(prompt.messages)
    except ChatError as error:
        return Unrendered(error.status, str(error))
    if limit is not None and len(ids) > limit:
        return Unrendered("too_long", f"the prompt has {len(ids)} tokens; with max_new_tokens at most {limit} fit")
    return ids


def _failed(prompt: Prompt, num_completions: int, why: Unrendered) -> Iterator[Completion]:
    for index in range(num_completions):
        yield Completion(
            prompt_id=prompt.prompt_id,
            completion_id=index,
            text="",
            num_tokens=0,
            is_finished=False,
            status=why.status,
            error=why.error,
        )


def _sampled(prompt: Prompt, completions: "Sequence[Sampled]") -> Iterator[Completion]:
    for index, one in enumerate(completions):
        yield Completion(
            prompt_id=prompt.prompt_id,
            completion_id=index,
            text=one.text,
            num_tokens=one.num_tokens,
            is_finished=one.is_finished,
        )


def _round_prompts(run: Run, number: int) -> list[Prompt]:
    """The round's prompts, drawn once and written down, so that a later change of the files changes no round."""
    path, piece = run.prompts_path(number), f"{run.round_name(number)}/prompts"
    config = run.config.prompts
    assert config is not None  # RunConfig: rounds need prompts
    inputs = digest([config.model_dump(mode="json"), run.config.seed, number])
    if not run.ledger.is_finished(piece, inputs):
        with run.ledger.record(piece, inputs) as facts:
            prompts = draw(read_pool(config.files), config.num_prompts, number, run.config.seed)
            write_jsonl(path, prompts)
            facts.update(num_prompts=len(prompts))
    return _read_prompts(run, number)


def _read_prompts(run: Run, number: int) -> list[Prompt]:
    return [Prompt.model_validate(row) for _, row in read_jsonl(run.prompts_path(number))]


def _shards(run: Run, prompts: Sequence[Prompt]) -> list[Shard]:
    size = run.config.sampling.shard_size
    return [(f"{start // size:04d}", prompts[start : start + size]) for start in range(0, len(prompts), size)]


def _piece(run: Run, number: int, stage: str, shard: str) -> str:
    return f"{run.round_name(number)}/{stage}/{shard}"


def _sampling_inputs(run: Run, number: int, shard: str, prompts: Sequence[Prompt]) -> str:
    """What decides a shard's completions: how is sampled, from which policy, for which prompts."""
    trained = run.ledger.line(f"{run.round_name(number - 1)}/{'start' if number == 1 else 'train'}")
    return digest(
        [
            run.config.sampling.model_dump(mode="json"),
            run.config.policy.model_dump(mode="json"),
            trained and trained["inputs"],
            [prompt.prompt_id for prompt in prompts],
            [run.config.seed, number, shard],
        ]
    )


def _scoring_inputs(run: Run, number: int, shard: str) -> str:
    """What decides a shard's rewards: its completions and how rewards are made. Where the server stands does not."""
    sampled = run.ledger.line(_piece(run, number, "sample", shard))
    assert run.config.reward is not None
    access = {"address", "token_file", "tls_ca"}
    return digest([sampled and sampled["inputs"], run.config.reward.model_dump(mode="json", exclude=access)])


def _selection_inputs(run: Run, number: int) -> str:
    scored = [
        run.ledger.line(_piece(run, number, "score", name)) for name, _ in _shards(run, _read_prompts(run, number))
    ]
    return digest([run.config.selection.model_dump(mode="json"), [line and line["inputs"] for line in scored]])
