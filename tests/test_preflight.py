"""preflight: every cheap fault of a server's config is found before weights are loaded, and before a run samples."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_models import make_tokenizer
from reward_server.serving.preflight import preflight
from reward_server.serving.server import serve
from tests.processes import winnow_in_process
from tests.tiny_models import FOREIGN_TEXTS, make_pair
from tests.tiny_run import tiny_config, write_config
from winnow.errors import ModelError, UsageError
from winnow.inspection import Inspection
from winnow.run_config import RunConfig
from winnow.rundir import Run
from winnow.serve_config import ServeConfig, TlsConfig

WITHOUT_EOS = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def config(pair: dict[str, str]) -> ServeConfig:
    return ServeConfig(**pair, chat_template="mixtral", listen="127.0.0.1:0", device_map="cpu")


@pytest.fixture
def taken_address() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def with_foreign_tokenizer(pair: dict[str, str], folder: Path) -> str:
    shutil.copytree(pair["base"], folder / "foreign")
    make_tokenizer(folder / "foreign", FOREIGN_TEXTS)
    return str(folder / "foreign")


def without_weights(pair: dict[str, str], folder: Path) -> str:
    shutil.copytree(pair["base"], folder / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    return str(folder / "empty")


def faults(pair: dict[str, str], folder: Path, taken_address: str) -> list[tuple[dict[str, Any], type, str]]:
    """Return changes of a config that each make one cheap fault, the type of its error, and a part of its message."""
    missing = str(folder / "missing")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free_address = f"127.0.0.1:{listener.getsockname()[1]}"
    return [
        ({"listen": "localhost"}, UsageError, "should be HOST:PORT"),
        ({"listen": taken_address}, UsageError, "take another port"),
        ({"metrics_listen": taken_address}, UsageError, "take another port"),
        ({"listen": "localhost"}, UsageError, "should be HOST:PORT"),
        ({"listen": free_address, "metrics_listen": free_address}, UsageError, "take another port"),
        ({"device_map": "gpu7"}, UsageError, "'gpu7' is not a device; set device_map to"),
        ({"base_device_map": "cuda:77"}, UsageError, "'cuda:77' is a GPU that PyTorch does not find here"),
        ({"listen": "0.0.0.0:0"}, UsageError, "open to other machines"),
        ({"tls": TlsConfig(certificate=missing, key=missing)}, UsageError, "tls.certificate .* cannot be read"),
        ({"token_file": write(folder / "tokens", "# none\n")}, UsageError, "holds no token"),
        ({"engine": "vllm"}, ModuleNotFoundError, "vllm"),
        ({"base": missing}, UsageError, "does not exist"),
        ({"base": without_weights(pair, folder)}, ModelError, "holds no weight files"),
        ({"max_tokens": 10**6}, UsageError, "more than the models were made for"),
        ({"base": with_foreign_tokenizer(pair, folder)}, ModelError, "tokenizers of .* differ"),
        ({"chat_template": "./no.jinja"}, UsageError, "neither a file nor one of"),
        ({"chat_template": write(folder / "open.jinja", WITHOUT_EOS)}, ModelError, "does not close an assistant turn"),
    ]


def test_preflight_finds_every_cheap_fault(
    config: ServeConfig, pair: dict[str, str], tmp_path: Path, taken_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward_server.serving.preflight.find_spec", lambda name: None)
    for changes, error, message in faults(pair, tmp_path, taken_address):
        broken = config.model_copy(update=changes)
        with pytest.raises(error, match=message):
            preflight(broken)
    preflight(config)


def test_serve_starts_no_engine_where_preflight_finds_a_fault(
    config: ServeConfig, pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: ServeConfig) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("reward_server.serving.server.start_engines", fail)
    monkeypatch.setattr("reward_server.serving.server.log_to_stderr", lambda: None)
    with pytest.raises(ModelError, match=r"tokenizers of .* differ"):
        serve(config.model_copy(update={"base": with_foreign_tokenizer(pair, tmp_path)}))


def test_preflight_returns_the_files_that_it_read(config: ServeConfig, tmp_path: Path) -> None:
    tokens = write(tmp_path / "tokens", "alice secret\n")
    checked = preflight(config.model_copy(update={"token_file": tokens}))
    assert checked.chats.has_shared_tokenizer
    assert checked.chats.instruct.template == "mixtral"
    assert checked.auth.credentials is None
    assert checked.auth.tokens is not None
    assert checked.auth.tokens.name_of([("authorization", "Bearer secret")]) == "alice"


def test_a_run_finds_a_fault_of_its_server_before_it_samples(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config["reward"]["server"]["base"] = with_foreign_tokenizer(config["reward"]["server"], tmp_path)
    path = write_config(tmp_path, config)
    for arguments in ((), ("--dry-run",)):
        result = winnow_in_process("run", path, *arguments)
        assert result.returncode == 2, result.stderr
        [line] = [line for line in result.stderr.splitlines() if line.startswith("winnow: ")]
        assert line.startswith("winnow: the tokenizers of ")
        assert "differ" in line
        assert "; give a base model with the instruct model's tokenizer" in line
    assert not (tmp_path / "runs" / "tiny" / "ledger.jsonl").exists()


def test_a_run_needs_no_reward_models_once_its_last_round_is_selected_and_probed(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run = Run(tmp_path, RunConfig.model_validate(config))
    probed_run = Run(tmp_path, RunConfig.model_validate({**config, "evaluation": {}}))

    def has_all_rewards(run: Run = run) -> bool:
        return Inspection(run, is_dry=False, finished_pieces=run.ledger.pieces()).has_all_rewards

    assert not has_all_rewards()
    for piece in ("round-01/select", "round-02/score/0000"):
        with run.ledger.record(piece, "inputs"):
            pass
    assert not has_all_rewards()
    with run.ledger.record("round-02/select", "inputs"):
        pass
    assert has_all_rewards()
    assert not has_all_rewards(probed_run)
    with run.ledger.record("round-02/probe/metrics", "inputs"):
        pass
    assert has_all_rewards(probed_run)
