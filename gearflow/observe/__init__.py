"""The state of job servers for operators: one look at each server, and sums over all of them.

``look`` asks one server, ``look_all`` several at once. Each returns a ``ServerView``, also of a server that
does not answer, and of C gearmand with what its text protocol tells. ``FleetView`` puts views together, and
``activity`` finds out from two views what happened between them. Nothing here keeps connections or state. The
caller owns the client, and decides how often it looks.
"""

from gearflow.observe.activity import Activity, activity
from gearflow.observe.acts import cancel_job, pause_function, purge_function, quiet_worker, targets
from gearflow.observe.checkup import Checkup, examine
from gearflow.observe.findings import Finding, findings_of
from gearflow.observe.fleet import FleetView
from gearflow.observe.look import ALL_PARTS, LOOK_TIMEOUT, PATIENCE, Patience, ServerWatch, look, look_all
from gearflow.observe.view import LimitTexts, ServerView, ViewPart
from gearflow.protocol.histograms import added, between, percentile

__all__ = [
    "ALL_PARTS",
    "LOOK_TIMEOUT",
    "PATIENCE",
    "Activity",
    "Checkup",
    "Finding",
    "FleetView",
    "LimitTexts",
    "Patience",
    "ServerView",
    "ServerWatch",
    "ViewPart",
    "activity",
    "added",
    "between",
    "cancel_job",
    "examine",
    "findings_of",
    "look",
    "look_all",
    "pause_function",
    "percentile",
    "purge_function",
    "quiet_worker",
    "targets",
]
