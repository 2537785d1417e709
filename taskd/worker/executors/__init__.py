"""The ways to run a handler: on the reactor, in a thread, in a child process. They know neither store nor broker."""
