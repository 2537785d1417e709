"""One module for each group of commands of ``taskclient``. They print through :mod:`taskd.cli.ui`."""
