"""The implementations of :class:`taskd.ports.broker.IBroker`: RabbitMQ and one in memory. They carry messages and
events, and decide nothing about tasks.
"""
