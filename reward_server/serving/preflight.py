"""Checks of a server's config that find every cheap fault before weights are loaded, which may take minutes.

    addresses -> exposure -> TLS and token files -> engine library, devices -> model files -> tokenizers, templates

`winnow serve` runs them at start-up and ends at the first fault; `winnow run` runs them for its own server before the
first stage, and lists every fault.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from reward_server.engines.loading import check_device_maps
from reward_server.scoring.load_pair import PairChats, check_models, load_chats
from reward_server.serving.auth import ServerAuth, check_exposure, load_auth
from winnow.addresses import open_listener, parse_listen_address
from winnow.checkpoints import check_checkpoint, is_on_this_machine
from winnow.inspection import Inspection
from winnow.models import check_model_path
from winnow.serve_config import ServeConfig


@dataclass(frozen=True)
class Preflight:
    """The contents of the files that the checks read, so that the server does not read them again."""

    auth: ServerAuth
    chats: PairChats


def preflight(config: ServeConfig) -> Preflight:
    """Check the config of a server, and return the contents of its files. Downloads the tokenizers of hub ids.

    Raises UsageError and ModelError with the remedy; ModuleNotFoundError if the engine's library is not installed.
    """
    check_addresses_are_free(config)
    check_exposure(config)
    auth = load_auth(config)
    check_engine(config)
    check_models(config)
    return Preflight(auth, load_chats(config))


def inspect_server(config: ServeConfig, inspection: Inspection) -> None:
    """Collect every fault of the config of a server that a run starts, and not the first alone."""
    num_faults = len(inspection.faults)
    for check in (check_addresses_are_free, check_exposure, load_auth, check_engine):
        with inspection.collect():
            check(config)
    if not _has_whole_models(config, inspection):
        return
    missing = [model for model in (config.instruct, config.base) if not is_on_this_machine(model)]
    if inspection.is_dry and missing:
        names = " and ".join(missing)
        inspection.unchecked.append(f"tokenizers and template of the reward server: {names} not on this machine")
        return
    with inspection.collect():
        check_models(config)
        load_chats(config)
    inspection.add_checked(
        f"reward server of {config.instruct} and {config.base}, their files, tokenizers and template", num_faults
    )


def _has_whole_models(config: ServeConfig, inspection: Inspection) -> bool:
    """Collect the faults of each model's files; tell whether there are none."""
    num_faults = len(inspection.faults)
    for model in (config.instruct, config.base):
        with inspection.collect():
            check_model_path(model)
            check_checkpoint(model)
    return len(inspection.faults) == num_faults


def check_engine(config: ServeConfig) -> None:
    """Check that the engine's library and devices exist. Raises ModuleNotFoundError and UsageError."""
    if config.engine == "vllm" and find_spec("vllm") is None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
    if config.engine == "transformers":
        check_device_maps(config)


def check_addresses_are_free(config: ServeConfig) -> None:
    """Raise UsageError if the server cannot listen at each of its addresses, both at the same time."""
    with open_listener(parse_listen_address(config.listen)):
        if config.metrics_listen is not None:
            open_listener(parse_listen_address(config.metrics_listen, "metrics_listen")).close()
