"""The gRPC server: start-up, methods, the wire format, access control."""
