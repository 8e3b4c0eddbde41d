"""The process that answers: sockets, limits, routes, batches, streams, and what is served."""
