"""Checks of a server's config that find every cheap fault before weights are loaded, which may take minutes.

    addresses -> exposure -> TLS and token files -> engine library -> model files -> tokenizers and templates

`winnow serve` runs them at start-up; `winnow run` runs them for its own server before the first stage.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from reward_server.scoring.load_pair import PairChats, check_models, load_chats
from reward_server.serving.auth import ServerAuth, check_exposure, load_auth
from winnow.addresses import open_listener, parse_listen_address
from winnow.serve_config import ServeConfig


@dataclass(frozen=True)
class Preflight:
    """The files that the checks read; the server does not read them again."""

    auth: ServerAuth
    chats: PairChats


def preflight(config: ServeConfig) -> Preflight:
    """Check the config of a server.

    Tokenizers of hub ids are downloaded. Raises UsageError and ModelError with the remedy, ModuleNotFoundError for an
    engine whose library is not installed.
    """
    check_address_is_free(config.listen)
    if config.metrics_listen is not None:
        check_address_is_free(config.metrics_listen, "metrics_listen")
    check_exposure(config)
    auth = load_auth(config)
    if config.engine == "vllm" and find_spec("vllm") is None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
    check_models(config)
    return Preflight(auth, load_chats(config))


def check_address_is_free(listen: str, key: str = "listen") -> None:
    """Raise UsageError for an address that cannot be listened on."""
    open_listener(parse_listen_address(listen, key)).close()
