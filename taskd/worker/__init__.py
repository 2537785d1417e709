"""The worker: finds the tasks that are assigned to it, runs them and stores their outcomes.

Modules of handlers import ``handler``, ``Retry``, ``Reject`` and ``Backoff`` from here.
"""

from taskd.model.backoff import Backoff
from taskd.worker.handler import Handler, Reject, Retry, handler

__all__ = ["Backoff", "Handler", "Reject", "Retry", "handler"]
