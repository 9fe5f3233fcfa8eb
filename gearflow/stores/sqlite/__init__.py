"""The durable store: jobs and results in one SQLite file."""
