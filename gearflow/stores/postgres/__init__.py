"""The store of several servers: jobs and results in a PostgreSQL database."""
