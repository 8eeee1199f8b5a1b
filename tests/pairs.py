"""The pair of models of a server's config, with its engines in the process of the tests."""

from reward_server.engines.loading import load_engines
from reward_server.scoring.load_pair import check_models, load_chats, make_pair
from reward_server.scoring.model_pair import Pair
from winnow.serve_config import ServeConfig


def open_pair(config: ServeConfig) -> Pair:
    """Check and load both models, as a server does at its start. Raises UsageError and ModelError."""
    check_models(config)
    return make_pair(config, load_chats(config), load_engines(config))
