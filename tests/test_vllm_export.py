"""An exported peak in vLLM: `LLM.chat` renders as the run did, and generation stops where sampling stopped."""

from pathlib import Path

import pytest

from eval.publishing.export import PROBES, export_peak
from tests.finished_run import make_finished_run
from tests.tiny_models import make_model
from winnow.chat import load_chat

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    # vLLM imports parts of torch that use its old compiler.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    # Its sockets are closed when they are collected.
    pytest.mark.filterwarnings("ignore:Unclosed (context|socket):ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_vllm_loads_an_exported_peak_with_its_chat_template_and_stop_ids(tmp_path: Path) -> None:
    from vllm import LLM, SamplingParams

    run = make_finished_run(tmp_path, system_prompt="Be careful.")
    # vLLM's CPU attention wants heads of at least 32 dimensions.
    make_model("mistral", run.checkpoint_dir(1), seed=3, head_dim=32)
    exported = export_peak(run, tmp_path / "peak")
    llm = LLM(model=str(exported), dtype="float32", max_model_len=256, enforce_eager=True)
    try:
        conversations = [[message.model_dump() for message in probe] for probe in PROBES]
        outputs = llm.chat(conversations, SamplingParams(max_tokens=2, temperature=0.0))
        defaults = llm.llm_engine.model_config.try_get_generation_config()
    finally:
        llm.llm_engine.engine_core.shutdown()
    chat = load_chat(run.config.policy, run.policy_path(1))
    assert [output.prompt_token_ids for output in outputs] == [chat.prompt_ids(probe) for probe in PROBES]
    assert set(defaults["eos_token_id"]) == chat.stop_ids
