"""Services whose replicas run on Ray Serve (extra ``ray``)."""
