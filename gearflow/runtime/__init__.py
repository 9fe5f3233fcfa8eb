"""The process around the library: event loops, forks, signals, child processes, the environment, bursts in
the log."""
