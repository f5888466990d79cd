-- Weights that projects serve. `live` is 0 once one is deleted.
CREATE TABLE models (
    id INTEGER PRIMARY KEY,
    project INTEGER NOT NULL,
    name TEXT COLLATE BINARY NOT NULL,
    state TEXT NOT NULL,
    live INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE UNIQUE INDEX models_by_name ON models (project, name) WHERE live = 1;
CREATE INDEX models_by_project ON models (project, id) WHERE live = 1;

-- Served models. Their replicas are jobs.
CREATE TABLE endpoints (
    id INTEGER PRIMARY KEY,
    project INTEGER NOT NULL,
    name TEXT COLLATE BINARY NOT NULL,
    live INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE UNIQUE INDEX endpoints_by_name ON endpoints (project, name) WHERE live = 1;
CREATE INDEX endpoints_by_project ON endpoints (project, id) WHERE live = 1;

-- Requests to endpoints, `project` the one that called. `closed` is when one was over; those that are not have 0.
CREATE TABLE inference (
    id INTEGER PRIMARY KEY,
    endpoint INTEGER NOT NULL,
    project INTEGER NOT NULL,
    live INTEGER NOT NULL,
    closed INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX inference_by_endpoint ON inference (endpoint, id);
CREATE INDEX inference_by_project ON inference (project, id);
CREATE INDEX inference_live ON inference (id) WHERE live = 1;
CREATE INDEX inference_by_time ON inference (closed) WHERE live = 0;
