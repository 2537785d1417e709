"""The texts of the client about tasks, in English and Spanish."""

from __future__ import annotations

STATES = {
    "waiting": "en espera",
    "scheduled": "programada",
    "retrying": "reintentando",
    "queued": "en cola",
    "running": "en curso",
    "completed": "completada",
    "failed": "fallida",
    "cancelled": "cancelada",
}

REASONS: dict[str, tuple[str, str]] = {
    "completed": ("It is completed. To see its result: {show}", "Está completada. Para ver su resultado: {show}"),
    "failed": (
        "It has failed: {error}. To see all its attempts: {show}. To run it again: {retry}",
        "Falló: {error}. Para ver todos sus intentos: {show}. Para volver a intentarla: {retry}",
    ),
    "cancelled": (
        "It was cancelled. To run it again: {retry}",
        "Se canceló. Para volver a intentarla: {retry}",
    ),
    "running": ("", "Un worker la ejecuta desde {since} ({attempt})."),
    "queued": ("", "Ya está asignada en la cola {queue}; la tomará el primer worker libre que atienda {kind}."),
    "retrying": ("", "Falló el {attempt}: {error}. Se volverá a intentar, no antes de {run_at}."),
    "scheduled": ("", "Está programada: no empezará antes de {run_at}."),
    "no_worker": (
        "",
        "Ningún worker atiende el tipo {kind} en la cola {queue}; espera hasta que haya uno (con --handlers, o con"
        " --programs si es un programa).",
    ),
    "broker_down": ("", "RabbitMQ no está disponible; la tarea continuará por sí sola en cuanto vuelva."),
    "waiting": ("", "Espera su turno en la cola {queue}: hay otras antes, o se está asignando ahora mismo."),
}
"""Why a task is in its state, by the code of ``explain``. Where English is empty, the server's message is used."""

TASK_WORDS: dict[str, tuple[str, str]] = {
    # the command line
    "bad_task": (
        "{where}a task needs 1 to 4,096 characters, at least one of them visible",
        "{where}una tarea necesita de 1 a 4.096 caracteres, al menos uno visible",
    ),
    "bad_kind": (
        "a kind has 1 to 64 letters, digits or _ . : -",
        "un tipo tiene de 1 a 64 letras, dígitos o _ . : -",
    ),
    "bad_payload": (
        "--payload must be a JSON object, such as {example}",
        "--payload debe ser un objeto JSON, como {example}",
    ),
    "bad_field": (
        "a field must have the form NAME=VALUE, not {given}",
        "un dato debe tener la forma NOMBRE=VALOR, no {given}",
    ),
    "bad_key": (
        "a key has 1 to {limit} printable characters",
        "una clave tiene de 1 a {limit} caracteres imprimibles",
    ),
    "no_text": (
        "what is the task? give its text, or - to read one task per line from the input",
        "¿cuál es la tarea? indique su texto, o - para leer una tarea por línea de la entrada",
    ),
    "text_and_stdin": ("give either a text or --stdin", "indique un texto o --stdin, no ambos"),
    "bad_number": ("{given} is not a whole number of 1 or more", "{given} no es un número entero a partir de 1"),
    "bad_duration": (
        "{given} is not a duration; write it like 90, 90s, 1h30m, 2d or 1.5h",
        "{given} no es una duración; escríbala como 90, 90s, 1h30m, 2d o 1.5h",
    ),
    "no_duration": (
        "it must be longer than 0; write it like 30s or 1h30m",
        "debe ser mayor que 0; escríbala como 30s o 1h30m",
    ),
    "long_duration": (
        "{given} is longer than the maximum, {most}",
        "{given} supera el máximo, {most}",
    ),
    "bad_moment": (
        '{given} is not a date and time; write it like "2026-12-01 08:00" or 2026-12-01T08:00Z',
        '{given} no es una fecha con hora; escríbala como "2026-12-01 08:00" o 2026-12-01T08:00Z',
    ),
    "wait_timeout_needs_wait": ("--wait-timeout needs --wait", "--wait-timeout requiere --wait"),
    "line_too_large": (
        "the request has more than {limit} bytes; make the payload smaller",
        "la petición supera los {limit} bytes; reduzca los datos",
    ),
    "line": ("line {n}: ", "línea {n}: "),
    "too_deep": (
        "the payload is nested too deeply; make it flatter",
        "los datos tienen demasiados niveles; redúzcalos",
    ),
    # creating
    "created": ("Task {id} created.", "Tarea {id} creada."),
    "created_kind": ("Task {id} created, of kind {kind}.", "Tarea {id} creada, de tipo {kind}."),
    "created_many": ("{n} tasks created ({first} to {last}).", "{n} tareas creadas ({first} a {last})."),
    "created_none": ("no tasks in the input; nothing created", "la entrada no tiene tareas; no se creó nada"),
    "created_before": (
        "{n} tasks were created before the error; --key {key} with the same lines continues from there.",
        "Se crearon {n} tareas antes del error; --key {key} con las mismas líneas continúa desde ahí.",
    ),
    "known": (
        "Task {id} already exists under this key.",
        "La tarea {id} ya existe con esta clave.",
    ),
    "known_many": (
        "{n} tasks already exist under these keys ({first} to {last}).",
        "{n} tareas ya existen con estas claves ({first} a {last}).",
    ),
    "interrupted_unconfirmed": (
        "Not confirmed yet; the same command with --key {key} creates it only if it does not exist.",
        "Aún sin confirmar; la misma orden con --key {key} la crea solo si no existe.",
    ),
    # listing and changing
    "no_tasks": ("No tasks.", "No hay tareas."),
    "more": ("There are more: --limit N or --all", "Hay más: --limit N o --all"),
    "more_menu": (
        "The {n} newest; all of them with: {command}",
        "Las {n} más recientes; todas con: {command}",
    ),
    "cancelled": ("Task {id} cancelled.", "Tarea {id} cancelada."),
    "retried": ("Task {id} will be tried again.", "La tarea {id} se intentará de nuevo."),
    "timed_out": (
        "{n} of the tasks did not end in time: {ids}",
        "{n} de las tareas no terminaron a tiempo: {ids}",
    ),
    "watching": ("Watching; Ctrl-C ends it.", "Siguiendo los cambios; Ctrl-C para terminar."),
    "more_bars": ("... and {n} more running", "... y {n} más en curso"),
    "attempt": ("attempt {n} of {max}", "intento {n} de {max}"),
    "attempt_only": ("attempt {n}", "intento {n}"),
    "no_kinds": (
        "No worker is connected, so no kind of task is served now.",
        "No hay ningún worker conectado: ahora no se atiende ningún tipo de tarea.",
    ),
    # the log of a task
    "log_attempt": ("--- attempt {n} ---", "--- intento {n} ---"),
    "log_cut": (
        "The beginning of this log was deleted because the log was too long.",
        "El principio de este registro se borró porque era demasiado largo.",
    ),
    "log_missing": (
        "{n} lines are missing here because the log was too long.",
        "Aquí faltan {n} líneas porque el registro era demasiado largo.",
    ),
    "log_empty": ("Task {id} has no log.", "La tarea {id} no tiene registro."),
    "log_end": ("Task {id}: {state}.", "Tarea {id}: {state}."),
    # tables
    "col.id": ("ID", "N.º"),
    "col.status": ("STATUS", "ESTADO"),
    "col.state": ("STATE", "DETALLE"),
    "col.kind": ("KIND", "TIPO"),
    "col.age": ("AGE", "EDAD"),
    "col.text": ("TASK", "TAREA"),
    "col.queues": ("QUEUES", "COLAS"),
    "col.isolation": ("RUNS AS", "EJECUCIÓN"),
    "col.timeout": ("TIMEOUT", "LÍMITE"),
    "col.attempts": ("ATTEMPTS", "INTENTOS"),
    "col.workers": ("WORKERS", "WORKERS"),
    "col.slots": ("SLOTS", "PUESTOS"),
    "col.summary": ("WHAT IT DOES", "QUÉ HACE"),
    "show.id": ("Task", "Tarea"),
    "show.text": ("Text", "Texto"),
    "show.status": ("Status", "Estado"),
    "show.progress": ("Progress", "Progreso"),
    "show.kind": ("Kind", "Tipo"),
    "show.queue": ("Queue", "Cola"),
    "show.attempt": ("Attempts", "Intentos"),
    "show.of": ("{n} of {max}", "{n} de {max}"),
    "show.created": ("Created", "Creada"),
    "show.run_at": ("Not before", "No antes de"),
    "show.started": ("Started", "Iniciada"),
    "show.finished": ("Finished", "Terminada"),
    "show.timeout": ("Timeout", "Límite"),
    "show.payload": ("Payload", "Datos"),
    "show.result": ("Result", "Resultado"),
    "show.error": ("Error", "Error"),
    "show.attempt_failed": ("Attempt {n} failed", "El intento {n} falló"),
    "show.worker": ("Worker", "Worker"),
    "show.ended": ("Ended", "Terminó"),
}
