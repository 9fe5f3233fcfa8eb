"""TLS and tokens, for clients, workers and servers."""
