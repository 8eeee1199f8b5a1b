"""The reward server: log-ratio rewards of completions over gRPC, and its client."""
