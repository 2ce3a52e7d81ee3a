-- Users, their records and their locks. Measured reasons for the shapes: ARCHITECTURE.md.

-- One row a user: the head, which is also the lock that orders the user's writes, and how much
-- the user holds. Every write updates it; half-empty pages keep those updates off the index.
CREATE TABLE data_sync.users (
    user_id  bytea  NOT NULL PRIMARY KEY CHECK (octet_length(user_id) = 33),
    revision bigint NOT NULL,
    records  bigint NOT NULL DEFAULT 0,
    bytes    bigint NOT NULL DEFAULT 0
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05
);

-- replaced_bytes is the size of the data that the last write replaced, null after the first
-- write: an upsert can return it, which keeps the counters true without reading.
CREATE TABLE data_sync.records (
    user_id        bytea  NOT NULL,
    id             text   NOT NULL COLLATE "C",
    revision       bigint NOT NULL,
    schema_version text   NOT NULL COLLATE "C",
    data           bytea  NOT NULL,
    request_digest bytea,
    replaced_bytes integer,
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, revision)
) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

-- Data is encrypted: compressing it only costs time.
ALTER TABLE data_sync.records ALTER COLUMN data SET STORAGE EXTERNAL;

-- Short-lived rows: expired ones go when their user takes a lock the next time.
CREATE TABLE data_sync.locks (
    user_id       bytea       NOT NULL,
    name          text        NOT NULL COLLATE "C",
    instance      uuid        NOT NULL,
    exclusive     boolean     NOT NULL,
    expires_at    timestamptz NOT NULL,
    fencing_token bigint      NOT NULL,
    PRIMARY KEY (user_id, name, instance)
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0.05
);

-- Drawn under the user's lock, so tokens of one lock rise in the order it changed hands.
CREATE SEQUENCE data_sync.fencing_tokens AS bigint;
