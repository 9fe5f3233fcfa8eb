"""A command's own process: signals, restarts, reloads, and the worker processes under it."""


def raise_file_limit() -> None:
    """Allow as many open files, and so connections, as the system permits."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
