"""``gearflow top``: servers, functions, workers and jobs live in the terminal.

``model`` is what the person has chosen: the view, the selection, the sorting and the filter. ``rows`` selects
what a view shows of the servers, ``columns`` turns it into texts, and ``frame`` draws them. These four are
pure. ``terminal`` writes lines and reads keys. ``job_lists``, ``details`` and ``acts`` ask the servers, and
``live`` is the loop.
"""
