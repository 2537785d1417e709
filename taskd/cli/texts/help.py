"""The command line's help in both languages. The English half comes from the registry where that says it."""

from __future__ import annotations

from typing import Any, get_type_hints

from msgspec import Meta

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
    "register": "  taskclient register ana\n  TASKD_PASSWORD=... taskclient register ana",
    "login": "  taskclient login ana\n  taskclient login ana < password-file",
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
}


def summary(command: str, lang: str) -> str:
    """What a command does, in one sentence."""
    english, spanish = _SUMMARIES.get(command, ("", ""))
    action = ACTIONS.get(_ACTION_OF.get(command, command))
    if action is not None:
        english, spanish = english or action.summary, spanish or action.summary_es
    return spanish if lang == "es" else english


def option(name: str, lang: str) -> str:
    """What an option or argument means, in one sentence."""
    english, spanish = _OPTIONS[name]
    return (spanish if lang == "es" else english).replace("%", "%%")


def _field(request: type, name: str) -> str:
    hints = get_type_hints(request, include_extras=True)
    meta: list[Any] = [m for m in getattr(hints[name], "__metadata__", ()) if isinstance(m, Meta)]
    return next((m.description for m in meta if m.description), "").replace("`", "")


_ACTION_OF = {
    "add": "new_task",
    "list": "get_tasks",
    "show": "get_task",
    "log": "get_log",
    "cancel": "cancel_task",
    "retry": "retry_task",
}

_SUMMARIES = {
    "main": (
        "Submit tasks to a taskd server and see them run. Without arguments: a menu.",
        "Enviar tareas a un servidor taskd y verlas ejecutarse. Sin argumentos: un menú.",
    ),
    "login": (
        "Log in; the session is kept for the next commands.",
        "Iniciar sesión; se guarda para las próximas órdenes.",
    ),
    "logout": ("Log out and forget the session.", "Cerrar la sesión y olvidarla."),
    "add": (
        "Submit a task, or one for each line of the input.",
        "Crear una tarea, o una por cada línea de la entrada.",
    ),
    "watch": (
        "See every change live, until Ctrl-C.",
        "Ver los cambios en vivo, hasta Ctrl-C.",
    ),
    "wait": ("Wait until these tasks have ended.", "Esperar a que terminen estas tareas."),
}

_OPTIONS = {
    "server": (
        "HOST:PORT, [IPv6]:PORT, or a Twisted endpoint such as tls:HOST:PORT or unix:/path"
        " (default: TASKD_SERVER, else 127.0.0.1:5000)",
        "HOST:PUERTO, [IPv6]:PUERTO o un endpoint de Twisted como tls:HOST:PUERTO o unix:/ruta"
        " (por omisión TASKD_SERVER, o 127.0.0.1:5000)",
    ),
    "json": (
        "one JSON object a line, as on the wire",
        "un objeto JSON por línea, como en el protocolo",
    ),
    "username": (
        f"{_field(m.Register, 'username')} Asked for when left out.",
        "De 1 a 64 caracteres; único sin distinguir mayúsculas. Si falta, se pregunta.",
    ),
    "text": (
        f"{_field(m.TaskSpec, 'task')} - reads one task a line from the input.",
        "Qué es, en palabras del usuario: de 1 a 4.096 caracteres. - lee una tarea por línea de la entrada.",
    ),
    "stdin": ("The same as -.", "Lo mismo que -."),
    "kind_or_text": (
        "A single word that is a kind is taken for the kind: a program (command:NAME), or one that the workers serve"
        " now, see `taskclient kinds`. It is the text as well then. Everything else is the text of a task of the"
        " default kind. With --kind nothing is guessed.",
        "Una sola palabra que sea un tipo se toma como tal: un programa (command:NOMBRE), o uno que los workers"
        " atiendan ahora, vea `taskclient kinds`; es entonces también el texto. Todo lo demás es el texto de una tarea"
        " del tipo por omisión. Con --kind no se adivina nada.",
    ),
    "kind": (
        _field(m.TaskSpec, "kind") + " Default: simulate. The text may be left out then.",
        "Qué manejador la ejecuta. Por omisión, simulate. El texto puede faltar entonces.",
    ),
    "payload": (_field(m.TaskSpec, "payload"), "Los argumentos del manejador, un objeto JSON."),
    "field": (
        "One argument of the handler: VALUE is JSON if it reads as JSON, else text. Repeatable.",
        "Un argumento del manejador: VALOR es JSON si se lee como tal; si no, texto. Repetible.",
    ),
    "queue": (_field(m.TaskSpec, "queue"), "Una de las colas del servidor; si falta, la primera."),
    "max_attempts": (
        _field(m.TaskSpec, "max_attempts"),
        "Cuántas veces puede intentarse; si falta, lo decide su tipo.",
    ),
    "key": (
        _field(m.TaskSpec, "key") + " 1 to 128 printable characters. With -, line N of the input has the key K:N (K at"
        " most 108 characters), so that the same command with the same lines goes on where it was interrupted."
        " Default: a random key, which an error names where it matters.",
        "La misma clave da otra vez la misma tarea, así que se puede repetir la orden sin duplicarla."
        " De 1 a 128 caracteres imprimibles. Con -, la línea N de la entrada lleva la clave K:N (K, 108 como máximo):"
        " la misma orden con las mismas líneas continúa donde se interrumpió. Por omisión, una clave al azar, que un"
        " error nombra si hace falta.",
    ),
    "wait": (
        "Show its states and its progress live until it has ended.",
        "Mostrar sus estados y su progreso en vivo hasta que termine.",
    ),
    "wait_timeout": (
        "How long to wait at most, such as 90, 90s or 1h30m; exit status 3 when it has passed.",
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
        'Do not run it before then: "2026-12-01 08:00" in the local time zone, or with one: 2026-12-01T08:00Z,'
        " 2026-12-01T08:00+02:00.",
        'No ejecutarla antes: "2026-12-01 08:00" en la zona horaria local, o con una: 2026-12-01T08:00Z,'
        " 2026-12-01T08:00+02:00.",
    ),
    "follow": (
        "Go on with what the task says until it has ended.",
        "Seguir con lo que diga la tarea hasta que termine.",
    ),
    "lines": ("Begin with the last N lines.", "Empezar por las últimas N líneas."),
    "attempt": ("Only the lines of this attempt.", "Solo las líneas de este intento."),
    "times": ("Begin each line with its date and time.", "Anteponer a cada línea su fecha y hora."),
    "status": (
        _field(m.GetTasks, "status"),
        "Solo las de este estado: Procesando, Completada, Fallida o Cancelada.",
    ),
    "state": (
        _field(m.GetTasks, "state"),
        "Solo las de este estado interno, p. ej. queued, running o failed.",
    ),
    "kind_filter": (_field(m.GetTasks, "kind"), "Solo las tareas de este tipo."),
    "limit": ("How many at most (default 100).", "Cuántas como máximo (por omisión, 100)."),
    "watch_limit": (
        "How many of the newest tasks to show first (default 10).",
        "Cuántas de las tareas más recientes mostrar al principio (por omisión, 10).",
    ),
    "all": ("All of them.", "Todas."),
    "task_id": ("A task's number.", "El número de una tarea."),
    "examples": ("examples:", "ejemplos:"),
    "command": ("COMMAND", "ORDEN"),
    "commands": ("commands", "órdenes"),
    "exit": (
        "exit status: 0 ok, 1 error, 2 usage, 3 timed out or cancelled, 4 not logged in,\n  5 a waited-for task failed",
        "código de salida: 0 bien, 1 error, 2 uso, 3 tiempo agotado o cancelada,\n"
        "  4 sin sesión, 5 una tarea esperada falló",
    ),
    "password": (
        "The password is asked for, or taken from TASKD_PASSWORD or from the first line of the input.",
        "La contraseña se pregunta, o se toma de TASKD_PASSWORD o de la primera línea de la entrada.",
    ),
}
