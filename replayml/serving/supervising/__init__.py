"""The program's side of the worker processes: starting, watching, replacing and updating them."""
