"""Prometheus: what a server or a worker has counted, as metrics, and the HTTP port that shows them.

``worker_counts`` counts the runs of a worker. ``exporter`` turns the counts of servers and workers into
metrics, for which it needs the extra ``metrics``. ``http`` serves ``/metrics``, ``/healthz`` and ``/readyz``.
"""
