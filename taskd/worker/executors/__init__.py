"""The executors: they run handlers on the reactor, in threads and in child processes, and programs. They know neither
store nor broker."""
