"""The words for the states of a task, and why it is in one."""

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
    "queued": ("", "Ya la tiene un worker; empezará en cuanto ese worker tenga un puesto libre."),
    "stalled": ("", "Espera a un worker que está bloqueado: {blocked_by}."),
    "hung": (
        "",
        "Todos los puestos para el tipo {kind} están ocupados por handlers que debían haber terminado; hay que"
        " reiniciar los workers que lo atienden.",
    ),
    "suspect": (
        "",
        "Se perdió con su worker ({losses}); espera un puesto con pocas otras al lado, pero no por mucho tiempo.",
    ),
    "failover": (
        "",
        "La base de datos se ha sustituido por un estado anterior; no se asigna nada hasta que todos los workers digan"
        " lo que tienen. Falta {waits_for}.",
    ),
    "retrying": ("", "Falló el {attempt}: {error}. Se volverá a intentar, no antes de {run_at}."),
    "scheduled": ("", "Está programada: no empezará antes de {run_at}."),
    "no_worker": (
        "",
        "Ningún worker atiende el tipo {kind} en la cola {queue}; espera hasta que haya uno (con --handlers, o con"
        " --programs si es un programa).",
    ),
    "waiting": ("", "Espera su turno en la cola {queue}: hay otras antes, o se está asignando ahora mismo."),
}
"""Why a task is in its state, by the code of ``explain``. Where English is empty, the server's message is used."""

LINE: dict[str, tuple[str, str]] = {
    "line.free": (
        "A slot is free, and nothing is before it: it is just being assigned to a worker.",
        "Hay un puesto libre y no hay ninguna antes: se está asignando a un worker ahora mismo.",
    ),
    "line.closed": (
        "It waits in the queue {queue}: no worker that serves it can take a task now. Your tasks before it: {before}.",
        "Espera en la cola {queue}: ningún worker que la atiende puede tomar tareas ahora."
        " Tareas suyas que van antes: {before}.",
    ),
    "line.slots": (
        "It waits for its turn in the queue {queue}. Slots for it: {slots}; tasks that hold them: {held}, yours:"
        " {yours}. Your tasks before it: {before}.",
        "Espera su turno en la cola {queue}. Puestos para ella: {slots}; tareas que los ocupan: {held}, suyas: {yours}."
        " Tareas suyas que van antes: {before}.",
    ),
    "line.more": ("more than {n}", "más de {n}"),
    "line.unknown": (
        "Nothing has been measured yet that an estimate could rest on.",
        "Aún no se ha medido nada en que basar una estimación.",
    ),
    "line.begins": (
        "It probably begins in about {span}.",
        "Probablemente empiece dentro de aproximadamente {span}.",
    ),
    "line.ended_lately": (
        "It probably begins in about {span}, as fast as your tasks have ended lately.",
        "Probablemente empiece dentro de aproximadamente {span}, al ritmo al que han terminado sus últimas tareas.",
    ),
    "line.measured_times": (
        "It probably begins in about {span}, by the times that workers have measured.",
        "Probablemente empiece dentro de aproximadamente {span}, según los tiempos que han medido los workers.",
    ),
    "line.earliest": ("{span} at the earliest", "{span} como pronto"),
    "span.second": ("{n} second", "{n} segundo"),
    "span.seconds": ("{n} seconds", "{n} segundos"),
    "span.minute": ("{n} minute", "{n} minuto"),
    "span.minutes": ("{n} minutes", "{n} minutos"),
    "span.hour": ("{n} hour", "{n} hora"),
    "span.hours": ("{n} hours", "{n} horas"),
    "span.day": ("{n} day", "{n} día"),
    "span.days": ("{n} days", "{n} días"),
}
"""Parts of the text about the tasks before a waiting one, from the fields of ``explain``, for languages that do not use
the server's message."""
