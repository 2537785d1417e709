"""The texts of the client in English and Spanish."""

from __future__ import annotations

from taskd.cli.texts.account_words import ACCOUNTS
from taskd.cli.texts.labels import LABELS
from taskd.cli.texts.reasons import LINE

WORDS: dict[str, tuple[str, str]] = {
    # connections
    "bad_server": (
        "{server} is not a server address; use HOST:PORT or an endpoint such as tls:HOST:PORT",
        "{server} no es una dirección válida; use HOST:PUERTO o un endpoint como tls:HOST:PUERTO",
    ),
    "bad_port": (
        "{server} is not a server address; a port is a number from 1 to 65535",
        "{server} no es una dirección válida; un puerto es un número del 1 al 65535",
    ),
    "bad_endpoint": (
        "{server} is not a server address ({why}); use HOST:PORT or an endpoint such as tls:HOST:PORT",
        "{server} no es una dirección válida ({why}); use HOST:PUERTO o un endpoint como tls:HOST:PUERTO",
    ),
    "dns_failed": (
        "{server}: no such host name; check --server or TASKD_SERVER",
        "{server}: no existe ese nombre de host; revise --server o TASKD_SERVER",
    ),
    "refused_connection": (
        "nothing listens at {server}; start the server (make run) or check --server",
        "ningún servidor escucha en {server}; inicie el servidor (make run) o revise --server",
    ),
    "connect_timeout": (
        "{server} did not answer within {seconds} s; check the address and the network",
        "{server} no respondió en {seconds} s; revise la dirección y la red",
    ),
    "unreachable": (
        "cannot reach {server}: {why}; check --server and the network",
        "no se puede conectar con {server}: {why}; revise --server y la red",
    ),
    "tls_failed": (
        "no secure connection to {server}: {why}; try again, or ask the administrator of the server",
        "no hay conexión segura con {server}: {why}; inténtelo de nuevo o consulte a quien administre el servidor",
    ),
    "tls_untrusted": (
        "the certificate of {server} is not trusted: its issuer is {issuer}; if you trust it, save the certificate of"
        " the issuer in a PEM file and use --cafile FILE",
        "el certificado de {server} no es de confianza: lo emitió {issuer}; si confía en ese emisor, guarde su"
        " certificado en un archivo PEM y use --cafile ARCHIVO",
    ),
    "tls_name": (
        "the certificate of {server} is for another host name; it is for: {names}",
        "el certificado de {server} es de otro nombre de host; es para: {names}",
    ),
    "tls_unnamed": (
        "the certificate of {server} names no host; it needs the name as a subjectAltName",
        "el certificado de {server} no nombra ningún host; necesita el nombre como subjectAltName",
    ),
    "tls_expired": (
        "the certificate of {server} expired on {date}; ask the administrator of the server to renew it",
        "el certificado de {server} caducó el {date}; pida que lo renueve a quien administre el servidor",
    ),
    "tls_not_yet": (
        "the certificate of {server} is not valid before {date}; check the clock of this machine",
        "el certificado de {server} no es válido antes del {date}; revise el reloj de esta máquina",
    ),
    "tls_refused": (
        "the certificate of {server} was refused: {why}; ask the administrator of the server",
        "se rechazó el certificado de {server}: {why}; consulte a quien administre el servidor",
    ),
    "no_cafile": (
        "{path}: there is no such file or folder; check --cafile, TASKD_CAFILE and trustRoots",
        "{path}: no existe ese archivo o carpeta; revise --cafile, TASKD_CAFILE y trustRoots",
    ),
    "unreadable_cafile": (
        "{path} cannot be read ({why}); check --cafile, TASKD_CAFILE and trustRoots",
        "no se puede leer {path} ({why}); revise --cafile, TASKD_CAFILE y trustRoots",
    ),
    "empty_cafile": (
        "{path} has no certificates; --cafile needs a PEM file, or a folder of files *.pem or *.crt",
        "{path} no contiene certificados; --cafile requiere un archivo PEM, o una carpeta con archivos *.pem o *.crt",
    ),
    "cafile_without_tls": (
        "--cafile needs a connection with TLS, and {server} is a plain address; use --server tls:HOST:PORT",
        "--cafile requiere una conexión con TLS, y {server} es una dirección sin TLS; use --server tls:HOST:PUERTO",
    ),
    "plaintext": (
        "nothing secret is sent to {server} without TLS, because others on the network could read it; use the address"
        " tls:HOST:PORT, or set TASKD_ALLOW_PLAINTEXT=1 if you trust the network",
        "no se envía nada secreto a {server} sin TLS, porque otros en la red podrían leerlo; use la dirección"
        " tls:HOST:PUERTO, o fije TASKD_ALLOW_PLAINTEXT=1 si la red es de confianza",
    ),
    "tls_plain": (
        "{server} does not use TLS; use HOST:PORT without tls:, or the server's TLS port",
        "{server} no usa TLS; use HOST:PUERTO sin tls:, o el puerto TLS del servidor",
    ),
    "needs_tls": (
        "{server} uses TLS; use tls:HOST:PORT, or the server's port without TLS",
        "{server} usa TLS; use tls:HOST:PUERTO, o el puerto sin TLS del servidor",
    ),
    "tls_silent": (
        "{server} did not start TLS within {seconds} s; use HOST:PORT without tls:, or try again",
        "{server} no inició TLS en {seconds} s; use HOST:PUERTO sin tls:, o inténtelo de nuevo",
    ),
    "closed_early": (
        "{server} closed the connection without an answer; is it a taskd server, and does it need TLS (tls:HOST:PORT)?",
        "{server} cerró la conexión sin responder; ¿es un servidor taskd y requiere TLS (tls:HOST:PUERTO)?",
    ),
    "lost": (
        "the connection to {server} was lost; try again",
        "se perdió la conexión con {server}; inténtelo de nuevo",
    ),
    "unconfirmed": (
        "no confirmation: the tasks may exist or not; the same command with --key {task_key} creates only those that do"
        " not exist yet ({why})",
        "sin confirmación: las tareas pueden existir o no; la misma orden con --key {task_key} crea solo las que aún no"
        " existan ({why})",
    ),
    "no_answer": (
        "{server} accepted the connection but does not answer; try again later or check --server",
        "{server} aceptó la conexión pero no responde; inténtelo más tarde o revise --server",
    ),
    "not_taskd": (
        "the server at {server} is not a taskd server; check --server",
        "lo que responde en {server} no es un servidor taskd; revise --server",
    ),
    "reconnecting": ("Connection lost; connecting again ...", "Se perdió la conexión; conectando de nuevo..."),
    "retrying": ("{why}; trying again ...", "{why}; reintentando..."),
    "reconnected": ("Connected again.", "Conectado de nuevo."),
    # refusals of the server; the English text is the server's own message
    "code.auth_required": ("{message}", "primero hay que iniciar sesión"),
    "code.not_found": ("{message}", "no existe, o no es suyo: {message}"),
    "code.forbidden": ("{message}", "no está permitido: {message}"),
    "code.forbidden.username": (
        "{message}",
        "es el nombre de un administrador, que debe registrarse antes de figurar en TASKD_ADMINS; elija otro",
    ),
    "code.conflict": ("{message}", "no es posible en su estado actual: {message}"),
    "code.conflict.key": ("{message}", "esa clave ya pertenece a otra tarea; use una nueva: {message}"),
    "code.too_large": ("{message}", "demasiado grande: {message}"),
    "code.rate_limited": ("{message}", "demasiadas peticiones; espere un poco e inténtelo de nuevo: {message}"),
    "code.quota_exceeded": ("{message}", "ha agotado su cuota: {message}"),
    "code.unknown_action": (
        "this server is older than taskclient and does not know this action: {message}",
        "este servidor es más antiguo que taskclient y no conoce esa acción: {message}",
    ),
    "code.draining": ("{message}", "el servidor se está deteniendo; inténtelo de nuevo"),
    "code.unavailable": (
        "{message}",
        "el servidor no tiene acceso a su base de datos; no se ha confirmado nada, inténtelo más tarde",
    ),
    "code.internal": ("{message}", "error interno del servidor; los detalles están en su registro"),
    "code.other": ("{message}", "el servidor lo rechazó: {message}"),
    # the session file
    "state_unreadable": (
        "cannot read {path}: {why}; correct its permissions or delete it",
        "no se puede leer {path}: {why}; corrija sus permisos o bórrelo",
    ),
    "state_broken": (
        "{path} is not a session file; log in again: {command}",
        "{path} no es un archivo de sesión; inicie sesión de nuevo: {command}",
    ),
    "state_unwritable": (
        "cannot store the session in {path}: {why}; correct that or set XDG_STATE_HOME",
        "no se puede guardar la sesión en {path}: {why}; corríjalo o cambie XDG_STATE_HOME",
    ),
    # the input
    "input_too_long": ("a line of the input is too long", "una línea de la entrada es demasiado larga"),
    "not_utf8": (
        "the input is neither in UTF-8 nor in the encoding of the locale",
        "la entrada no está en UTF-8 ni en la codificación de la configuración regional",
    ),
    "not_text": (
        "the command line or the environment contains bytes that are not text; use UTF-8",
        "la orden o el entorno contiene bytes que no son texto; use UTF-8",
    ),
    # the menu
    "menu.server": ("taskd at {server}", "taskd en {server}"),
    "menu.user": ("{username} at {server}", "{username} en {server}"),
    "menu.register": ("Register", "Registrarse"),
    "menu.login": ("Log in", "Iniciar sesión"),
    "menu.leave": ("Leave", "Salir"),
    "menu.tasks": ("See tasks", "Ver tareas"),
    "menu.create": ("Create task", "Crear tarea"),
    "menu.back": ("Back", "Volver"),
    "menu.account": ("Account", "Cuenta"),
    "menu.password": ("Change the password", "Cambiar la contraseña"),
    "menu.sessions": ("See sessions and API tokens", "Ver sesiones y tokens"),
    "menu.end": ("end", "cerrar"),
    "menu.end_hint": ("To end one of them, by its number: {verb} N", "Para cerrar una, por su número: {verb} N"),
    "menu.password_of": (
        "Password of {username} (Enter to leave): ",
        "Contraseña de {username} (Intro para salir): ",
    ),
    "menu.local_username": (
        "Username (Enter for your user of this machine): ",
        "Usuario (Intro para su usuario de esta máquina): ",
    ),
    "menu.choose": ("Choose an option: ", "Elija una opción: "),
    "menu.wrong": ("Please choose a number from 1 to {n}.", "Elija un número del 1 al {n}."),
    "menu.task": ("Task: ", "Tarea: "),
    "menu.kind": ("Kind ({kinds}; Enter for {default}): ", "Tipo ({kinds}; Intro para {default}): "),
    "menu.fields": (
        "Fields as NAME=VALUE, or Enter for none: ",
        "Datos como NOMBRE=VALOR, o Intro para ninguno: ",
    ),
    "menu.hint": (
        "For one of them, by its number: {verbs}",
        "Para una de ellas, por su número: {verbs}",
    ),
    "menu.show": ("show", "ver"),
    "menu.log": ("log", "registro"),
    "menu.explain": ("explain", "explicar"),
    "menu.retry": ("retry", "reintentar"),
    "menu.cancel": ("cancel", "cancelar"),
    "menu.quotes": ("a quotation mark is not closed", "falta cerrar unas comillas"),
    "menu.nothing": ("Nothing entered, nothing done.", "No escribió nada; no se hizo nada."),
    "menu.registered": ("Registered. You can log in now.", "Registro correcto. Ya puede iniciar sesión."),
    "menu.unconfirmed": (
        "no confirmation: the task may exist or not; this creates it only if it does not exist: {command} ({why})",
        "sin confirmación: la tarea puede existir o no; esto la crea solo si no existe: {command} ({why})",
    ),
    "menu.lost": (
        "The connection was lost; the next action connects again.",
        "Se perdió la conexión; la próxima acción conectará de nuevo.",
    ),
    "menu.session_gone": (
        "the session has ended; log in again",
        "la sesión ha terminado; inicie sesión de nuevo",
    ),
    # the program
    "interrupted": ("Interrupted.", "Interrumpido."),
    "no_input": ("the input ended; nothing done", "la entrada terminó; no se hizo nada"),
    "output_failed": ("cannot write the output: {why}", "no se puede escribir la salida: {why}"),
    "unexpected": (
        "unexpected error, please report it: {why}",
        "error inesperado; por favor, comuníquelo: {why}",
    ),
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
    "bad_weight": (
        "{given} is not a weight: a number from {least} to {most}",
        "{given} no es un peso: un número de {least} a {most}",
    ),
    "bad_quota": (
        "{given} is not a limit: a whole number from 0 to {most}, or {default}",
        "{given} no es un límite: un número entero de 0 a {most}, o {default}",
    ),
    "quota_whose": (
        "whose quota? give the username after the command",
        "¿la cuota de quién? indique el nombre después de la orden",
    ),
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
    "given_back": (
        "Workers that were stopping have given it back: {times}.",
        "Workers que se detenían la han devuelto: {times}.",
    ),
    "no_kinds": (
        "No worker is connected, so no kind of task is served now.",
        "No hay ningún worker conectado: ahora no se atiende ningún tipo de tarea.",
    ),
    "no_work": (
        "No tasks, and no worker is connected.",
        "No hay tareas ni ningún worker conectado.",
    ),
    "rate_own": (
        "Your tasks; the rate counts the last {time}.",
        "Sus tareas; el ritmo es el de los últimos {time}.",
    ),
    "rate_all": (
        "The tasks of all users; the rate counts the last {time}.",
        "Las tareas de todos los usuarios; el ritmo es el de los últimos {time}.",
    ),
    "more_routes": (
        "There are more kinds with tasks than are shown.",
        "Hay más tipos con tareas de los que se muestran.",
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
    "returned": (
        "task {id} was given back {times}: its workers stop before it ends",
        "la tarea {id} se devolvió {times}: sus workers se detienen antes de que termine",
    ),
    **ACCOUNTS,
    **LABELS,
    **LINE,
}
