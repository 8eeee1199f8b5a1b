"""The base class of both clients, without I/O: connection settings, load balancer, limits, groups in progress."""

from collections.abc import Callable

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from reward_server.certificates import FilePath
from reward_server.client.connection import Address, ConnectionSettings, ServerStubs, connection_settings
from reward_server.client.retries import POLL, CallAttempts, LoadBalancer, RetryPolicy, check_timeout
from reward_server.client.server_info import ServerInfo
from reward_server.protocol import SERVICE_NAME
from winnow.errors import ServerError, UsageError

# Groups in progress for each server: enough for full batches, and for the server not to wait for the next group.
CONCURRENCY = 8
# Most groups that are read but not yielded, as a multiple of the groups in progress. The groups behind a slow group
# keep the servers busy.
READ_AHEAD_FACTOR = 4
HEALTH_REQUEST = HealthCheckRequest(service=SERVICE_NAME)

Progress = Callable[[int], None]
"""A function that `score_many` calls after each group, with the number of groups that are done."""


class BaseClient:
    """The settings and the state of a client; the subclasses add the calls."""

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
        """Check the settings and read the TLS files. Raises UsageError for a setting or file that cannot be used.

        address           HOST:PORT, several with commas or as a list; or ConnectionSettings, which hold token and
                          tls_* too
        timeout_s         longest wait for the rewards of one group, in seconds, retries included
        token             bearer token that is sent with every call
        tls_ca            PEM file of the trusted authorities; turns TLS on
        tls_certificate   PEM file of the caller's certificate, for servers that ask for one (mutual TLS)
        tls_key           PEM file of the certificate's private key
        retries           limits of the retries; None: RetryPolicy()
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
        """Open the channels to the servers. The default opens none: channels of asyncio need a running event loop."""

    def _new_attempts(self) -> CallAttempts:
        return CallAttempts(self._balancer, self._retries, self.timeout_s)

    def _is_serving(self, response: HealthCheckResponse, attempts: CallAttempts) -> bool:
        """Return True if a server serves. Raises ServerError if it does not and no time is left for another check."""
        if response.status == HealthCheckResponse.SERVING:
            return True
        if attempts.remaining_s < POLL.first_pause_s:
            raise ServerError(f"the reward server at {self.address} is not serving: it is starting or stopping")
        return False

    def _num_concurrent(self, concurrency: int | None) -> int:
        """Return the number of groups in progress at once; None stands for the default. Raises UsageError."""
        if concurrency is None:
            return CONCURRENCY * len(self._settings.addresses)
        if concurrency < 1:
            raise UsageError(f"concurrency {concurrency} should be at least 1")
        return concurrency


def is_result_due(num_pending: int, num_concurrent: int, is_first_done: bool) -> bool:
    """Return True if the first pending group should be yielded before the next group is read.

    Either it is done and enough groups are pending, or as many groups are pending as may be read ahead.
    """
    if num_pending >= num_concurrent * READ_AHEAD_FACTOR:
        return True
    return is_first_done and num_pending >= num_concurrent
