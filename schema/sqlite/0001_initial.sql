-- The first schema: users, their sessions, tasks, workers.
-- All times are microseconds since 1970-01-01 UTC.

-- Which installation this database belongs to. Its first daemon makes the row.
CREATE TABLE installation (
    id TEXT NOT NULL DEFAULT (lower(hex(randomblob(4)))) -- the same for all daemons
        CHECK (length(id) BETWEEN 1 AND 32 AND id NOT GLOB '*[^A-Za-z0-9_-]*')
);
-- One row.
CREATE UNIQUE INDEX installation_one ON installation ((1));

-- Accounts. A user owns tasks and sees no tasks of other users.
CREATE TABLE users (
    id           INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again for another user
    username     TEXT NOT NULL,                     -- as the user wrote it, in Unicode normal form KC
    username_key TEXT NOT NULL UNIQUE,              -- the case-folded username: unique, and used to find the user
    password     TEXT NOT NULL,                     -- a bcrypt hash; empty until the user has set a password with a one-time code
    weight       REAL NOT NULL DEFAULT 1 CHECK (weight > 0), -- the share of slots, compared with the weights of the others
    role         TEXT NOT NULL DEFAULT 'user'       -- operator: sees all tasks and workers; admin: may do everything
        CHECK (role IN ('user', 'operator', 'admin')),
    created_at   INTEGER NOT NULL,                  -- when the user registered
    disabled_at  INTEGER,                           -- since when the user may do nothing; NULL for others
    deleted_at   INTEGER,                           -- when the account was deleted; the key is a space and the id, name and password are empty
    purged_at    INTEGER,                           -- when it was certain that the deleted account has no tasks and gets none any more
    code_hash    BLOB,                              -- a hash of the one-time code with which the user may set a password
    code_until   INTEGER,                           -- when that code expires
    local_uid    INTEGER UNIQUE CHECK (local_uid >= 0), -- the uid of the machine whose user may log in here over a UNIX socket; NULL: none
    totp_secret  TEXT,                              -- the secret of the second factor (TOTP) in base32
    totp_at      INTEGER,                           -- since when a login with the password needs it; NULL also while the secret waits to be confirmed
    totp_step    INTEGER,                           -- the latest time step whose code was accepted: no code of it or of an earlier one is accepted again
    quota_open   INTEGER CHECK (quota_open >= 0),   -- how many tasks the user may have that have not ended; 0: no limit; NULL: the default of the settings
    quota_daily  INTEGER CHECK (quota_daily >= 0),  -- how many tasks the user may create in 24 hours; 0 and NULL as above
    quota_bytes  INTEGER CHECK (quota_bytes >= 0),  -- how many bytes the texts, payloads, results and logs of the user may have; 0 and NULL as above
    CHECK (totp_at IS NULL OR totp_secret IS NOT NULL AND totp_step IS NOT NULL)
);
CREATE INDEX users_deleted ON users (id) WHERE deleted_at IS NOT NULL AND purged_at IS NULL;
-- The admins who can act: at least one stays.
CREATE INDEX users_admins ON users (id) WHERE role = 'admin' AND disabled_at IS NULL;

-- Logins that outlive their connection, and API tokens.
CREATE TABLE sessions (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,   -- names it for its owner, who does not see the hash
    token_hash BLOB NOT NULL UNIQUE,                -- a hash of the token, so that nobody can log in with a copy of this table
    user_id    INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE, -- the user who logged in
    created_at INTEGER NOT NULL,                    -- when the user logged in
    used_at    INTEGER NOT NULL,                    -- when it was last used, to about an hour
    expires_at INTEGER NOT NULL,                    -- when the token expires
    address    TEXT NOT NULL DEFAULT '',            -- from where the user logged in
    name       TEXT,                                -- what the owner calls an API token; NULL for a login
    ending     TEXT,                                -- the last characters of an API token
    scopes     TEXT,                                -- what an API token allows, a JSON list of texts; NULL: everything
    totp       INTEGER NOT NULL DEFAULT 0           -- whether it has shown the second factor that its user has now; of an API token, whether the session has that made it
);
CREATE INDEX sessions_user ON sessions (user_id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

-- Codes that users show in place of the second factor when they have lost it. Each is deleted with its use.
CREATE TABLE recovery_codes (
    user_id   INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE, -- the user
    code_hash BLOB NOT NULL,                        -- a hash of the code
    PRIMARY KEY (user_id, code_hash)
) WITHOUT ROWID;

-- Who has one may register while registration is by invitation.
CREATE TABLE invitations (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,   -- names it for admins, who do not see the hash
    token_hash BLOB NOT NULL UNIQUE,                -- a hash of the invitation
    uses_left  INTEGER NOT NULL CHECK (uses_left >= 0), -- how many accounts may still be created with it
    created_by TEXT NOT NULL,                       -- the name of the admin who made it
    created_at INTEGER NOT NULL,                    -- when it was made
    expires_at INTEGER NOT NULL                     -- when it expires
);

-- From where users have logged in lately. A flood of guesses does not delay them there.
CREATE TABLE devices (
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE, -- the user
    network TEXT NOT NULL,                          -- the address, of IPv6 its first 64 bits
    seen_at INTEGER NOT NULL,                       -- when the user last logged in from there
    PRIMARY KEY (user_id, network)
) WITHOUT ROWID;
CREATE INDEX devices_seen ON devices (seen_at);

-- Who did what to which account, from where, with which outcome. Rows are never changed.
CREATE TABLE audit (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,   -- grows with time
    at         INTEGER NOT NULL,                    -- when it happened, or when the minute of a counted row ended
    action     TEXT NOT NULL,                       -- what was done: the name of an action of the protocol or of taskadmin
    outcome    TEXT NOT NULL,                       -- ok, or the code of the error
    actor_id   INTEGER NOT NULL,                    -- who did it, users.id; 0 if nobody was logged in
    actor      TEXT NOT NULL,                       -- the name of that user, or of the machine's administrator
    subject_id INTEGER NOT NULL,                    -- to whom, users.id; 0 if there is no such user
    subject    TEXT NOT NULL,                       -- the key of that user's name, also if there is no such user
    address    TEXT,                                -- the address of the client; NULL for a local one without an address
    number     INTEGER NOT NULL DEFAULT 1,          -- how often, in the minute before: refused logins have one row an account, address and minute
    details    TEXT                                 -- what changed, one line
);
CREATE INDEX audit_at ON audit (at);
CREATE INDEX audit_subject ON audit (subject, id);
CREATE INDEX audit_actor ON audit (actor_id, id);
CREATE INDEX audit_action ON audit (action, id);
-- Refused logins to an account, which are counted before each login.
CREATE INDEX audit_refusals ON audit (subject, at) WHERE outcome <> 'ok';

-- How many tasks users have created, and how many bytes they have stored. Every process adds what it has done once a
-- second.
CREATE TABLE user_usage (
    user_id INTEGER NOT NULL, -- the user, users.id
    hour    INTEGER NOT NULL, -- the beginning of an hour; 0 for all hours that are more than a day old
    tasks   INTEGER NOT NULL, -- tasks created in that hour; not counted any more in the row of hour 0
    bytes   INTEGER NOT NULL, -- bytes of texts, payloads, results and logs that were stored in that hour; what is deleted is subtracted from the row of hour 0, which may be below 0
    PRIMARY KEY (user_id, hour)
) WITHOUT ROWID;

-- Hours that are more than a day old and move into the row of hour 0.
CREATE INDEX user_usage_hour ON user_usage (hour) WHERE hour > 0;

-- Every task and its state: the source of truth. Broker messages are only hints about it.
CREATE TABLE tasks (
    id            INTEGER PRIMARY KEY AUTOINCREMENT, -- grows with time; lists are sorted by it
    user_id       INTEGER NOT NULL REFERENCES users (id), -- the owner
    task          TEXT NOT NULL,                    -- the owner's description of the task
    kind          TEXT NOT NULL DEFAULT 'simulate', -- which handler runs it
    queue         TEXT NOT NULL DEFAULT 'tasks',    -- workers say which queues they serve
    payload       TEXT NOT NULL DEFAULT '{}',       -- the arguments of the handler: a JSON object, stored as it was received
    state         TEXT NOT NULL DEFAULT 'waiting'   -- queued: assigned to a worker; running: begun for a while
        CHECK (state IN ('waiting', 'queued', 'running', 'completed', 'failed', 'cancelled')),
    status        TEXT NOT NULL GENERATED ALWAYS AS ( -- the state in the original vocabulary
        CASE state WHEN 'completed' THEN 'Completada' WHEN 'failed' THEN 'Fallida' WHEN 'cancelled' THEN 'Cancelada'
        ELSE 'Procesando' END) STORED,
    attempt       INTEGER NOT NULL DEFAULT 0,       -- the current or last attempt, 0 until first assigned
    max_attempts  INTEGER NOT NULL DEFAULT 3,       -- then the task has failed; 0 until the first assignment if the kind decides
    losses        INTEGER NOT NULL DEFAULT 0,       -- how often an attempt was lost with its worker since one has ended by itself
    returns       INTEGER NOT NULL DEFAULT 0,       -- how often a worker that was stopping has given it back
    dispatch      INTEGER NOT NULL DEFAULT 0,       -- how often it was assigned to a worker; a fence for outcomes
    version       INTEGER NOT NULL DEFAULT 1,       -- grows by one with every change of state
    due           INTEGER NOT NULL DEFAULT 1 CHECK (due IN (0, 1)), -- its run_at has passed: it is in the backlog
    held          INTEGER NOT NULL DEFAULT 0 CHECK (held IN (0, 1)), -- from the assignment until the worker has confirmed the end or the drop, or is dead
    worker        TEXT,                             -- the worker that holds it or held it last; NULL once it was given or taken back
    created_at    INTEGER NOT NULL,                 -- when the owner submitted it
    run_at        INTEGER NOT NULL,                 -- not assigned to a worker before this time
    started_at    INTEGER,                          -- when the current or last attempt began; NULL while waiting or queued
    finished_at   INTEGER,                          -- when it became completed, failed or cancelled
    result        TEXT,                             -- what the handler returned, any JSON value
    error         TEXT,                             -- why the last attempt failed, one line
    key           TEXT,                             -- the owner's idempotency key: no other task of the owner has it
    fingerprint   TEXT,                             -- a digest of the request that was made with that key
    timeout       REAL,                             -- seconds that an attempt may take, if less than the limit of the kind
    progress      REAL,                             -- progress of the running attempt from 0 to 1, as its handler reports it
    note          TEXT,                             -- what the running attempt is doing, as its handler reports it
    CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'failed', 'cancelled'))),
    CHECK (due OR NOT held),
    CHECK (NOT held OR worker IS NOT NULL),
    CHECK (held OR state NOT IN ('queued', 'running'))
);

-- Lists of a user's tasks, newest first.
CREATE INDEX tasks_list ON tasks (user_id, status, id);

-- A request that is sent again finds the task that the first request created.
CREATE UNIQUE INDEX tasks_key ON tasks (user_id, key) WHERE key IS NOT NULL;

-- The backlog: waiting tasks that are due, in the order in which they are assigned.
CREATE INDEX tasks_backlog ON tasks (queue, kind, user_id, run_at, id)
    WHERE NOT held AND finished_at IS NULL AND due;

-- Waiting tasks that are not due yet, in the order in which they become due.
CREATE INDEX tasks_delayed ON tasks (run_at) WHERE NOT due AND finished_at IS NULL;

-- The same for each user, for when more become due at once than one sweep takes.
CREATE INDEX tasks_delayed_user ON tasks (user_id, run_at) WHERE NOT due AND finished_at IS NULL;

-- What each worker holds. Its size depends on the slots of the workers, not on the backlog.
CREATE INDEX tasks_held ON tasks (worker) WHERE held;

-- Attempts that failed or were lost. A successful attempt has no row here.
CREATE TABLE task_attempts (
    task_id    INTEGER NOT NULL, -- the task, tasks.id
    dispatch   INTEGER NOT NULL, -- the dispatch that the attempt belonged to
    attempt    INTEGER NOT NULL, -- its number; numbers begin again when the owner retries the task
    worker     TEXT NOT NULL,    -- the worker that ran it
    started_at INTEGER,          -- when it began
    ended_at   INTEGER NOT NULL, -- when its failure was recorded
    error      TEXT NOT NULL,    -- why it failed, one line
    trace      TEXT,             -- where in the handler it failed, several lines
    PRIMARY KEY (task_id, dispatch, attempt)
) WITHOUT ROWID;

-- Output of handlers and programs, several lines in a row. The oldest rows are deleted when a log gets too long.
CREATE TABLE task_log (
    task_id  INTEGER NOT NULL, -- the task, tasks.id
    dispatch INTEGER NOT NULL, -- the dispatch that wrote the lines
    attempt  INTEGER NOT NULL, -- the attempt that wrote the lines
    line     INTEGER NOT NULL, -- number of the first line in this row, from 1 in each attempt; missing numbers were deleted
    at       INTEGER NOT NULL, -- when the lines were stored
    lines    INTEGER NOT NULL, -- number of lines
    bytes    INTEGER NOT NULL, -- size of the text in bytes
    text     TEXT NOT NULL,    -- the lines, separated by line feeds
    PRIMARY KEY (task_id, dispatch, attempt, line)
);

-- The workers, what each serves, and whether it is alive.
CREATE TABLE workers (
    name       TEXT PRIMARY KEY,           -- host, process id and a random part: a new name each time the process starts or was fenced
    beat       INTEGER NOT NULL DEFAULT 1, -- grows every second or two while the worker lives; no time is compared
    state      TEXT NOT NULL DEFAULT 'serving' -- gone: it died; fenced: a server took its tasks back
        CHECK (state IN ('serving', 'draining', 'gone', 'fenced')),
    queues     TEXT NOT NULL,              -- a JSON list of the queues that it takes tasks from
    kinds      TEXT NOT NULL,              -- a JSON list of the kinds that it serves in all these queues, each with its description
    slots      TEXT NOT NULL,              -- a JSON object: how many tasks of each isolation it runs at the same time
    hung       TEXT NOT NULL DEFAULT '{}', -- a JSON object: how many of these slots are taken by handlers that should have ended
    means      TEXT NOT NULL DEFAULT '[]', -- how long tasks have held a slot lately: a JSON list of [user id, kind, seconds]
    holds      INTEGER NOT NULL DEFAULT 0, -- how many tasks it held at its last beat
    stalled    TEXT,                       -- what blocks its reactor, for people; NULL if nothing does
    culprit    TEXT,                       -- a JSON object, the task that has killed or stopped it: task_id, dispatch and reason
    started_at INTEGER NOT NULL,           -- when it was registered
    seen_at    INTEGER NOT NULL            -- when it last beat, for people and for deleting old rows
) WITHOUT ROWID;
