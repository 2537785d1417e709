"""The truth: PostgreSQL or SQLite behind one interface, :class:`taskd.ports.ITaskStore`."""
