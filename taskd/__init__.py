"""taskd: a multi-user task server on Twisted."""

__version__ = "0.1.0"
