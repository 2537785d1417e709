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
    OPERATOR = "a logged-in operator or admin"
    ADMIN = "a logged-in admin"


class Scope(enum.Enum):
    """What an API token must allow for an action."""

    NONE = ""
    """Nothing: any token will do."""
    READ = "tasks:read"
    WRITE = "tasks:write"
    SUBMIT = "submit"
    """`tasks:write`, or `submit:KIND` for each kind that the request names."""
    ACCOUNT = "account"
    """No token will do, only a login."""


class Theme(enum.Enum):
    """Which module of taskd.api.actions performs an action."""

    SERVER = "server"
    ACCOUNTS = "accounts"
    ADMIN = "admin"
    TASKS = "tasks"
    LOGS = "logs"
    LIVE = "live"
    OVERVIEW = "overview"
    QUOTAS = "quotas"


@dataclass(frozen=True)
class Action:
    """``exclusive`` actions change who the client is: they run alone, and later requests wait for them. ``secret`` ones
    carry a password, a token or something like it: they are refused where others could read it."""

    name: str
    theme: Theme
    request: type[Struct]
    access: Access
    summary: str
    summary_es: str
    exclusive: bool = False
    scope: Scope = Scope.READ
    secret: bool = False


_ALL = (
    Action(
        "hello",
        Theme.SERVER,
        m.Nothing,
        Access.ANYONE,
        "Name the server and its limits.",
        "Decir quién es el servidor y sus límites.",
        scope=Scope.NONE,
    ),
    Action(
        "ping",
        Theme.SERVER,
        m.Nothing,
        Access.ANYONE,
        "Check that the server answers.",
        "Comprobar que el servidor responde.",
        scope=Scope.NONE,
    ),
    Action(
        "health",
        Theme.SERVER,
        m.Nothing,
        Access.LOCAL,
        "Say whether the server can do its work.",
        "Decir si el servidor puede trabajar.",
        scope=Scope.NONE,
    ),
    Action(
        "register",
        Theme.ACCOUNTS,
        m.Register,
        Access.ANYONE,
        "Create an account.",
        "Crear una cuenta.",
        exclusive=True,
        scope=Scope.NONE,
        secret=True,
    ),
    Action(
        "login",
        Theme.ACCOUNTS,
        m.Login,
        Access.ANYONE,
        "Log this connection in.",
        "Iniciar sesión en esta conexión.",
        exclusive=True,
        scope=Scope.NONE,
        secret=True,
    ),
    Action(
        "logout",
        Theme.ACCOUNTS,
        m.Nothing,
        Access.USER,
        "Log this connection out and forget its token.",
        "Cerrar la sesión y olvidar su token.",
        exclusive=True,
        scope=Scope.NONE,
    ),
    Action(
        "whoami",
        Theme.ACCOUNTS,
        m.Nothing,
        Access.USER,
        "Name the logged-in user.",
        "Decir quién ha iniciado sesión.",
        scope=Scope.NONE,
    ),
    Action(
        "set_weight",
        Theme.ADMIN,
        m.SetWeight,
        Access.ADMIN,
        "Set how large a user's share of the slots is.",
        "Fijar la parte de los puestos que recibe un usuario.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "change_password",
        Theme.ACCOUNTS,
        m.ChangePassword,
        Access.USER,
        "Change the password and end all other sessions.",
        "Cambiar la contraseña y cerrar las demás sesiones.",
        exclusive=True,
        scope=Scope.ACCOUNT,
        secret=True,
    ),
    Action(
        "set_password",
        Theme.ACCOUNTS,
        m.SetPassword,
        Access.ANYONE,
        "Set the password with a one-time code.",
        "Fijar la contraseña con un código de un solo uso.",
        exclusive=True,
        scope=Scope.NONE,
        secret=True,
    ),
    Action(
        "totp_begin",
        Theme.ACCOUNTS,
        m.TotpBegin,
        Access.USER,
        "Make the secret of a second factor (TOTP).",
        "Crear el secreto de un segundo factor (TOTP).",
        exclusive=True,
        scope=Scope.ACCOUNT,
        secret=True,
    ),
    Action(
        "totp_confirm",
        Theme.ACCOUNTS,
        m.TotpConfirm,
        Access.USER,
        "Turn the second factor on with its first code.",
        "Activar el segundo factor con su primer código.",
        exclusive=True,
        scope=Scope.ACCOUNT,
        secret=True,
    ),
    Action(
        "totp_off",
        Theme.ACCOUNTS,
        m.TotpOff,
        Access.USER,
        "Turn the second factor off.",
        "Desactivar el segundo factor.",
        exclusive=True,
        scope=Scope.ACCOUNT,
        secret=True,
    ),
    Action(
        "delete_account",
        Theme.ACCOUNTS,
        m.DeleteAccount,
        Access.USER,
        "Delete your account with all its tasks.",
        "Eliminar la cuenta propia con todas sus tareas.",
        exclusive=True,
        scope=Scope.ACCOUNT,
        secret=True,
    ),
    Action(
        "sessions",
        Theme.ACCOUNTS,
        m.Nothing,
        Access.USER,
        "List your sessions and API tokens.",
        "Ver las sesiones y los tokens propios.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "end_session",
        Theme.ACCOUNTS,
        m.OneSession,
        Access.USER,
        "End one of your sessions or API tokens.",
        "Cerrar una sesión o un token propios.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "end_sessions",
        Theme.ACCOUNTS,
        m.EndSessions,
        Access.USER,
        "End all your sessions and API tokens.",
        "Cerrar todas las sesiones y los tokens propios.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "new_token",
        Theme.ACCOUNTS,
        m.NewToken,
        Access.USER,
        "Make an API token for a program.",
        "Crear un token para un programa.",
        scope=Scope.ACCOUNT,
        secret=True,
    ),
    Action(
        "users",
        Theme.ADMIN,
        m.Users,
        Access.ADMIN,
        "List the users.",
        "Ver los usuarios.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "set_role",
        Theme.ADMIN,
        m.SetRole,
        Access.ADMIN,
        "Make a user an operator or an admin, or neither.",
        "Hacer a un usuario operador o administrador, o ninguno.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "set_disabled",
        Theme.ADMIN,
        m.SetDisabled,
        Access.ADMIN,
        "Disable a user, or enable it again.",
        "Bloquear a un usuario o desbloquearlo.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "reset_password",
        Theme.ADMIN,
        m.OneUser,
        Access.ADMIN,
        "Make a one-time code with which a user sets a new password.",
        "Crear un código de un solo uso para que un usuario fije su contraseña.",
        scope=Scope.ACCOUNT,
        secret=True,
    ),
    Action(
        "reset_totp",
        Theme.ADMIN,
        m.OneUser,
        Access.ADMIN,
        "Turn the second factor of a user off.",
        "Desactivar el segundo factor de un usuario.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "end_user_sessions",
        Theme.ADMIN,
        m.OneUser,
        Access.ADMIN,
        "End all sessions and API tokens of a user.",
        "Cerrar todas las sesiones y los tokens de un usuario.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "invite",
        Theme.ADMIN,
        m.Invite,
        Access.ADMIN,
        "Make an invitation to register.",
        "Crear una invitación para registrarse.",
        scope=Scope.ACCOUNT,
        secret=True,
    ),
    Action(
        "invitations",
        Theme.ADMIN,
        m.Nothing,
        Access.ADMIN,
        "List the invitations.",
        "Ver las invitaciones.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "end_invitation",
        Theme.ADMIN,
        m.EndInvitation,
        Access.ADMIN,
        "Withdraw an invitation.",
        "Retirar una invitación.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "audit",
        Theme.ADMIN,
        m.GetAudit,
        Access.ADMIN,
        "Show who did what to which account.",
        "Ver quién hizo qué en qué cuenta.",
        scope=Scope.ACCOUNT,
    ),
    Action(
        "new_task",
        Theme.TASKS,
        m.TaskSpec,
        Access.USER,
        "Submit a task.",
        "Crear una tarea.",
        scope=Scope.SUBMIT,
    ),
    Action(
        "new_tasks",
        Theme.TASKS,
        m.NewTasks,
        Access.USER,
        "Submit up to 1,000 tasks, all or none.",
        "Crear hasta 1.000 tareas, todas o ninguna.",
        scope=Scope.SUBMIT,
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
        scope=Scope.WRITE,
    ),
    Action(
        "retry_task",
        Theme.TASKS,
        m.OneTask,
        Access.USER,
        "Run a failed or cancelled task again.",
        "Volver a ejecutar una tarea fallida o cancelada.",
        scope=Scope.WRITE,
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
        "quota",
        Theme.QUOTAS,
        m.GetQuota,
        Access.USER,
        "Show the quotas of a user and how much of them is used.",
        "Ver las cuotas de un usuario y cuánto ha usado.",
    ),
    Action(
        "set_quota",
        Theme.QUOTAS,
        m.SetQuota,
        Access.ADMIN,
        "Set the quotas of a user.",
        "Fijar las cuotas de un usuario.",
        scope=Scope.ACCOUNT,
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
