"""The two commands that twistd learns from taskd; nothing of taskd is imported until one of them is run."""

from twisted.application.service import ServiceMaker

taskserver = ServiceMaker(
    "taskd server",
    "taskd.server.tap",
    "Serve tasks to many users over a line protocol.",
    "taskserver",
)

taskworker = ServiceMaker(
    "taskd worker",
    "taskd.worker.tap",
    "Run the tasks that taskd servers hand out through RabbitMQ.",
    "taskworker",
)
