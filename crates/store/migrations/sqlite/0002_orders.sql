-- Purchases of capacity. They never change: where one stands is where the jobs of its legs stand.
CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    project INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX orders_by_project ON orders (project, id);
