"""The texts of taskadmin in English and Spanish."""

from __future__ import annotations

WORDS: dict[str, tuple[str, str]] = {
    # help
    "main": (
        "Administer the accounts of a taskd installation in its database. For the administrator of the machine: run it"
        " as the user of the daemons, with their settings. Every change is noted in the audit.",
        "Administrar las cuentas de una instalación de taskd en su base de datos. Para quien administra la máquina:"
        " ejecútelo con el usuario y los ajustes de los demonios. Cada cambio queda anotado en la auditoría.",
    ),
    "exit": (
        "exit status: 0 ok, 1 error, 2 usage",
        "código de salida: 0 bien, 1 error, 2 uso",
    ),
    "commands": ("commands", "órdenes"),
    "command": ("COMMAND", "ORDEN"),
    "create-admin": (
        "Create an account with the role admin, and print a one-time code with which its user sets a password.",
        "Crear una cuenta con el rol admin y mostrar un código de un solo uso con el que fijar su contraseña.",
    ),
    "reset-password": (
        "Print a one-time code, valid for 24 hours, with which a user sets a new password. The old password, all"
        " sessions and all API tokens of the user end now.",
        "Mostrar un código de un solo uso, válido 24 horas, con el que una persona fija su contraseña. La contraseña"
        " anterior y todas sus sesiones y tokens de API terminan ahora.",
    ),
    "reset-totp": (
        "Turn the second factor of a user off who has lost it. The password, the sessions and the API tokens stay.",
        "Desactivar el segundo factor de una persona que lo ha perdido. Su contraseña, sus sesiones y sus tokens de API"
        " siguen valiendo.",
    ),
    "import-users": (
        "Create the accounts that a CSV file lists, and print a CSV with a one-time code for each. If a line is wrong,"
        " nothing is imported. Users that exist are skipped.",
        "Crear las cuentas de un archivo CSV y mostrar un CSV con un código de un solo uso para cada una. Si hay una"
        " línea incorrecta no se importa nada. Los usuarios que ya existen se omiten.",
    ),
    "bind-local": (
        "Bind an account to a user of the server's machine, who then logs in over a UNIX socket without a password."
        " If the account had another uid, its sessions and API tokens end now.",
        "Vincular una cuenta con un usuario de la máquina del servidor, que entonces entra por un socket UNIX sin"
        " contraseña. Si la cuenta tenía otro uid, sus sesiones y tokens de API terminan ahora.",
    ),
    "migrate": (
        "Bring the schema of the database up to date. Daemons do this at their start; use it when their role may not.",
        "Poner al día el esquema de la base de datos. Los demonios lo hacen al iniciar; use esta orden cuando su rol no"
        " tenga permiso.",
    ),
    "check": (
        "Check the database, the schema, the admins and the files with secrets. Changes nothing; the exit status is 1"
        " if something is wrong.",
        "Comprobar la base de datos, el esquema, los admins y los archivos con secretos. No cambia nada; el código de"
        " salida es 1 si algo está mal.",
    ),
    "option.name": ("The username.", "El nombre de usuario."),
    "option.uid": ("The uid of the machine's user.", "El uid del usuario de la máquina."),
    "option.none": ("Bind the account to no user.", "No vincular la cuenta con ningún usuario."),
    "option.existing": ("Make a user who exists already an admin.", "Dar el rol admin a alguien que ya existe."),
    "option.file": (
        "A CSV file in UTF-8 with the columns username and, if you like, role (user, operator or admin).",
        "Un archivo CSV en UTF-8 con las columnas username y, si se quiere, role (user, operator o admin).",
    ),
    "option.output": (
        "Write the codes to this new file, which only you can read, instead of the standard output.",
        "Escribir los códigos en este archivo nuevo, que solo usted puede leer, y no en la salida estándar.",
    ),
    "option.env-file": (
        "Read the variables from this file instead of ./.env.",
        "Leer las variables de este archivo y no de ./.env.",
    ),
    "option.data": (
        "Folder of the embedded database. Overrides TASKD_DATA.",
        "Carpeta de la base de datos integrada. Tiene prioridad sobre TASKD_DATA.",
    ),
    "option.installation": (
        "Id of the installation. Overrides TASKD_INSTALLATION.",
        "Id de la instalación. Tiene prioridad sobre TASKD_INSTALLATION.",
    ),
    # results
    "code": (
        "{name} has 24 hours to set a password with this code: taskclient passwd --code",
        "{name} tiene 24 horas para fijar su contraseña con este código: taskclient passwd --code",
    ),
    "totp_reset": ("{name} has no second factor now", "{name} ya no tiene un segundo factor"),
    "created": ("{name} is an admin", "{name} es admin"),
    "is_disabled": (
        "{name} is disabled, and can act only when enabled: taskclient users enable {name}",
        "{name} está deshabilitado y no puede actuar hasta que se habilite: taskclient users enable {name}",
    ),
    "bound": (
        "{name} is bound to the uid {uid} ({local}) of the machine",
        "{name} queda vinculado con el uid {uid} ({local}) de la máquina",
    ),
    "unbound": (
        "{name} is bound to no user of the machine",
        "{name} no está vinculado con ningún usuario de la máquina",
    ),
    "skipped": ("{name} exists already: skipped", "{name} ya existe: se omite"),
    "imported": ("{count} users were imported, {skipped} skipped", "{count} usuarios importados, {skipped} omitidos"),
    "migrated": (
        "the schema has version {version}; {count} migrations were applied",
        "el esquema tiene la versión {version}; se aplicaron {count} migraciones",
    ),
    "ok.store": (
        "store: {store}, schema version {version}, which is current",
        "base de datos: {store}, esquema en la versión {version}, la actual",
    ),
    "ok.installation": ("installation: {id}", "instalación: {id}"),
    "ok.admins": ("admins who can act: {count}", "admins que pueden actuar: {count}"),
    "ok.local": (
        "local logins: allowed, over a UNIX socket",
        "inicio de sesión local: permitido, por un socket UNIX",
    ),
    "ok.files": ("files with secrets: nobody else can read them", "archivos con secretos: nadie más puede leerlos"),
    "sqlite": ("SQLite in {folder}", "SQLite en {folder}"),
    "postgres": ("PostgreSQL at {host}", "PostgreSQL en {host}"),
    # what is wrong
    "no_database": (
        "there is no database in {folder} yet: start the server once, or run taskadmin migrate",
        "aún no hay una base de datos en {folder}: inicie una vez el servidor o ejecute taskadmin migrate",
    ),
    "no_unix": (
        "local logins: TASKD_LOCAL_USERS=1 has no effect, because TASKD_LISTEN has no UNIX socket (unless --listen"
        " names one): add one, such as unix:/run/taskd/taskd.sock",
        "inicio de sesión local: TASKD_LOCAL_USERS=1 no tiene efecto, porque TASKD_LISTEN no incluye ningún socket UNIX"
        " (salvo que lo haga --listen): añada uno, como unix:/run/taskd/taskd.sock",
    ),
    "bad_uid": (
        "{uid} is not the uid of a person: a number from {first} on, but not {nobody} or {dynamic}",
        "{uid} no es el uid de una persona: un número desde {first}, salvo {nobody} y {dynamic}",
    ),
    "bound_already": (
        "the uid {uid} belongs to another account ({why})",
        "el uid {uid} es de otra cuenta ({why})",
    ),
    "no_admin": (
        "no admin can act: run taskadmin create-admin NAME",
        "ningún admin puede actuar: ejecute taskadmin create-admin NOMBRE",
    ),
    "readable": (
        "other users of this machine can read {file}: run chmod o-rwx {file}",
        "otros usuarios de esta máquina pueden leer {file}: ejecute chmod o-rwx {file}",
    ),
    "data_in_use": (
        "a taskserver is using {folder}: stop it first, or use its actions for admins (taskclient users)",
        "un taskserver está usando {folder}: deténgalo antes, o use las órdenes para admins (taskclient users)",
    ),
    "foreign_data": (
        "{folder} belongs to the user {owner}: run taskadmin as {owner}",
        "{folder} pertenece al usuario {owner}: ejecute taskadmin como {owner}",
    ),
    "exists": (
        "{name} exists already; with --existing taskadmin makes this user an admin",
        "{name} ya existe; con --existing taskadmin le da el rol admin",
    ),
    "no_user": ("nobody is registered as {name}", "no hay nadie registrado como {name}"),
    "too_old": (
        "the schema of the database is not current: run taskadmin migrate, or start a daemon",
        "el esquema de la base de datos no está al día: ejecute taskadmin migrate o inicie un demonio",
    ),
    "bad_file": ("{file}: {why}", "{file}: {why}"),
    "bad_line": ("{file}, line {line}: {why}", "{file}, línea {line}: {why}"),
    "nothing_imported": ("nothing was imported", "no se importó nada"),
    "not_utf8": ("is not UTF-8 text", "no es texto en UTF-8"),
    "no_lines": ("has no users", "no contiene usuarios"),
    "bad_columns": ("expected username or username,role", "se esperaba username o username,role"),
    "bad_role": (
        "{role} is not a role; roles are user, operator and admin",
        "{role} no es un rol; los roles son user, operator y admin",
    ),
    "twice": ("the same user as in line {first}", "es el mismo usuario que en la línea {first}"),
    "output_exists": (
        "{file} exists already; choose another name for --output",
        "{file} ya existe; elija otro nombre para --output",
    ),
    "interrupted_import": (
        "{count} users were imported before that, with the codes above; run it again for the rest",
        "antes de eso se importaron {count} usuarios, con los códigos ya escritos; repita la orden para los demás",
    ),
    "interrupted": ("interrupted", "interrumpido"),
    "defect": ("a defect of taskd, please report it: {why}", "un defecto de taskd, por favor comuníquelo: {why}"),
}
