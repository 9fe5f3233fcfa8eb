"""Prometheus: what a server or a worker has counted, as metrics, and the HTTP port that shows them.

``exporter`` turns the counts of a server into metrics. ``fleet`` adds up those of several servers.
``worker_counts`` counts the runs of a worker, and ``worker_exporter`` turns these counts into metrics.
``http`` serves ``/metrics``, ``/healthz`` and ``/readyz``. The exporters need the extra ``metrics``.
"""
