"""argparse's own texts in the user's language."""

from __future__ import annotations

import argparse

from taskd.cli.texts.catalogue import Texts


def translate_argparse(texts: Texts) -> None:
    """Let argparse speak the language of the texts."""
    # argparse translates its texts with this function; the documented way needs a compiled gettext catalogue
    vars(argparse)["_"] = lambda message: _SPANISH.get(message, message) if texts.lang == "es" else message


_SPANISH = {
    "usage: ": "uso: ",
    "positional arguments": "argumentos",
    "options": "opciones",
    "show this help message and exit": "mostrar esta ayuda y salir",
    "the following arguments are required: %s": "faltan estos argumentos: %s",
    "unrecognized arguments: %s": "argumentos desconocidos: %s",
    "expected one argument": "falta su valor",
    "expected at least one argument": "falta al menos un valor",
    "argument %(argument_name)s: %(message)s": "argumento %(argument_name)s: %(message)s",
    "invalid choice: %(value)r (choose from %(choices)s)": "valor no válido: %(value)r (elija %(choices)s)",
    "invalid %(type)s value: %(value)r": "valor no válido: %(value)r",
    "not allowed with argument %s": "no se admite junto con %s",
    "one of the arguments %s is required": "hace falta uno de estos argumentos: %s",
    "ignored explicit argument %r": "no admite el valor %r",
}
