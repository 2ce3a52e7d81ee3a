-- Nudges of the last minutes, one row a user: what replicas read that were not listening when the
-- nudge was announced. A hint that is lost in a crash costs time, so nothing of it is logged.
CREATE UNLOGGED TABLE data_sync.nudges (
    user_tag  bytea       NOT NULL PRIMARY KEY CHECK (octet_length(user_tag) = 16),
    origin    bigint      NOT NULL,
    nudged_at timestamptz NOT NULL
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 500
);

CREATE INDEX nudges_nudged_at ON data_sync.nudges (nudged_at);

-- Writes down that these users were nudged by this replica, and forgets some of what is older than
-- p_keep_ms. Users go in order, and no row is waited for that somebody else forgets: two replicas
-- never wait for each other.
CREATE FUNCTION data_sync.note_nudges_v1(p_user_tags bytea[], p_origin bigint, p_keep_ms bigint)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    INSERT INTO data_sync.nudges (user_tag, origin, nudged_at)
    SELECT tags.tag, p_origin, clock_timestamp()
    FROM (SELECT DISTINCT tag FROM unnest(p_user_tags) AS given (tag) ORDER BY tag) tags
    ON CONFLICT (user_tag) DO UPDATE
        SET origin = excluded.origin, nudged_at = excluded.nudged_at;

    DELETE FROM data_sync.nudges
    WHERE user_tag IN (
        SELECT n.user_tag FROM data_sync.nudges n
        WHERE n.nudged_at < clock_timestamp() - p_keep_ms * interval '1 millisecond'
        LIMIT 200
        FOR UPDATE SKIP LOCKED
    );
END
$$;
