"""The client: a line protocol connection, the commands and the menu of ``taskclient``."""
