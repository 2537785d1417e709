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
