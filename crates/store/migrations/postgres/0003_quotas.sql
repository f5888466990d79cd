-- Quotas of a class, at one site or, with site 0, over all.
CREATE TABLE quotas (
    tenant BIGINT NOT NULL,
    site BIGINT NOT NULL,
    class TEXT COLLATE "C" NOT NULL,
    live BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (tenant, site, class)
);
CREATE INDEX quotas_by_site ON quotas (site, class, tenant) WHERE live = 1;
