"""The broker on RabbitMQ, through pika. No other room imports pika.

Importing pika's Twisted adapter installs the reactor, so the daemons import this package late.
"""
