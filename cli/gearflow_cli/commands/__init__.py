"""One module a command, under the name that you type."""
