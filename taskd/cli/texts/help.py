"""The help of the command line in both languages. The registry of actions has part of the English texts."""

from __future__ import annotations

from typing import get_type_hints

from taskd.model.limits import MAX_WEIGHT, MIN_WEIGHT
from taskd.protocol import messages as m
from taskd.protocol.actions import ACTIONS

EXAMPLES = {
    "main": """\
  taskclient register ana
  taskclient login ana
  taskclient add "render scene 7" --field seconds=2 --wait
  taskclient list --status Completada
  taskclient watch
  taskclient --server tls:tasks.example.org:5001 list --json""",
    "register": "  taskclient register ana\n  taskclient register ana --invitation < two-lines",
    "login": "  taskclient login ana\n  taskclient login ana < password-file",
    "passwd": "  taskclient passwd\n  taskclient passwd --code ana",
    "totp": "  taskclient totp on\n  taskclient totp status",
    "sessions": "  taskclient sessions\n  taskclient sessions --end 7",
    "token": """\
  taskclient token new nightly --days 30 --scope tasks:read --scope submit:backup
  taskclient token list
  TASKD_TOKEN=... taskclient add backup""",
    "add": """\
  taskclient add "render scene 7"
  taskclient add "render scene 8" --field seconds=5 --wait --wait-timeout 1m
  taskclient add "album 7" --kind thumbnail --payload '{"size": 300}' --timeout 30s
  taskclient add command:convert --field input=a.png --field width=300 --wait
  taskclient add backup --delay 1h30m --max-attempts 5
  taskclient add "night report" --at "2026-12-01 02:00"
  taskclient add "pay invoice 17" --key invoice-17
  seq 1 5000 | taskclient add - --key numbers""",
    "list": "  taskclient list --status Procesando\n  taskclient list --all --json | jq .id",
    "show": "  taskclient show 42",
    "watch": "  taskclient watch\n  taskclient watch --json | jq .task.state",
    "wait": "  taskclient wait 42 43 --timeout 1m && echo done",
    "log": "  taskclient log 42 -n 20\n  taskclient log 42 -f --times",
    "explain": "  taskclient explain 42",
    "cancel": "  taskclient cancel 42 43",
    "retry": "  taskclient retry 42 43",
    "kinds": "  taskclient kinds\n  taskclient kinds --json | jq .kind",
    "overview": "  taskclient overview\n  taskclient overview --json | jq '.routes[].waiting'",
    "quota": "  taskclient quota\n  taskclient quota ana --open 5000 --mib default",
    "weight": "  taskclient weight ana 2.5",
    "users": """\
  taskclient users --all
  taskclient users set-role ana operator
  taskclient users disable ana
  taskclient users reset-password ana
  taskclient users reset-totp ana""",
    "invite": "  taskclient invite --uses 20 --days 3",
    "invitations": "  taskclient invitations --end 3",
    "audit": "  taskclient audit --user ana --limit 20\n  taskclient audit --action login --all --json",
}


def summary(command: str, lang: str) -> str:
    """What a command does, in one sentence."""
    if command in _SUMMARIES:
        english, spanish = _SUMMARIES[command]
    else:
        action = ACTIONS[_ACTION_OF.get(command, command)]
        english, spanish = action.summary, action.summary_es
    return spanish if lang == "es" else english


def option(name: str, lang: str, command: str = "") -> str:
    """What an option or argument means, in one sentence; for some commands it is another one."""
    first = command.partition(" ")[0]
    english, spanish = _OPTIONS.get(f"{command}.{name}") or _OPTIONS.get(f"{first}.{name}") or _OPTIONS[name]
    return (spanish if lang == "es" else english).replace("%", "%%")


def _field(request: type, name: str) -> str:
    [meta] = get_type_hints(request, include_extras=True)[name].__metadata__
    description: str = meta.description
    return description.replace("`", "")


_ACTION_OF = {
    "list": "get_tasks",
    "show": "get_task",
    "log": "get_log",
    "cancel": "cancel_task",
    "retry": "retry_task",
    "weight": "set_weight",
    "passwd": "change_password",
    "delete-account": "delete_account",
    "token new": "new_token",
    "users set-role": "set_role",
    "users reset-password": "reset_password",
    "users reset-totp": "reset_totp",
    "users end-sessions": "end_user_sessions",
    "totp off": "totp_off",
}

_SUMMARIES = {
    "totp": (
        "The second factor of your account: codes of an authenticator (TOTP).",
        "El segundo factor de su cuenta: códigos de un autenticador (TOTP).",
    ),
    "totp on": (
        "Turn the second factor on: show its secret, ask for its first code, show ten recovery codes.",
        "Activar el segundo factor: mostrar su secreto, preguntar el primer código y mostrar diez códigos de"
        " recuperación.",
    ),
    "totp status": ("Say whether the second factor is on.", "Decir si el segundo factor está activo."),
    "sessions": (
        "List your sessions and API tokens, or end them.",
        "Ver las sesiones y los tokens propios, o cerrarlos.",
    ),
    "token": (
        "API tokens: logins for programs, without the password.",
        "Tokens: sesiones para programas, sin la contraseña.",
    ),
    "token list": ("List your API tokens.", "Ver los tokens propios."),
    "token end": ("End an API token.", "Cerrar un token."),
    "users": (
        "List the users, or change one of them; for admins.",
        "Ver los usuarios o cambiar uno; para administradores.",
    ),
    "users disable": (
        "Disable a user; this ends the user's sessions and API tokens.",
        "Bloquear a un usuario; se cierran sus sesiones y tokens.",
    ),
    "users enable": ("Enable a disabled user again.", "Desbloquear a un usuario."),
    "invitations": (
        "List the invitations, or withdraw one; for admins.",
        "Ver las invitaciones o retirar una; para administradores.",
    ),
    "main": (
        "Submit tasks to a taskd server and see them run. Without arguments: a menu.",
        "Enviar tareas a un servidor taskd y verlas ejecutarse. Sin argumentos: un menú.",
    ),
    "login": (
        "Log in and store the session for the next commands. Over a UNIX socket, without a name: as your user of this"
        " machine, if the server allows it.",
        "Iniciar sesión y guardarla para las próximas órdenes. Por un socket UNIX y sin nombre: con su usuario de esta"
        " máquina, si el servidor lo permite.",
    ),
    "logout": ("Log out and delete the stored session.", "Cerrar la sesión y borrarla de este equipo."),
    "add": (
        "Submit a task, or one for each line of the input.",
        "Crear una tarea, o una por cada línea de la entrada.",
    ),
    "watch": (
        "Show every change as it happens, until Ctrl-C.",
        "Mostrar los cambios en vivo, hasta Ctrl-C.",
    ),
    "quota": (
        "Show the quotas of a user and how much of them is used. Admins also set them.",
        "Ver las cuotas de un usuario y cuánto ha usado. Quien administra también las fija.",
    ),
    "wait": ("Wait until the tasks have ended.", "Esperar a que terminen las tareas."),
}

_OPTIONS = {
    "server": (
        "HOST:PORT, [IPv6]:PORT, or a Twisted endpoint such as tls:HOST:PORT or unix:/path"
        " (default: TASKD_SERVER, else 127.0.0.1:5000)",
        "HOST:PUERTO, [IPv6]:PUERTO o un endpoint de Twisted como tls:HOST:PUERTO o unix:/ruta"
        " (por omisión TASKD_SERVER, o 127.0.0.1:5000)",
    ),
    "cafile": (
        "PEM file, or folder of *.pem and *.crt files, of the authorities to trust with tls: addresses"
        " (default: TASKD_CAFILE, else those of this machine)",
        "archivo PEM, o carpeta de archivos *.pem y *.crt, con las autoridades de confianza para direcciones tls:"
        " (por omisión TASKD_CAFILE, o las de esta máquina)",
    ),
    "json": (
        "print one JSON object per line, as the server sent it",
        "mostrar un objeto JSON por línea, tal como lo envió el servidor",
    ),
    "token_file": (
        "log in with the API token in the first line of this file, and store nothing (default: TASKD_TOKEN)",
        "iniciar sesión con el token de la primera línea de este archivo, sin guardar nada (por omisión, TASKD_TOKEN)",
    ),
    "wait_turn": (
        "If the server has too many requests, fail at once instead of waiting up to 5 minutes.",
        "Si el servidor tiene demasiadas peticiones, fallar enseguida en vez de esperar hasta 5 minutos.",
    ),
    "invitation": (
        "Ask for an invitation, or take it from the next line of the input (default: TASKD_INVITATION).",
        "Preguntar la invitación o tomarla de la línea siguiente de la entrada (por omisión, TASKD_INVITATION).",
    ),
    "invitation_file": (
        "Take the invitation from the first line of this file.",
        "Tomar la invitación de la primera línea de este archivo.",
    ),
    "passwd.username": ("With --code: whose password to set.", "Con --code: de quién es la contraseña."),
    "code": (
        "Set a new password with a one-time code from an admin; taskclient asks for the code.",
        "Fijar una contraseña nueva con un código de un solo uso de un administrador; se pregunta el código.",
    ),
    "end": ("End the one with this number.", "Cerrar la que tiene este número."),
    "invitations.end": ("Withdraw the one with this number.", "Retirar la que tiene este número."),
    "end_all": (
        "End all other sessions and all API tokens; this session stays.",
        "Cerrar las demás sesiones y todos los tokens; esta sesión sigue.",
    ),
    "token_id": ("The number of an API token.", "El número de un token."),
    "name": (_field(m.NewToken, "name"), "Para qué es el token: de 1 a 64 caracteres."),
    "token new.days": (
        _field(m.NewToken, "days") + " Default: 90.",
        "Días hasta que caduque, 365 como máximo. Por omisión, 90.",
    ),
    "scope": (
        "Something that it allows: tasks:read, tasks:write, or submit:KIND for a kind. Repeatable. Default: everything"
        " but what changes the account.",
        "Algo que permite: tasks:read, tasks:write o submit:TIPO para un tipo. Repetible. Por omisión, todo menos lo"
        " que cambia la cuenta.",
    ),
    "users.username": ("The user.", "El usuario."),
    "role": (_field(m.SetRole, "role"), "user, operator (operador) o admin (administrador)."),
    "uses": (
        _field(m.Invite, "uses") + " Default: 1.",
        "Cuántas cuentas pueden crearse con ella. Por omisión, 1.",
    ),
    "invite.days": (
        _field(m.Invite, "days") + " Default: 7.",
        "Días hasta que caduque, 365 como máximo. Por omisión, 7.",
    ),
    "list.username": (
        "The tasks of this user instead of your own; for operators and admins.",
        "Las tareas de este usuario en vez de las propias; para operadores y administradores.",
    ),
    "audit.user": (_field(m.GetAudit, "username"), "Solo lo que este usuario hizo o sufrió."),
    "action": (_field(m.GetAudit, "action_name"), "Solo esta acción, p. ej. login."),
    "verb": ("COMMAND", "ORDEN"),
    "verbs": ("commands", "órdenes"),
    "username": (
        f"{_field(m.Register, 'username')} taskclient asks for it if it is missing.",
        "De 1 a 64 caracteres; único sin distinguir mayúsculas. Si falta, se pregunta.",
    ),
    "quota.username": (
        "The user; for operators and admins. Default: you.",
        "El usuario; para operadores y administradores. Por omisión, usted.",
    ),
    "open": (
        "Set how many tasks the user may have that have not ended. 0: no limit; default: as the server's settings say.",
        "Fijar cuántas tareas sin terminar puede tener. 0: sin límite; default: lo que diga la configuración.",
    ),
    "daily": (
        "Set how many tasks the user may create within 24 hours. 0 and default: as above.",
        "Fijar cuántas tareas puede crear en 24 horas. 0 y default: como arriba.",
    ),
    "mib": (
        "Set how many MiB of texts, payloads, results and logs the user may have. 0 and default: as above.",
        "Fijar cuántos MiB de textos, datos, resultados y registros puede tener. 0 y default: como arriba.",
    ),
    "weight.username": ("The user.", "El usuario."),
    "weight": (
        f"A number from {MIN_WEIGHT:g} to {MAX_WEIGHT:,.0f}; every user begins with 1."
        " A user with 2 gets twice as much as one with 1 while both have tasks that wait.",
        "Un número de 0.001 a 1000; todos empiezan con 1. Quien tiene 2 recibe el doble que quien tiene 1 mientras"
        " ambos tengan tareas en espera.",
    ),
    "text": (
        f"{_field(m.TaskSpec, 'task')} - reads one task per line from the input."
        " A single word that names a kind selects this kind and is also the text: a program (command:NAME), or a kind"
        " that workers serve now, see `taskclient kinds`. Anything else is the text of a task of the default kind."
        " With --kind, the words are only the text.",
        "Qué es, en palabras del usuario: de 1 a 4.096 caracteres. - lee una tarea por línea de la entrada."
        " Una sola palabra que nombre un tipo elige ese tipo y es también el texto: un programa (command:NOMBRE), o un"
        " tipo que los workers atiendan ahora, vea `taskclient kinds`. Todo lo demás es el texto de una tarea del tipo"
        " por omisión. Con --kind, las palabras son solo el texto.",
    ),
    "stdin": ("The same as -.", "Lo mismo que -."),
    "kind": (
        _field(m.TaskSpec, "kind") + " Default: simulate. With it, the text is optional.",
        "Qué manejador la ejecuta. Por omisión, simulate. Con esta opción, el texto es opcional.",
    ),
    "payload": (_field(m.TaskSpec, "payload"), "Los argumentos del manejador, un objeto JSON."),
    "field": (
        "One argument of the handler: VALUE is JSON if it is valid JSON, else text. Repeatable.",
        "Un argumento del manejador: VALOR es JSON si es JSON válido; si no, texto. Repetible.",
    ),
    "queue": (_field(m.TaskSpec, "queue"), "Una de las colas del servidor; si falta, la primera."),
    "max_attempts": (
        _field(m.TaskSpec, "max_attempts"),
        "Cuántas veces puede intentarse; si falta, lo decide su tipo.",
    ),
    "key": (
        _field(m.TaskSpec, "key") + " 1 to 128 printable characters. With -, line N of the input has the key K:N (K at"
        " most 108 characters), so the same command with the same lines continues where it was interrupted."
        " Default: a random key; an error message names it if it is needed.",
        "La misma clave da otra vez la misma tarea, así que se puede repetir la orden sin duplicarla."
        " De 1 a 128 caracteres imprimibles. Con -, la línea N de la entrada lleva la clave K:N (K, 108 como máximo):"
        " la misma orden con las mismas líneas continúa donde se interrumpió. Por omisión, una clave al azar; si hace"
        " falta, el mensaje de error la indica.",
    ),
    "wait": (
        "Show its states and its progress until it has ended.",
        "Mostrar sus estados y su progreso en vivo hasta que termine.",
    ),
    "wait_timeout": (
        "How long to wait at most, such as 90, 90s or 1h30m; after that the exit status is 3.",
        "Cuánto esperar como máximo, p. ej. 90, 90s o 1h30m; código de salida 3 si se agota.",
    ),
    "timeout": (
        "How long an attempt may take, if less than its kind allows: 90, 90s, 1h30m, 2d, 1.5h.",
        "Cuánto puede durar un intento, si es menos de lo que permite su tipo: 90, 90s, 1h30m, 2d, 1.5h.",
    ),
    "delay": (
        "Do not run it before this time has passed: 90, 90s, 1h30m, 2d, 1.5h.",
        "No ejecutarla antes de que pase este tiempo: 90, 90s, 1h30m, 2d, 1.5h.",
    ),
    "at": (
        'Do not run it before this time: "2026-12-01 08:00" in the local time zone, or with one: 2026-12-01T08:00Z,'
        " 2026-12-01T08:00+02:00.",
        'No ejecutarla antes de este momento: "2026-12-01 08:00" en la zona horaria local, o con una:'
        " 2026-12-01T08:00Z, 2026-12-01T08:00+02:00.",
    ),
    "follow": (
        "Continue with new lines until the task has ended.",
        "Seguir con las líneas nuevas hasta que la tarea termine.",
    ),
    "lines": ("Begin with the last N lines.", "Empezar por las últimas N líneas."),
    "attempt": ("Only the lines of this attempt.", "Solo las líneas de este intento."),
    "times": ("Put its date and time before each line.", "Anteponer a cada línea su fecha y hora."),
    "status": (
        _field(m.GetTasks, "status"),
        "Solo las de este estado: Procesando, Completada, Fallida o Cancelada.",
    ),
    "state": (
        _field(m.GetTasks, "state"),
        "Solo las de este estado interno, p. ej. queued, running o failed.",
    ),
    "list.kind": (_field(m.GetTasks, "kind"), "Solo las tareas de este tipo."),
    "limit": ("How many at most (default 100).", "Cuántas como máximo (por omisión, 100)."),
    "watch.limit": (
        "How many of the newest tasks to show first (default 10).",
        "Cuántas de las tareas más recientes mostrar al principio (por omisión, 10).",
    ),
    "all": ("All of them.", "Todas."),
    "task_ids": ("A task's number.", "El número de una tarea."),
    "task_id": ("A task's number.", "El número de una tarea."),
    "examples": ("examples:", "ejemplos:"),
    "command": ("COMMAND", "ORDEN"),
    "commands": ("commands", "órdenes"),
    "exit": (
        "exit status: 0 ok, 1 error, 2 usage, 3 timed out or cancelled, 4 not logged in,\n"
        "  5 a task that was waited for failed",
        "código de salida: 0 bien, 1 error, 2 uso, 3 tiempo agotado o cancelada,\n"
        "  4 sin sesión, 5 falló una tarea esperada",
    ),
    "new_password": (
        "taskclient asks for the present password, or takes it from TASKD_PASSWORD or from the first line of the input;"
        " the new one is asked for twice, or is the next line of the input.",
        "taskclient pregunta la contraseña actual, o la toma de TASKD_PASSWORD o de la primera línea de la entrada; la"
        " nueva se pregunta dos veces, o es la línea siguiente de la entrada.",
    ),
    "totp_input": (
        "taskclient asks for the password, or takes it from TASKD_PASSWORD or from the first line of the input; the"
        " code is asked for, or is the next line of the input.",
        "taskclient pregunta la contraseña, o la toma de TASKD_PASSWORD o de la primera línea de la entrada; el código"
        " se pregunta, o es la línea siguiente de la entrada.",
    ),
    "password": (
        "taskclient asks for the password, or takes it from TASKD_PASSWORD or from the first line of the input.",
        "taskclient pregunta la contraseña, o la toma de TASKD_PASSWORD o de la primera línea de la entrada.",
    ),
}
