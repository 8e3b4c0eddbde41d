"""The side of the caller: the client, what comes back, and the gateway that knows services by name."""
