"""Names that client and server agree on besides the messages of proto/winnow/v1/reward.proto."""

SERVICE_NAME = "winnow.v1.RewardService"
# Trailing metadata of a call that a full server refused: milliseconds until the caller may try again.
PUSHBACK_KEY = "grpc-retry-pushback-ms"
