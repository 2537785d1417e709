"""The registry: each action once, with its fields, who may use it and how it is ordered.

The line server, the documentation and the client's help are all made from it. The server binds one handler to each
name (``taskd.api.actions``); a test holds both sides together.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from msgspec import Struct

from taskd.protocol import messages as m


class Access(enum.Enum):
    """Who may use an action."""

    ANYONE = "anyone"
    USER = "a logged-in user"


@dataclass(frozen=True)
class Action:
    """``exclusive`` actions change who the connection is: they run alone, and later requests wait for them."""

    name: str
    request: type[Struct]
    access: Access
    summary: str
    summary_es: str
    exclusive: bool = False


def _registry() -> Iterator[Action]:
    anyone, user = Access.ANYONE, Access.USER
    yield Action(
        "hello",
        m.Nothing,
        anyone,
        "Who the server is, and its limits.",
        "Quién es el servidor y sus límites.",
    )
    yield Action("ping", m.Nothing, anyone, "Is the server there?", "¿Está el servidor?")
    yield Action("register", m.Register, anyone, "Create an account.", "Crear una cuenta.", exclusive=True)
    yield Action(
        "login",
        m.Login,
        anyone,
        "Log this connection in.",
        "Iniciar sesión en esta conexión.",
        exclusive=True,
    )
    yield Action(
        "logout",
        m.Nothing,
        user,
        "Log this connection out and forget its token.",
        "Cerrar la sesión y olvidar su token.",
        exclusive=True,
    )
    yield Action("whoami", m.Nothing, user, "Who is logged in.", "Quién ha iniciado sesión.")
    yield Action("new_task", m.TaskSpec, user, "Submit a task.", "Crear una tarea.")
    yield Action(
        "new_tasks",
        m.NewTasks,
        user,
        "Submit up to 1,000 tasks, all or none.",
        "Crear hasta 1.000 tareas, todas o ninguna.",
    )
    yield Action(
        "get_tasks",
        m.GetTasks,
        user,
        "List one's tasks, newest first.",
        "Ver las tareas, de la más reciente a la más antigua.",
    )
    yield Action("get_task", m.OneTask, user, "Everything about one task.", "Todo sobre una tarea.")
    yield Action(
        "cancel_task",
        m.OneTask,
        user,
        "Cancel a task, be it that it runs already.",
        "Cancelar una tarea, aunque ya se esté ejecutando.",
    )
    yield Action(
        "retry_task",
        m.OneTask,
        user,
        "Have a failed or cancelled task tried again.",
        "Volver a intentar una tarea fallida o cancelada.",
    )
    yield Action(
        "explain",
        m.OneTask,
        user,
        "Why a task is where it is.",
        "Por qué una tarea está como está.",
    )
    yield Action("get_log", m.GetLog, user, "The log of a task.", "El registro de una tarea.")
    yield Action("kinds", m.Nothing, user, "What the workers serve.", "Qué tipos atienden los workers.")
    yield Action("watch", m.Watch, user, "Hear of every change from now on.", "Seguir los cambios en vivo.")
    yield Action("unwatch", m.Nothing, user, "Hear no more of changes.", "Dejar de seguir los cambios.")
    yield Action(
        "wait",
        m.Wait,
        user,
        "Answer once all these tasks have ended.",
        "Responder cuando terminen estas tareas.",
    )


ACTIONS: dict[str, Action] = {a.name: a for a in _registry()}
