"""What every server repairs or continues once a second: one file for each duty, and the rounds that run them.

All servers do it at the same time. The store's row locks keep them from doing anything twice, so there is no leader.
"""
