-- One table per kind of row. Columns are what queries need; `body` is the whole row as JSON. `live` is 1 while the row
-- can still change. The SQLite text is this one with other type names; a test keeps them equal.

-- One row: who may write.
CREATE TABLE leader (
    id BIGINT PRIMARY KEY,
    generation BIGINT NOT NULL,
    holder TEXT NOT NULL,
    commits BIGINT NOT NULL
);
INSERT INTO leader (id, generation, holder, commits) VALUES (1, 0, '', 0);

CREATE TABLE tenants (
    id BIGINT PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    body TEXT NOT NULL
);

CREATE TABLE projects (
    id BIGINT PRIMARY KEY,
    tenant BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (tenant, name)
);
CREATE INDEX projects_by_tenant ON projects (tenant, id);

CREATE TABLE api_keys (
    id BIGINT PRIMARY KEY,
    tenant BIGINT,
    body TEXT NOT NULL
);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant, id);

CREATE TABLE secrets (
    id BIGINT PRIMARY KEY,
    project BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    live BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE UNIQUE INDEX secrets_by_name ON secrets (project, name) WHERE live = 1;
CREATE INDEX secrets_by_project ON secrets (project, id) WHERE live = 1;

CREATE TABLE sites (
    id BIGINT PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    body TEXT NOT NULL
);

CREATE TABLE nodes (
    id BIGINT PRIMARY KEY,
    site BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (site, name)
);
CREATE INDEX nodes_by_site ON nodes (site, id);

CREATE TABLE join_tokens (
    hash TEXT COLLATE "C" PRIMARY KEY,
    expires BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX join_tokens_by_end ON join_tokens (expires);

CREATE TABLE jobs (
    id BIGINT PRIMARY KEY,
    tenant BIGINT NOT NULL,
    project BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    state TEXT NOT NULL,
    live BIGINT NOT NULL,
    body TEXT NOT NULL
);
-- The name rides along so that a search by name reads no bodies.
CREATE INDEX jobs_by_tenant ON jobs (tenant, id, name);
CREATE INDEX jobs_by_project ON jobs (project, id, name);
CREATE INDEX jobs_live ON jobs (tenant, id) WHERE live = 1;

CREATE TABLE attempts (
    id BIGINT PRIMARY KEY,
    job BIGINT NOT NULL,
    live BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX attempts_by_job ON attempts (job, id);
CREATE INDEX attempts_live ON attempts (id) WHERE live = 1;

-- `keep_from` is the first window that the writer keeps in memory.
CREATE TABLE leases (
    id BIGINT PRIMARY KEY,
    job BIGINT NOT NULL,
    live BIGINT NOT NULL,
    keep_from BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX leases_by_job ON leases (job, id);
CREATE INDEX leases_live ON leases (id, job) WHERE live = 1;

CREATE TABLE checkpoints (
    id BIGINT PRIMARY KEY,
    job BIGINT NOT NULL,
    live BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX checkpoints_by_job ON checkpoints (job, id);
CREATE INDEX checkpoints_live ON checkpoints (job, id) WHERE live = 1;

CREATE TABLE migrations (
    id BIGINT PRIMARY KEY,
    job BIGINT NOT NULL,
    live BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX migrations_by_job ON migrations (job, id);
CREATE INDEX migrations_live ON migrations (id) WHERE live = 1;

CREATE TABLE uploads (
    project BIGINT NOT NULL,
    digest TEXT COLLATE "C" NOT NULL,
    live BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (project, digest)
);
CREATE INDEX uploads_live ON uploads (project, digest) WHERE live = 1;

-- What vaults may delete, and have deleted where live = 0.
CREATE TABLE discards (
    site BIGINT NOT NULL,
    manifest TEXT COLLATE "C" NOT NULL,
    live BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (site, manifest)
);
CREATE INDEX discards_live ON discards (site, manifest) WHERE live = 1;

-- Billed windows. `at` is when the window was posted.
CREATE TABLE windows (
    lease BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    tenant BIGINT NOT NULL,
    project BIGINT NOT NULL,
    job BIGINT NOT NULL,
    at BIGINT NOT NULL,
    amount BIGINT NOT NULL,
    credited BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (lease, sequence)
);
CREATE INDEX windows_by_tenant ON windows (tenant, at, lease, sequence);
CREATE INDEX windows_by_project ON windows (project, at, lease, sequence);
CREATE INDEX windows_by_job ON windows (job, at, lease, sequence);

CREATE TABLE prices (
    version BIGINT PRIMARY KEY,
    body TEXT NOT NULL
);

CREATE TABLE budgets (
    scope TEXT COLLATE "C" PRIMARY KEY,
    tenant BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX budgets_by_tenant ON budgets (tenant, scope);

-- The ledger has no bodies: what is in its columns is all there is.
CREATE TABLE accounts (
    name TEXT COLLATE "C" PRIMARY KEY,
    tenant BIGINT,
    debits_pending BIGINT NOT NULL,
    debits_posted BIGINT NOT NULL,
    credits_pending BIGINT NOT NULL,
    credits_posted BIGINT NOT NULL,
    line BIGINT NOT NULL
);
CREATE INDEX accounts_by_tenant ON accounts (tenant, name) WHERE tenant IS NOT NULL;

CREATE TABLE holds (
    id BIGINT PRIMARY KEY,
    debit TEXT COLLATE "C" NOT NULL,
    credit TEXT COLLATE "C" NOT NULL,
    remaining BIGINT NOT NULL,
    live BIGINT NOT NULL
);
CREATE INDEX holds_live ON holds (id) WHERE live = 1;

CREATE TABLE transfers (
    id BIGINT PRIMARY KEY,
    kind TEXT NOT NULL,
    debit TEXT COLLATE "C" NOT NULL,
    credit TEXT COLLATE "C" NOT NULL,
    amount BIGINT NOT NULL,
    hold BIGINT,
    cause TEXT COLLATE "C" NOT NULL UNIQUE,
    at BIGINT NOT NULL
);
CREATE INDEX transfers_by_debit ON transfers (debit, id);
CREATE INDEX transfers_by_credit ON transfers (credit, id);

CREATE TABLE events (
    sequence BIGINT PRIMARY KEY,
    tenant BIGINT NOT NULL,
    project BIGINT NOT NULL,
    job BIGINT NOT NULL,
    body TEXT NOT NULL
);
-- Serves projects too.
CREATE INDEX events_by_tenant ON events (tenant, sequence, project);
CREATE INDEX events_by_job ON events (job, sequence);

-- A request's UUID as two integers. UUIDs that begin with the time (version 7) keep the index local; random ones change a page each.
CREATE TABLE requests (
    caller BIGINT NOT NULL,
    id_high BIGINT NOT NULL,
    id_low BIGINT NOT NULL,
    at BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (caller, id_high, id_low)
);
CREATE INDEX requests_by_time ON requests (at);

CREATE TABLE counters (
    id BIGINT PRIMARY KEY,
    body TEXT NOT NULL
);
