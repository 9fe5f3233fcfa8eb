"""``gearflow top``: servers, functions, workers and jobs live in the terminal.

``model`` is what the person has chosen: the view, the selection, the sorting and the filter. ``columns`` says
what a view shows of the servers, ``frame`` draws both, ``terminal`` writes lines and reads keys, and ``live``
looks at the servers again and again and carries out what the keys ask for. The first three are pure.
"""
