"""What is announced to whom: change records, the publisher that sends them to all processes, and the hub that passes
them to whoever watches or waits. It knows no connection and decides nothing about tasks.
"""
