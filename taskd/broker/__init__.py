"""The implementations of :class:`taskd.ports.broker.IBroker`: on RabbitMQ and in memory.

They carry hints and events, and decide nothing about tasks.
"""
