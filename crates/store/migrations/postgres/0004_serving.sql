-- Weights that projects serve. `live` is 0 once one is deleted.
CREATE TABLE models (
    id BIGINT PRIMARY KEY,
    project BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    state TEXT NOT NULL,
    live BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE UNIQUE INDEX models_by_name ON models (project, name) WHERE live = 1;
CREATE INDEX models_by_project ON models (project, id) WHERE live = 1;

-- Served models. Their replicas are jobs.
CREATE TABLE endpoints (
    id BIGINT PRIMARY KEY,
    project BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    live BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE UNIQUE INDEX endpoints_by_name ON endpoints (project, name) WHERE live = 1;
CREATE INDEX endpoints_by_project ON endpoints (project, id) WHERE live = 1;

-- Requests to endpoints, `project` the one that called. `closed` is when one was over; those that are not have 0.
CREATE TABLE inference (
    id BIGINT PRIMARY KEY,
    endpoint BIGINT NOT NULL,
    project BIGINT NOT NULL,
    live BIGINT NOT NULL,
    closed BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX inference_by_endpoint ON inference (endpoint, id);
CREATE INDEX inference_by_project ON inference (project, id);
CREATE INDEX inference_live ON inference (id) WHERE live = 1;
CREATE INDEX inference_by_time ON inference (closed) WHERE live = 0;
