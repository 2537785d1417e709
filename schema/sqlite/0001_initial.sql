-- The first schema: users, their sessions, tasks, and the outbox between the store and the broker.
-- Every time is in microseconds since 1970-01-01 UTC.

-- Accounts. A user owns tasks and sees no others.
CREATE TABLE users (
    id           INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again for another user
    username     TEXT NOT NULL,                     -- as the user wrote it, in Unicode normal form KC
    username_key TEXT NOT NULL UNIQUE,              -- the username case folded: what it is found by and unique under
    password     TEXT NOT NULL,                     -- a bcrypt hash
    created_at   INTEGER NOT NULL                   -- when the user registered
);

-- Logins that outlive their connection.
CREATE TABLE sessions (
    token_hash BLOB PRIMARY KEY,                    -- a hash of the token, so that a copy of this table logs nobody in
    user_id    INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE, -- whose session it is
    created_at INTEGER NOT NULL,                    -- when the user logged in
    expires_at INTEGER NOT NULL                     -- from when on the token is worth nothing
) WITHOUT ROWID;
CREATE INDEX sessions_user ON sessions (user_id);

-- Every task and how far it is: the truth, of which broker messages are only hints.
CREATE TABLE tasks (
    id            INTEGER PRIMARY KEY AUTOINCREMENT, -- grows with time; a list is sorted by it
    user_id       INTEGER NOT NULL REFERENCES users (id), -- the owner
    task          TEXT NOT NULL,                    -- what it is, in the words of its owner
    kind          TEXT NOT NULL DEFAULT 'simulate', -- which handler runs it
    queue         TEXT NOT NULL DEFAULT 'tasks',    -- which queue of the broker it goes through
    payload       TEXT NOT NULL DEFAULT '{}',       -- the arguments of the handler, a JSON object, kept as it came
    state         TEXT NOT NULL DEFAULT 'waiting'   -- queued is handed to the broker, running is claimed
        CHECK (state IN ('waiting', 'queued', 'running', 'completed', 'failed', 'cancelled')),
    status        TEXT NOT NULL GENERATED ALWAYS AS ( -- the state in the original vocabulary
        CASE state WHEN 'completed' THEN 'Completada' WHEN 'failed' THEN 'Fallida' WHEN 'cancelled' THEN 'Cancelada'
        ELSE 'Procesando' END) STORED,
    attempt       INTEGER NOT NULL DEFAULT 0,       -- the current or last attempt, 0 until first claimed; a fence
    max_attempts  INTEGER NOT NULL DEFAULT 3,       -- then the task has failed; 0: its kind says, at the first claim
    dispatch      INTEGER NOT NULL DEFAULT 0,       -- how often it was handed to the broker; another number claims nothing
    version       INTEGER NOT NULL DEFAULT 1,       -- grows by one with every change of state
    due           INTEGER NOT NULL DEFAULT 1 CHECK (due IN (0, 1)), -- its run_at has come: it is in the backlog
    worker        TEXT,                             -- the worker that has it, or had it last
    lease_until   INTEGER,                          -- while running: from then on the worker counts as dead
    created_at    INTEGER NOT NULL,                 -- when the owner submitted it
    run_at        INTEGER NOT NULL,                 -- not to be handed to the broker before this moment
    dispatched_at INTEGER,                          -- when it was last handed to the broker; NULL while waiting
    started_at    INTEGER,                          -- when the current or last attempt began; NULL while waiting or queued
    finished_at   INTEGER,                          -- when it became completed, failed or cancelled
    result        TEXT,                             -- what the handler returned, any JSON value
    error         TEXT,                             -- why the last attempt failed, one line
    key           TEXT,                             -- the owner's idempotency key: no second task of theirs has it
    fingerprint   TEXT,                             -- what was asked for under that key
    timeout       REAL,                             -- seconds that an attempt may take, when less than its kind allows
    progress      REAL,                             -- how far the running attempt is, from 0 to 1, as its handler says
    note          TEXT,                             -- what the running attempt is at, as its handler says
    CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'failed', 'cancelled'))),
    CHECK (due OR dispatched_at IS NULL)
);

-- Lists of a user, newest first.
CREATE INDEX tasks_list ON tasks (user_id, status, id);

-- A request that is sent again finds the task of its first time.
CREATE UNIQUE INDEX tasks_key ON tasks (user_id, key) WHERE key IS NOT NULL;

-- The backlog: waiting tasks that are due, in the order in which they are dispatched.
CREATE INDEX tasks_backlog ON tasks (queue, kind, user_id, run_at, id)
    WHERE dispatched_at IS NULL AND finished_at IS NULL AND due;

-- Waiting tasks that are not due yet, in the order in which they will be.
CREATE INDEX tasks_delayed ON tasks (run_at) WHERE NOT due AND finished_at IS NULL;

-- Queued and running tasks: as many as the window and the workers hold, however long the backlog.
CREATE INDEX tasks_in_flight ON tasks (queue, kind, dispatched_at)
    WHERE dispatched_at IS NOT NULL AND finished_at IS NULL;

-- One row for each batch of tasks until all its messages are confirmed by the broker.
CREATE TABLE outbox (
    id           TEXT PRIMARY KEY, -- chosen by the publisher beforehand: storing the same batch again is refused
    task_ids     TEXT NOT NULL,    -- a JSON list of all tasks of the batch in their order, those that wait included
    created_at   INTEGER NOT NULL, -- when the batch was stored
    published_at INTEGER           -- NULL while its first publisher has it; when it was taken over
) WITHOUT ROWID;

-- Attempts that failed or were lost. The one that succeeds leaves nothing here.
CREATE TABLE task_attempts (
    task_id    INTEGER NOT NULL, -- whose attempt it was, tasks.id
    dispatch   INTEGER NOT NULL, -- the dispatch it belonged to
    attempt    INTEGER NOT NULL, -- its number; they begin anew when the owner has the task tried once more
    worker     TEXT NOT NULL,    -- who ran it
    started_at INTEGER,          -- when it was claimed
    ended_at   INTEGER NOT NULL, -- when its failure was recorded
    error      TEXT NOT NULL,    -- why, one line
    trace      TEXT,             -- where in the handler, several lines
    PRIMARY KEY (task_id, dispatch, attempt)
) WITHOUT ROWID;

-- What handlers and programs have said, some lines a row. The oldest are cut when a log gets too long.
CREATE TABLE task_log (
    task_id  INTEGER NOT NULL, -- whose log it is, tasks.id
    dispatch INTEGER NOT NULL, -- said under this dispatch
    attempt  INTEGER NOT NULL, -- said in this attempt
    line     INTEGER NOT NULL, -- number of the first line here, from 1 in each attempt; numbers that are missing were cut
    at       INTEGER NOT NULL, -- when it was stored
    lines    INTEGER NOT NULL, -- how many lines
    bytes    INTEGER NOT NULL, -- the length of the text in bytes
    text     TEXT NOT NULL,    -- the lines, with a line feed between each two
    PRIMARY KEY (task_id, dispatch, attempt, line)
);

-- Who runs tasks, and of which kinds.
CREATE TABLE workers (
    name       TEXT PRIMARY KEY, -- host, process id and chance: another one in each life of the process
    queues     TEXT NOT NULL,    -- a JSON list of the queues it takes tasks from
    kinds      TEXT NOT NULL,    -- a JSON list of the kinds it serves in all of them, with what each says of itself
    slots      INTEGER NOT NULL, -- how many tasks it runs at a time
    started_at INTEGER NOT NULL, -- when it was first seen
    seen_at    INTEGER NOT NULL  -- when it last said that it lives
) WITHOUT ROWID;
