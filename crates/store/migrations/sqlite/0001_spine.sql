-- One table per kind of row. Columns are what queries need; `body` is the whole row as JSON. `live` is 1 while the row
-- can still change. The PostgreSQL text is this one with other type names; a test keeps them equal.

-- One row: who may write.
CREATE TABLE leader (
    id INTEGER PRIMARY KEY,
    generation INTEGER NOT NULL,
    holder TEXT NOT NULL,
    commits INTEGER NOT NULL
);
INSERT INTO leader (id, generation, holder, commits) VALUES (1, 0, '', 0);

CREATE TABLE tenants (
    id INTEGER PRIMARY KEY,
    name TEXT COLLATE BINARY NOT NULL UNIQUE,
    body TEXT NOT NULL
);

CREATE TABLE projects (
    id INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    name TEXT COLLATE BINARY NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (tenant, name)
);
CREATE INDEX projects_by_tenant ON projects (tenant, id);

CREATE TABLE api_keys (
    id INTEGER PRIMARY KEY,
    tenant INTEGER,
    body TEXT NOT NULL
);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant, id);

CREATE TABLE secrets (
    id INTEGER PRIMARY KEY,
    project INTEGER NOT NULL,
    name TEXT COLLATE BINARY NOT NULL,
    live INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE UNIQUE INDEX secrets_by_name ON secrets (project, name) WHERE live = 1;
CREATE INDEX secrets_by_project ON secrets (project, id) WHERE live = 1;

CREATE TABLE sites (
    id INTEGER PRIMARY KEY,
    name TEXT COLLATE BINARY NOT NULL UNIQUE,
    body TEXT NOT NULL
);

CREATE TABLE nodes (
    id INTEGER PRIMARY KEY,
    site INTEGER NOT NULL,
    name TEXT COLLATE BINARY NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (site, name)
);
CREATE INDEX nodes_by_site ON nodes (site, id);

CREATE TABLE join_tokens (
    hash TEXT COLLATE BINARY PRIMARY KEY,
    expires INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX join_tokens_by_end ON join_tokens (expires);

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    project INTEGER NOT NULL,
    name TEXT COLLATE BINARY NOT NULL,
    state TEXT NOT NULL,
    live INTEGER NOT NULL,
    body TEXT NOT NULL
);
-- The name rides along so that a search by name reads no bodies.
CREATE INDEX jobs_by_tenant ON jobs (tenant, id, name);
CREATE INDEX jobs_by_project ON jobs (project, id, name);
CREATE INDEX jobs_live ON jobs (tenant, id) WHERE live = 1;

CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    live INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX attempts_by_job ON attempts (job, id);
CREATE INDEX attempts_live ON attempts (id) WHERE live = 1;

-- `keep_from` is the first window that the writer keeps in memory.
CREATE TABLE leases (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    live INTEGER NOT NULL,
    keep_from INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX leases_by_job ON leases (job, id);
CREATE INDEX leases_live ON leases (id, job) WHERE live = 1;

CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    live INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX checkpoints_by_job ON checkpoints (job, id);
CREATE INDEX checkpoints_live ON checkpoints (job, id) WHERE live = 1;

CREATE TABLE migrations (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    live INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX migrations_by_job ON migrations (job, id);
CREATE INDEX migrations_live ON migrations (id) WHERE live = 1;

CREATE TABLE uploads (
    project INTEGER NOT NULL,
    digest TEXT COLLATE BINARY NOT NULL,
    live INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (project, digest)
);
CREATE INDEX uploads_live ON uploads (project, digest) WHERE live = 1;

-- What vaults may delete, and have deleted where live = 0.
CREATE TABLE discards (
    site INTEGER NOT NULL,
    manifest TEXT COLLATE BINARY NOT NULL,
    live INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (site, manifest)
);
CREATE INDEX discards_live ON discards (site, manifest) WHERE live = 1;

-- Billed windows. `at` is when the window was posted.
CREATE TABLE windows (
    lease INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    tenant INTEGER NOT NULL,
    project INTEGER NOT NULL,
    job INTEGER NOT NULL,
    at INTEGER NOT NULL,
    amount INTEGER NOT NULL,
    credited INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (lease, sequence)
);
CREATE INDEX windows_by_tenant ON windows (tenant, at, lease, sequence);
CREATE INDEX windows_by_project ON windows (project, at, lease, sequence);
CREATE INDEX windows_by_job ON windows (job, at, lease, sequence);

CREATE TABLE prices (
    version INTEGER PRIMARY KEY,
    body TEXT NOT NULL
);

CREATE TABLE budgets (
    scope TEXT COLLATE BINARY PRIMARY KEY,
    tenant INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX budgets_by_tenant ON budgets (tenant, scope);

-- The ledger has no bodies: what is in its columns is all there is.
CREATE TABLE accounts (
    name TEXT COLLATE BINARY PRIMARY KEY,
    tenant INTEGER,
    debits_pending INTEGER NOT NULL,
    debits_posted INTEGER NOT NULL,
    credits_pending INTEGER NOT NULL,
    credits_posted INTEGER NOT NULL,
    line INTEGER NOT NULL
);
CREATE INDEX accounts_by_tenant ON accounts (tenant, name) WHERE tenant IS NOT NULL;

CREATE TABLE holds (
    id INTEGER PRIMARY KEY,
    debit TEXT COLLATE BINARY NOT NULL,
    credit TEXT COLLATE BINARY NOT NULL,
    remaining INTEGER NOT NULL,
    live INTEGER NOT NULL
);
CREATE INDEX holds_live ON holds (id) WHERE live = 1;

CREATE TABLE transfers (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    debit TEXT COLLATE BINARY NOT NULL,
    credit TEXT COLLATE BINARY NOT NULL,
    amount INTEGER NOT NULL,
    hold INTEGER,
    cause TEXT COLLATE BINARY NOT NULL UNIQUE,
    at INTEGER NOT NULL
);
CREATE INDEX transfers_by_debit ON transfers (debit, id);
CREATE INDEX transfers_by_credit ON transfers (credit, id);

CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    project INTEGER NOT NULL,
    job INTEGER NOT NULL,
    body TEXT NOT NULL
);
-- Serves projects too.
CREATE INDEX events_by_tenant ON events (tenant, sequence, project);
CREATE INDEX events_by_job ON events (job, sequence);

-- A request's UUID as two integers. UUIDs that begin with the time (version 7) keep the index local; random ones change a page each.
CREATE TABLE requests (
    caller INTEGER NOT NULL,
    id_high INTEGER NOT NULL,
    id_low INTEGER NOT NULL,
    at INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (caller, id_high, id_low)
);
CREATE INDEX requests_by_time ON requests (at);

CREATE TABLE counters (
    id INTEGER PRIMARY KEY,
    body TEXT NOT NULL
);
