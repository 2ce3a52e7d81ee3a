-- Heads, records, locks. The prefix keeps our tables apart from those of the Go server, which
-- stay in an adopted file under other names.

CREATE TABLE data_sync_users (
    user_id BLOB NOT NULL PRIMARY KEY CHECK (length(user_id) = 33),
    -- The head: revision of the user's newest accepted write.
    revision INTEGER NOT NULL CHECK (revision >= 0),
    -- What the quotas count; changed with the records, in the same transaction.
    record_count INTEGER NOT NULL CHECK (record_count >= 0),
    byte_count INTEGER NOT NULL CHECK (byte_count >= 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE data_sync_records (
    user_id BLOB NOT NULL,
    id TEXT NOT NULL,
    revision INTEGER NOT NULL CHECK (revision > 0),
    schema_version TEXT NOT NULL,
    -- Of the signed request that wrote this version; none for adopted records.
    request_digest BLOB CHECK (length(request_digest) = 32),
    -- Last, so that the columns before it are read without its overflow pages.
    data BLOB NOT NULL,
    UNIQUE (user_id, id),
    UNIQUE (user_id, revision)
) STRICT;

CREATE TABLE data_sync_locks (
    user_id BLOB NOT NULL CHECK (length(user_id) = 33),
    name TEXT NOT NULL,
    instance_id BLOB NOT NULL CHECK (length(instance_id) = 16),
    exclusive INTEGER NOT NULL CHECK (exclusive IN (0, 1)),
    expires_at_ms INTEGER NOT NULL,
    fencing_token INTEGER NOT NULL,
    UNIQUE (user_id, name, instance_id)
) STRICT;

-- For the sweep of expired locks.
CREATE INDEX data_sync_locks_expiry ON data_sync_locks (expires_at_ms);

CREATE TABLE data_sync_meta (
    name TEXT NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO data_sync_meta (name, value) VALUES ('fencing_token', 0);
