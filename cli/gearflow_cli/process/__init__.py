"""A command's own process: signals, restarts, reloads, and the worker processes under it."""
