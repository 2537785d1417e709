"""The broker on RabbitMQ, through pika. No other package imports pika.

Importing pika's Twisted adapter installs the reactor, so the daemons import this package only when they need it.
"""
