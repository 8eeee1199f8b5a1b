"""Parts that both clients share, without I/O: connection settings, load balancer, limits, groups in progress."""

from collections.abc import Callable

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from reward_server.certificates import FilePath
from reward_server.client.connection import Address, ConnectionSettings, ServerStubs, connection_settings
from reward_server.client.retries import POLL, CallAttempts, LoadBalancer, RetryPolicy, check_timeout
from reward_server.client.server_info import ServerInfo
from reward_server.protocol import SERVICE_NAME
from winnow.errors import ServerError, UsageError

# Groups in progress, for each server: enough that it can batch them, and never waits for the next.
CONCURRENCY = 8
# Groups that are read and whose rewards are not yielded yet, as a multiple of those in progress. So one slow group
# keeps no server idle.
READ_AHEAD = 4
HEALTH_REQUEST = HealthCheckRequest(service=SERVICE_NAME)

Progress = Callable[[int], None]
"""A function that `score_many` calls with the number of groups that are done."""


class BaseClient:
    """Base class of both clients, which add the calls."""

    def __init__(
        self,
        address: Address | ConnectionSettings,
        timeout_s: float = 600.0,
        *,
        token: str | None = None,
        tls_ca: FilePath | None = None,
        tls_certificate: FilePath | None = None,
        tls_key: FilePath | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        """Check the settings and read the TLS files. Raises UsageError.

        `address` is HOST:PORT (several with commas or as a list), or ConnectionSettings, which hold token and TLS files
        too. `timeout_s` bounds the wait for the rewards of one group, in seconds, retries included.
        """
        self._settings = connection_settings(address, token, tls_ca, tls_certificate, tls_key)
        self._credentials: grpc.ChannelCredentials | None = self._settings.credentials()
        self._balancer = LoadBalancer(self._settings.addresses)
        self._retries = retries or RetryPolicy()
        self._limits: ServerInfo | None = None
        self._is_closed = False
        self._stubs: list[ServerStubs] = []
        self.address = ",".join(self._settings.addresses)
        self.timeout_s = check_timeout(timeout_s)
        self._open()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, timeout_s={self.timeout_s:g})"

    def _open(self) -> None:
        """Open the channels to the servers, where these need no event loop."""

    def _new_attempts(self) -> CallAttempts:
        return CallAttempts(self._balancer, self._retries, self.timeout_s)

    def _is_serving(self, response: HealthCheckResponse, attempts: CallAttempts) -> bool:
        """Return True if a server serves. Raises ServerError if it does not and there is no time to ask again."""
        if response.status == HealthCheckResponse.SERVING:
            return True
        if attempts.remaining_s < POLL.first_pause_s:
            raise ServerError(f"the reward server at {self.address} is not serving: it is starting or stopping")
        return False

    def _num_concurrent(self, concurrency: int | None) -> int:
        """Return the number of groups to have in progress at once. Raises UsageError."""
        if concurrency is None:
            return CONCURRENCY * len(self._settings.addresses)
        if concurrency < 1:
            raise UsageError(f"concurrency {concurrency} should be at least 1")
        return concurrency


def is_result_due(num_pending: int, concurrency: int, is_first_done: bool) -> bool:
    """Return True if the first pending group should be yielded before the next one is read.

    Either it is done and enough others are in progress, or `READ_AHEAD` does not allow to read any further.
    """
    if num_pending >= concurrency * READ_AHEAD:
        return True
    return is_first_done and num_pending >= concurrency
