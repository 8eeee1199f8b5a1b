"""Checks of a server's config that find every cheap fault before weights are loaded, which may take minutes.

    addresses -> exposure -> TLS and token files -> engine library -> model files -> devices -> tokenizers, templates

`winnow serve` runs them at start-up; `winnow run` runs them for its own server before the first stage.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from reward_server.engines.loading import check_device_maps
from reward_server.scoring.load_pair import PairChats, check_models, load_chats
from reward_server.serving.auth import ServerAuth, check_exposure, load_auth
from winnow.addresses import open_listener, parse_listen_address
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
    if config.engine == "vllm" and find_spec("vllm") is None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
    check_models(config)
    if config.engine == "transformers":
        check_device_maps(config)
    return Preflight(auth, load_chats(config))


def check_addresses_are_free(config: ServeConfig) -> None:
    """Raise UsageError if the server cannot listen at each of its addresses, both at the same time."""
    with open_listener(parse_listen_address(config.listen)):
        if config.metrics_listen is not None:
            open_listener(parse_listen_address(config.metrics_listen, "metrics_listen")).close()
