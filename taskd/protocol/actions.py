"""The registry of actions: each action is declared once here.

The line server, docs/protocol.md and the help of the command line are made from it. :mod:`taskd.api.actions` has one
class for each theme, with a method of the action's name.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from msgspec import Struct

from taskd.protocol import messages as m


class Access(enum.Enum):
    """Who may use an action."""

    ANYONE = "anyone"
    LOCAL = "anyone on the server's own machine"
    USER = "a logged-in user"
    ADMIN = "a logged-in admin"


class Theme(enum.Enum):
    """Which module of taskd.api.actions performs an action."""

    SERVER = "server"
    ACCOUNTS = "accounts"
    TASKS = "tasks"
    LOGS = "logs"
    LIVE = "live"
    OVERVIEW = "overview"


@dataclass(frozen=True)
class Action:
    """``exclusive`` actions change who the client is: they run alone, and later requests wait for them."""

    name: str
    theme: Theme
    request: type[Struct]
    access: Access
    summary: str
    summary_es: str
    exclusive: bool = False


_ALL = (
    Action(
        "hello",
        Theme.SERVER,
        m.Nothing,
        Access.ANYONE,
        "Name the server and its limits.",
        "Decir quién es el servidor y sus límites.",
    ),
    Action(
        "ping",
        Theme.SERVER,
        m.Nothing,
        Access.ANYONE,
        "Check that the server answers.",
        "Comprobar que el servidor responde.",
    ),
    Action(
        "health",
        Theme.SERVER,
        m.Nothing,
        Access.LOCAL,
        "Say whether the server can do its work.",
        "Decir si el servidor puede trabajar.",
    ),
    Action(
        "register",
        Theme.ACCOUNTS,
        m.Register,
        Access.ANYONE,
        "Create an account.",
        "Crear una cuenta.",
        exclusive=True,
    ),
    Action(
        "login",
        Theme.ACCOUNTS,
        m.Login,
        Access.ANYONE,
        "Log this connection in.",
        "Iniciar sesión en esta conexión.",
        exclusive=True,
    ),
    Action(
        "logout",
        Theme.ACCOUNTS,
        m.Nothing,
        Access.USER,
        "Log this connection out and forget its token.",
        "Cerrar la sesión y olvidar su token.",
        exclusive=True,
    ),
    Action(
        "whoami",
        Theme.ACCOUNTS,
        m.Nothing,
        Access.USER,
        "Name the logged-in user.",
        "Decir quién ha iniciado sesión.",
    ),
    Action(
        "set_weight",
        Theme.ACCOUNTS,
        m.SetWeight,
        Access.ADMIN,
        "Set how large a user's share of the slots is.",
        "Fijar la parte de los puestos que recibe un usuario.",
    ),
    Action(
        "new_task",
        Theme.TASKS,
        m.TaskSpec,
        Access.USER,
        "Submit a task.",
        "Crear una tarea.",
    ),
    Action(
        "new_tasks",
        Theme.TASKS,
        m.NewTasks,
        Access.USER,
        "Submit up to 1,000 tasks, all or none.",
        "Crear hasta 1.000 tareas, todas o ninguna.",
    ),
    Action(
        "get_tasks",
        Theme.TASKS,
        m.GetTasks,
        Access.USER,
        "List the user's tasks, newest first.",
        "Ver las tareas, de la más reciente a la más antigua.",
    ),
    Action(
        "get_task",
        Theme.TASKS,
        m.OneTask,
        Access.USER,
        "Show everything about one task.",
        "Ver todo sobre una tarea.",
    ),
    Action(
        "cancel_task",
        Theme.TASKS,
        m.OneTask,
        Access.USER,
        "Cancel a task, even if it is already running.",
        "Cancelar una tarea, aunque ya se esté ejecutando.",
    ),
    Action(
        "retry_task",
        Theme.TASKS,
        m.OneTask,
        Access.USER,
        "Run a failed or cancelled task again.",
        "Volver a ejecutar una tarea fallida o cancelada.",
    ),
    Action(
        "explain",
        Theme.TASKS,
        m.OneTask,
        Access.USER,
        "Explain why a task is in its state.",
        "Explicar por qué una tarea está en su estado.",
    ),
    Action(
        "get_log",
        Theme.LOGS,
        m.GetLog,
        Access.USER,
        "Read or follow the log of a task.",
        "Leer o seguir el registro de una tarea.",
    ),
    Action(
        "kinds",
        Theme.SERVER,
        m.Nothing,
        Access.USER,
        "List the kinds that the workers serve.",
        "Ver qué tipos atienden los workers.",
    ),
    Action(
        "overview",
        Theme.OVERVIEW,
        m.Nothing,
        Access.USER,
        "Count the tasks by queue and kind, and how fast they end.",
        "Contar las tareas por cola y tipo, y ver a qué ritmo terminan.",
    ),
    Action(
        "watch",
        Theme.LIVE,
        m.Watch,
        Access.USER,
        "Send an event for every change from now on.",
        "Enviar un evento por cada cambio a partir de ahora.",
    ),
    Action(
        "unwatch",
        Theme.LIVE,
        m.Nothing,
        Access.USER,
        "Send no more events.",
        "No enviar más eventos.",
    ),
    Action(
        "wait",
        Theme.LIVE,
        m.Wait,
        Access.USER,
        "Answer once all these tasks have ended.",
        "Responder cuando terminen estas tareas.",
    ),
)

ACTIONS: dict[str, Action] = {action.name: action for action in _ALL}
