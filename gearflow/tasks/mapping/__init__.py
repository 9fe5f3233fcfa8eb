"""Many calls of one task: ``map``, ``amap``, ``reduce``, ``then`` and ``background_many``."""
