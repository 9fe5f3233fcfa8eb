"""A server that shares its store with others: its lease, its group commits, and its part in the group."""
