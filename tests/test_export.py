"""`winnow export`: the exported folder loads in transformers, renders as the run did, and stops where it stopped."""

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from eval.publishing.export import PROBES, different_prompts, export_peak, write_tokenizer
from eval.publishing.template import published_template
from tests.finished_run import make_finished_run
from tests.processes import winnow_in_process
from tests.tiny_models import make_model
from tests.tiny_run import tiny_config
from winnow.chat import Chat, load_chat, load_tokenizer
from winnow.errors import ModelError, UsageError, WinnowError
from winnow.records import Message
from winnow.run_config import PolicyConfig, RunConfig
from winnow.rundir import Run, start_run

SYSTEM_PROMPT = 'Be "careful",\n it\'s {{ brace }} %} ®.'
DATED_TEMPLATE = """\
{%- if date_string is not defined -%}{%- set date_string = strftime_now("%d %b %Y") -%}{%- endif -%}
{{- bos_token + date_string + strftime_now('%Y-%m-%d') + ('!' if is_loud else '.') + document_bos -}}
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + (eos_token if message['role'] == 'assistant' else '\\n') -}}
{%- endfor -%}
{{- '<|assistant|>\\n' if add_generation_prompt else '' -}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = make_finished_run(tmp_path_factory.mktemp("export"), system_prompt=SYSTEM_PROMPT)
    path = run.checkpoint_dir(1) / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 9], "temperature": 0.5}))
    return run


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_peak(run, tmp_path_factory.mktemp("out") / "peak")


def rendered_ids(tokenizer: Any, messages: Any) -> list[int]:
    rows = [message.model_dump() for message in messages]
    return list(tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=True)["input_ids"])


@pytest.mark.parametrize("probe", range(len(PROBES)))
def test_the_exported_tokenizer_renders_as_the_run_did(run: Run, exported: Path, probe: int) -> None:
    from transformers import AutoTokenizer

    chat = load_chat(run.config.policy, run.policy_path(1))
    tokenizer = AutoTokenizer.from_pretrained(exported)
    expected = chat.prompt_ids(PROBES[probe])
    assert rendered_ids(tokenizer, PROBES[probe]) == expected
    has_system_prompt = SYSTEM_PROMPT in tokenizer.decode(expected)
    assert has_system_prompt == (PROBES[probe][0].role != "system")


def test_the_exported_folder_loads_and_gives_the_checkpoints_logits(run: Run, exported: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    token_ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        logits = [
            AutoModelForCausalLM.from_pretrained(path)(token_ids).logits for path in (run.policy_path(1), exported)
        ]
    assert torch.equal(logits[0], logits[1])


def test_generation_stops_where_sampling_stopped(run: Run, exported: Path) -> None:
    from transformers import GenerationConfig

    chat = load_chat(run.config.policy, run.policy_path(1))
    config = GenerationConfig.from_pretrained(exported)
    assert config.eos_token_id[0] == chat.end_of_turn_id
    assert set(config.eos_token_id) == chat.stop_ids
    assert chat.stop_ids >= {7, 9}
    assert config.temperature == 0.5


def test_weights_are_links_and_the_card_has_the_system_prompt(run: Run, exported: Path) -> None:
    weights = exported / "model.safetensors"
    assert weights.stat().st_ino == (run.checkpoint_dir(1) / "model.safetensors").stat().st_ino
    card = (exported / "README.md").read_text()
    assert "The peak of a winnow run" in card
    assert "round 1 of best-of-N" in card
    assert "it's {{ brace }}" in card


def test_dates_variables_and_bos_are_part_of_the_template(tmp_path: Path) -> None:
    template = tmp_path / "dated.jinja"
    template.write_text(DATED_TEMPLATE)
    model = str(make_model("llama", tmp_path / "model"))
    policy = PolicyConfig(
        model=model,
        chat_template=str(template),
        chat_template_kwargs={"is_loud": True},
        template_date=date(2023, 4, 5),
    )
    chat = load_chat(policy, model)
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = published_template(policy, tokenizer)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False)
    assert text == chat.prompt_text([Message(role="user", content="a")])
    assert "05 Apr 20232023-04-05!" in text
    quiet = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], is_loud=False, tokenize=False)
    assert "2023-04-05." in quiet


@pytest.mark.parametrize(("template", "is_different"), [("mixtral", True), ("mixtral-hf", False), ("lab", False)])
def test_ids_that_differ_with_a_real_tokenizer_are_found(
    reference_data: Path, tmp_path: Path, template: str, is_different: bool
) -> None:
    # The reference encoding of Mixtral's prompts, piece by piece, is not that of transformers.
    source = reference_data / "mistral_tokenizer" / "tokenizer.model.v1"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    folder = str(tmp_path)
    policy = PolicyConfig(model=folder, chat_template=template)
    chat = Chat(load_tokenizer(folder), template)
    write_tokenizer(policy, chat, tmp_path / "exported")
    warnings = different_prompts(chat, tmp_path / "exported")
    assert bool(warnings) == is_different
    assert all("to other token ids than the run did" in warning for warning in warnings)


def test_a_peak_of_the_hub_is_exported_from_its_copy_on_this_machine(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = run.config.model_dump(mode="json")
    tree |= {"runs_dir": str(tmp_path / "runs"), "policy": {**tree["policy"], "model": "team/student"}}
    hub_run = Run(tmp_path / "run", RunConfig.model_validate(tree))
    shutil.copytree(run.root, hub_run.root)
    peak = json.loads(run.peak_path.read_text())
    hub_run.peak_path.write_text(json.dumps({**peak, "round": 0}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match="is 'team/student', which is not on this machine; copy it back, or run `hf"):
        export_peak(hub_run, tmp_path / "peak")
    repository = tmp_path / "hub" / "models--team--student"
    snapshot = make_model("llama", repository / "snapshots" / "ab12", seed=4)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("ab12")
    (snapshot / "consolidated.safetensors").write_text("the same weights for other software")
    export_peak(hub_run, tmp_path / "peak")
    assert [path.name for path in (tmp_path / "peak").glob("*.safetensors")] == ["model.safetensors"]
    assert (tmp_path / "peak" / "model.safetensors").read_bytes() == (snapshot / "model.safetensors").read_bytes()


def test_an_existing_output_and_a_run_without_a_peak_are_refused(run: Run, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists; give a new folder"):
        export_peak(run, exported)
    unfinished = start_run(RunConfig.model_validate(tiny_config(tmp_path)), is_resumed=False)
    with pytest.raises(WinnowError, match=r"has no peak\.json; finish the run"):
        export_peak(unfinished, tmp_path / "peak")
    assert not (tmp_path / "peak").exists()
    result = winnow_in_process("export", str(run.root), "--output", str(exported))
    assert (result.returncode, "exists" in result.stderr) == (2, True)


def test_a_chat_with_several_templates_exports_the_policys(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "model")
    tokenizer = load_tokenizer(str(model))
    tokenizer.chat_template = {"default": "{{ 1 }}", "short": DATED_TEMPLATE}
    policy = PolicyConfig(model=str(model), chat_template="tokenizer:short")
    template = published_template(policy, tokenizer)
    assert template.endswith(DATED_TEMPLATE)
    tokenizer.chat_template = template
    prompt = Chat(tokenizer, "tokenizer").prompt_ids(PROBES[0])
    assert prompt == rendered_ids(tokenizer, PROBES[0])
