"""The time of a judge stage with a slow judge: 80 questions of two turns, 160 judgments, against a scripted endpoint.

    judge_ratio = seconds of judge_answers / max(sum of latencies / 32, latencies of the slowest question)

The endpoint is a real HTTP server in this process. It answers each judgment after 1 to 3 s (uniform, drawn by a seed),
times --scale. The bound is what 32 calls at a time could reach at best. Since calls end at different times, a client
without overhead needs 1.08 to 1.21 times the bound (500 seeds; each latency is taken by the first free caller).

    python -m benchmarks.evaluation [--json] [--scale 0.1] [--seed 0]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

from eval.judging.llm_judge import PROMPT_NAMES
from eval.judging.mt_bench import Answer, judge_answers
from eval.judging.opening import open_judge
from eval.judging.questions import NUM_TURNS, Question
from winnow.run_config import JudgeConfig

NUM_QUESTIONS = 80
NUM_PARALLEL = 32
LATENCY_S = (1.0, 3.0)


@dataclass(frozen=True)
class JudgeStage:
    """The measured time and its bound, in seconds."""

    judge_s: float
    bound_s: float
    slowest_question_s: float
    judge_ratio: float


class _Server(ThreadingHTTPServer):
    """A server that takes the calls of all threads at once."""

    request_queue_size = 4 * NUM_PARALLEL


def measure(scale: float, seed: int) -> JudgeStage:
    """Judge every turn once, through the client that runs use, with finished requests kept in a file."""
    questions: list[Question] = []
    latencies: dict[str, float] = {}
    chains: list[float] = []
    random = Random(seed)
    for number in range(NUM_QUESTIONS):
        turns = (f"Question {number}, turn 1.", f"Question {number}, turn 2.")
        questions.append(Question(question_id=number, category="writing", turns=turns))
        for turn in turns:
            latencies[turn] = scale * random.uniform(*LATENCY_S)
        chains.append(sum(latencies[turn] for turn in turns))
    answers = [Answer(question.question_id, 0, ("An answer.",) * NUM_TURNS) for question in questions]
    with tempfile.TemporaryDirectory() as folder, slow_judge(latencies) as base_url:
        prompts = Path(folder) / "judge_prompts.jsonl"
        rows = [{"name": name, "system_prompt": "", "prompt_template": "{question}"} for name in PROMPT_NAMES]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = JudgeConfig(
            kind="llm", model="scripted", base_url=base_url, prompts=str(prompts), num_parallel=NUM_PARALLEL
        )
        with open_judge(config, Path(folder) / "requests.jsonl") as judge:
            start = time.perf_counter()
            judge_answers(judge, questions, {}, answers, "tiny", "scripted judge")
            judge_s = time.perf_counter() - start
    bound_s = max(sum(latencies.values()) / NUM_PARALLEL, *chains)
    return JudgeStage(judge_s, bound_s, max(chains), judge_s / bound_s)


@contextmanager
def slow_judge(latencies: Mapping[str, float]) -> Iterator[str]:
    """Yield the base URL of an endpoint that answers a prompt after its latency."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each reply waits 40 ms for an acknowledgement, as no real endpoint does

        def do_POST(self) -> None:
            """Reply to a chat request with a rating."""
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(latencies[body["messages"][-1]["content"]])
            choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "Rating: [[7]]"}}
            payload = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 900, "completion_tokens": 150}})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload.encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class prescribes the name
            """Log nothing."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    """Measure, and print a text or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the latencies (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the latencies (default: 0)")
    arguments = parser.parse_args()
    stage = measure(arguments.scale, arguments.seed)
    if arguments.json:
        print(json.dumps(asdict(stage)))
    else:
        print(f"judge stage: {stage.judge_s:.2f} s, bound {stage.bound_s:.2f} s, ratio {stage.judge_ratio:.3f}")


if __name__ == "__main__":
    main()
