"""``taskclient``: the command line, the menu, and what they print. The connection is in :mod:`taskd.client`."""
