"""The broker: RabbitMQ or memory behind one interface, :class:`taskd.ports.IBroker`."""
