"""Tests of taskd; services.py and daemons.py are also used by bench/."""
