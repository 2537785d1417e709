"""The texts about accounts in English and Spanish: passwords, sessions, tokens, invitations, users, the audit."""

from __future__ import annotations

ACCOUNTS: dict[str, tuple[str, str]] = {
    # refusals of the server
    "status.in_use": ("the username is taken; choose another", "el nombre de usuario ya está en uso; elija otro"),
    "status.no_user": ("there is no such user", "no existe ese usuario"),
    "status.wrong_credentials": ("wrong password or username", "contraseña o usuario incorrectos"),
    "status.wrong_password": ("wrong password", "contraseña incorrecta"),
    "status.wrong_code": (
        "the code is not valid for this user: it was used, replaced or is too old; ask an admin for a new one",
        "el código no es válido para ese usuario: ya se usó, se reemplazó o caducó; pida otro a un administrador",
    ),
    "code.totp_required": (
        "{message}",
        "este servidor pide a los administradores un segundo factor: actívelo con taskclient totp on; si ya está"
        " activo, inicie sesión de nuevo con su código",
    ),
    "code.totp_required.code": ("{message}", "esta cuenta pide también el código de su autenticador"),
    "code.wrong_code": ("{message}", "el código no es correcto, caducó o ya se usó; espere al siguiente"),
    "code.forbidden.invitation": (
        "{message}",
        "para registrarse hace falta una invitación válida; pídala a un administrador y use --invitation",
    ),
    "code.forbidden.local": (
        "{message}",
        "no se permite a su usuario de esta máquina: {message}",
    ),
    "local_refused": ("No login without a password: {why}.", "No se pudo entrar sin contraseña: {why}."),
    "local_unknown": (
        "No login without a password: the server is older than taskclient.",
        "No se pudo entrar sin contraseña: el servidor es más antiguo que taskclient.",
    ),
    "put_off": (
        "Too many requests at the server; trying again in {seconds} s. Ctrl-C ends this.",
        "El servidor tiene demasiadas peticiones; se intentará de nuevo en {seconds} s. Ctrl-C lo interrumpe.",
    ),
    "slow": (
        "The server has not answered yet: many others may be logging in. Waiting; Ctrl-C ends this.",
        "El servidor aún no responde: quizá muchos otros inician sesión. Se sigue esperando; Ctrl-C lo interrumpe.",
    ),
    "put_off_left": ("... {seconds} s", "... {seconds} s"),
    # questions
    "username": ("Username: ", "Usuario: "),
    "password": ("Password: ", "Contraseña: "),
    "password_again": ("Password again: ", "Repita la contraseña: "),
    "new_password": ("New password: ", "Contraseña nueva: "),
    "code": ("One-time code: ", "Código de un solo uso: "),
    "totp_code": ("Code of the authenticator, or a recovery code: ", "Código del autenticador o de recuperación: "),
    "invitation": ("Invitation: ", "Invitación: "),
    "type_username": ("Type the username to confirm: ", "Escriba el nombre de usuario para confirmar: "),
    # wrong answers
    "passwords_differ": (
        "the two passwords differ; try again",
        "las contraseñas no coinciden; inténtelo de nuevo",
    ),
    "username_missing": (
        "which user? give the username after the command",
        "¿qué usuario? indique el nombre después de la orden",
    ),
    "password_missing": (
        "no password: set TASKD_PASSWORD or give it as the first line of the input",
        "falta la contraseña: use TASKD_PASSWORD o la primera línea de la entrada",
    ),
    "new_password_missing": (
        "no new password: give it as the next line of the input",
        "falta la contraseña nueva: indíquela en la línea siguiente de la entrada",
    ),
    "code_missing": (
        "no one-time code: give it as the first line of the input",
        "falta el código de un solo uso: indíquelo en la primera línea de la entrada",
    ),
    "totp_code_missing": (
        "no code of the second factor: give it as the next line of the input",
        "falta el código del segundo factor: indíquelo en la línea siguiente de la entrada",
    ),
    "invitation_missing": (
        "no invitation: set TASKD_INVITATION, use --invitation-file, or give it as the next line of the input",
        "falta la invitación: use TASKD_INVITATION, --invitation-file o la línea siguiente de la entrada",
    ),
    "confirmation_missing": (
        "not confirmed: give the username as the next line of the input",
        "sin confirmar: indique el nombre de usuario en la línea siguiente de la entrada",
    ),
    "no_invitation": ("no invitation entered; nothing done", "no escribió la invitación; no se hizo nada"),
    "not_confirmed": (
        "that is not the username; nothing deleted",
        "ese no es el nombre de usuario; no se borró nada",
    ),
    "bad_username": (
        "a username has 1 to 64 visible characters and neither begins nor ends with a space",
        "un nombre de usuario tiene de 1 a 64 caracteres visibles y no empieza ni termina con un espacio",
    ),
    "bad_password": (
        "a password has 8 to 72 bytes (an accented letter counts as two), not only spaces, and is not a common one",
        "una contraseña tiene de 8 a 72 bytes (una letra con tilde cuenta por dos), no solo espacios, y no es común",
    ),
    "refused_password": ("{why}; choose another", "esa contraseña no se admite: {why}; elija otra"),
    "bad_days": (
        "{given} is not a number of days: more than 0, at most {most}",
        "{given} no es un número de días: más de 0, como máximo {most}",
    ),
    "many_uses": ("an invitation has at most {most} uses", "una invitación tiene como máximo {most} usos"),
    "username_needs_code": (
        "a username needs --code; without it, taskclient passwd changes the password of whoever is logged in",
        "el nombre de usuario requiere --code; sin esa opción se cambia la contraseña de quien inició la sesión",
    ),
    # login and tokens
    "registered": ("Registered {username}. Next: {command}", "Usuario {username} registrado. Ahora: {command}"),
    "logged_in": ("Logged in as {username}.", "Sesión iniciada como {username}."),
    "logged_out": ("Logged out.", "Sesión cerrada."),
    "not_logged_in": (
        "not logged in at {server}; log in: {command}",
        "no hay sesión en {server}; inicie sesión: {command}",
    ),
    "session_gone": (
        "the session at {server} has ended; log in again: {command}",
        "la sesión en {server} ha terminado; inicie sesión de nuevo: {command}",
    ),
    "token_gone": (
        "{server} does not accept the API token of {source}; it has expired or was ended, so make a new one",
        "{server} no acepta el token de {source}; caducó o se cerró: cree otro",
    ),
    "token_given": (
        "this command is for a login with the password, not for an API token; run it without {source}",
        "esta orden es para una sesión con contraseña, no para un token; ejecútela sin {source}",
    ),
    "secret_unreadable": ("cannot read {path}: {why}", "no se puede leer {path}: {why}"),
    "secret_empty": (
        "the first line of {path} is empty or not in UTF-8; it must be the secret",
        "la primera línea de {path} está vacía o no es UTF-8; debe ser el secreto",
    ),
    # passwords and sessions
    "password_changed": (
        "Password changed. All other sessions and all API tokens have ended.",
        "Contraseña cambiada. Se cerraron las demás sesiones y todos los tokens.",
    ),
    "password_set": ("Password set. Next: {command}", "Contraseña fijada. Ahora: {command}"),
    "totp_is_on": ("The second factor is on.", "El segundo factor está activo."),
    "totp_is_off": (
        "The second factor is off. To turn it on: taskclient totp on",
        "El segundo factor no está activo. Para activarlo: taskclient totp on",
    ),
    "totp_begun": (
        "Add this secret to your authenticator, or make a QR code of the URI. Then enter the code that it shows.",
        "Añada este secreto a su autenticador, o haga un código QR de la URI. Después escriba el código que muestre.",
    ),
    "totp_on": (
        "The second factor is on. These are your recovery codes, for when you lose the authenticator. Each works once."
        " They are shown only now. Your other sessions and your API tokens stay.",
        "El segundo factor está activo. Estos son sus códigos de recuperación, por si pierde el autenticador. Cada uno"
        " sirve una vez. Solo se muestran ahora. Sus demás sesiones y sus tokens siguen valiendo.",
    ),
    "totp_off": ("The second factor is off.", "El segundo factor ya no está activo."),
    "deleting": (
        "This deletes the account {username} at {server} with all its tasks. It cannot be undone.",
        "Esto borra la cuenta {username} en {server} con todas sus tareas. No se puede deshacer.",
    ),
    "account_deleted": ("Account {username} deleted.", "Cuenta {username} borrada."),
    "session_ended": ("Session {id} ended.", "Sesión {id} cerrada."),
    "token_ended": ("Token {id} ended.", "Token {id} cerrado."),
    "sessions_ended": ("Sessions and API tokens ended: {n}.", "Sesiones y tokens cerrados: {n}."),
    "session_current": ("this session", "esta sesión"),
    "session_other": ("session", "sesión"),
    "session_token": ("token {name}", "token {name}"),
    "all_scopes": ("all", "todos"),
    "no_tokens": ("No API tokens.", "No hay tokens."),
    "token_made": (
        "The token {name} is valid until {until}. It is shown only now; programs take it from TASKD_TOKEN or"
        " --token-file.",
        "El token {name} vale hasta el {until}. Solo se muestra ahora; los programas lo toman de TASKD_TOKEN o"
        " --token-file.",
    ),
    # admins
    "weighted": (
        "{username} has the weight {weight} from now on.",
        "{username} tiene el peso {weight} a partir de ahora.",
    ),
    "no_users": ("No users.", "No hay usuarios."),
    "account.active": ("active", "activa"),
    "account.disabled": ("disabled", "bloqueada"),
    "account.code": ("has a code", "con código"),
    "role_set": ("{username} has the role {role} from now on.", "{username} tiene el rol {role} a partir de ahora."),
    "user_disabled": (
        "{username} is disabled; the sessions and API tokens have ended.",
        "{username} queda con la cuenta bloqueada; se cerraron sus sesiones y tokens.",
    ),
    "user_enabled": ("{username} is enabled again.", "{username} vuelve a tener la cuenta activa."),
    "totp_reset": (
        "{username} has no second factor from now on.",
        "{username} ya no tiene un segundo factor.",
    ),
    "code_made": (
        "The code is shown only now and is valid for {time}. The old password, the sessions and the API tokens of"
        " {username} have ended. {username} sets a new password: {command}",
        "El código solo se muestra ahora y vale {time}. La contraseña anterior, las sesiones y los tokens de {username}"
        " ya no valen. {username} fija una contraseña nueva: {command}",
    ),
    "invited": (
        "The invitation is shown only now. Uses: {n}; valid for {time}. Who has it registers: {command}",
        "La invitación solo se muestra ahora. Usos: {n}; vale {time}. Quien la tenga se registra: {command}",
    ),
    "no_invitations": ("No invitations.", "No hay invitaciones."),
    "invitation_ended": ("Invitation {id} withdrawn.", "Invitación {id} retirada."),
    "no_audit": ("Nothing in the audit.", "No hay nada en la auditoría."),
    # headings
    "col.created": ("CREATED", "CREADA"),
    "col.last_used": ("LAST USED", "ÚLTIMO USO"),
    "col.expires": ("EXPIRES", "CADUCA"),
    "col.address": ("ADDRESS", "DIRECCIÓN"),
    "col.session": ("SESSION", "SESIÓN"),
    "col.ending": ("ENDING", "FINAL"),
    "col.scopes": ("SCOPES", "PERMISOS"),
    "col.name": ("NAME", "NOMBRE"),
    "col.role": ("ROLE", "ROL"),
    "col.account": ("ACCOUNT", "CUENTA"),
    "col.weight": ("WEIGHT", "PESO"),
    "col.username": ("USER", "USUARIO"),
    "col.uses_left": ("USES LEFT", "USOS"),
    "col.created_by": ("MADE BY", "CREADA POR"),
    "col.at": ("TIME", "MOMENTO"),
    "col.action": ("ACTION", "ACCIÓN"),
    "col.outcome": ("OUTCOME", "RESULTADO"),
    "col.number": ("TIMES", "VECES"),
    "col.actor": ("BY", "AUTOR"),
    "col.subject": ("ACCOUNT", "CUENTA"),
    "col.details": ("DETAILS", "DETALLES"),
}
