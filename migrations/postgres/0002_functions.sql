-- The operations, one call each. A function is never changed: a new form gets a new number, so
-- that replicas of two releases serve side by side.

-- Writes records on condition; one row in, one row out, in the order given. Rows of one user
-- must be neighbours, and users ascending, or two callers may deadlock.
--
-- results: 0 written, 1 repeated, 2 conflict, 3 over the quota of records, 4 of bytes.
--
-- Writes only, on purpose: under SERIALIZABLE an index read locks index pages, and strangers on
-- one page would abort each other. INSERT .. ON CONFLICT DO UPDATE reads without such locks.
-- Bumping the head is what locks it; the true head and counters are written back when they came
-- out differently, so a refused write leaves no hole. The one read is for users at their quota.
CREATE FUNCTION data_sync.set_records_v1(
    p_user_ids bytea[], p_ids text[], p_bases bigint[], p_schema_versions text[],
    p_data bytea[], p_digests bytea[], p_max_records bigint, p_max_bytes bigint
) RETURNS TABLE (result smallint, result_revision bigint)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    w               record;
    w_bytes         bigint;
    locked          bytea;
    row_head        bigint;
    row_records     bigint;
    row_bytes       bigint;
    true_head       bigint;
    true_records    bigint;
    true_bytes      bigint;
    stored_revision bigint;
    stored_digest   bytea;
    stored_bytes    bigint;
BEGIN
    FOR w IN
        -- One null more than there are rows: it ends the last user's run.
        SELECT * FROM unnest(p_user_ids || NULL::bytea, p_ids, p_bases, p_schema_versions,
                             p_data, p_digests)
            AS rows (user_id, id, base, schema_version, data, digest)
    LOOP
        IF w.user_id IS DISTINCT FROM locked THEN
            IF locked IS NOT NULL AND (true_head <> row_head OR true_records <> row_records
                                       OR true_bytes <> row_bytes) THEN
                INSERT INTO data_sync.users AS u (user_id, revision, records, bytes)
                VALUES (locked, true_head, true_records, true_bytes)
                ON CONFLICT (user_id) DO UPDATE
                    SET revision = excluded.revision, records = excluded.records,
                        bytes = excluded.bytes;
            END IF;
            EXIT WHEN w.user_id IS NULL;
            INSERT INTO data_sync.users AS u (user_id, revision)
            VALUES (w.user_id, 1)
            ON CONFLICT (user_id) DO UPDATE SET revision = u.revision + 1
            RETURNING u.revision, u.records, u.bytes INTO row_head, row_records, row_bytes;
            locked := w.user_id;
            true_head := row_head - 1;
            true_records := row_records;
            true_bytes := row_bytes;
        END IF;

        w_bytes := octet_length(w.data);
        IF true_records < p_max_records AND true_bytes + w_bytes <= p_max_bytes THEN
            INSERT INTO data_sync.records AS r
                (user_id, id, revision, schema_version, data, request_digest)
            VALUES (w.user_id, w.id, true_head + 1, w.schema_version, w.data, w.digest)
            ON CONFLICT (user_id, id) DO UPDATE SET
                -- Equal digests mean equal requests: only what the server adds could differ.
                revision = CASE WHEN r.request_digest = excluded.request_digest
                                THEN r.revision ELSE excluded.revision END,
                schema_version = excluded.schema_version,
                data = CASE WHEN r.request_digest = excluded.request_digest
                            THEN r.data ELSE excluded.data END,
                request_digest = excluded.request_digest,
                replaced_bytes = CASE WHEN r.request_digest = excluded.request_digest
                                      THEN r.replaced_bytes ELSE octet_length(r.data) END
            WHERE r.request_digest = excluded.request_digest OR r.revision = w.base
            RETURNING r.revision, r.replaced_bytes INTO stored_revision, stored_bytes;
            IF NOT FOUND THEN
                result := 2;
                result_revision := 0;
            ELSIF stored_revision <= true_head THEN
                result := 1;
                result_revision := stored_revision;
            ELSE
                result := 0;
                result_revision := stored_revision;
                true_head := stored_revision;
                true_bytes := true_bytes + w_bytes - coalesce(stored_bytes, 0);
                IF stored_bytes IS NULL THEN
                    true_records := true_records + 1;
                END IF;
            END IF;
        ELSE
            SELECT r.revision, r.request_digest, octet_length(r.data)
            INTO stored_revision, stored_digest, stored_bytes
            FROM data_sync.records r WHERE r.user_id = w.user_id AND r.id = w.id;
            IF NOT FOUND THEN
                result := CASE WHEN true_records >= p_max_records THEN 3 ELSE 4 END;
                result_revision := 0;
            ELSIF stored_digest = w.digest THEN
                result := 1;
                result_revision := stored_revision;
            ELSIF stored_revision <> w.base THEN
                result := 2;
                result_revision := 0;
            ELSIF w_bytes > stored_bytes AND true_bytes - stored_bytes + w_bytes > p_max_bytes THEN
                result := 4;
                result_revision := 0;
            ELSE
                true_head := true_head + 1;
                true_bytes := true_bytes - stored_bytes + w_bytes;
                UPDATE data_sync.records r
                SET revision = true_head, schema_version = w.schema_version, data = w.data,
                    request_digest = w.digest, replaced_bytes = stored_bytes
                WHERE r.user_id = w.user_id AND r.id = w.id;
                result := 0;
                result_revision := true_head;
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- One page of a user's changes after a revision, and the head, from the caller's one snapshot.
-- Always at least one row; one with a null id tells the head of an empty page. `more` counts in
-- the last row only. The cut is made before any data is fetched from its own storage.
CREATE FUNCTION data_sync.list_changes_v1(
    p_user_id bytea, p_since bigint, p_max_records bigint, p_max_bytes bigint,
    p_overhead_bytes bigint
) RETURNS TABLE (head bigint, more boolean, id text, revision bigint, schema_version text,
                 data bytea)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    user_head bigint;
BEGIN
    SELECT u.revision INTO user_head FROM data_sync.users u WHERE u.user_id = p_user_id;
    IF user_head > p_since THEN
        RETURN QUERY
        SELECT user_head, c.more, c.id, c.revision, c.schema_version, c.data
        FROM (
            SELECT b.id, b.revision, b.schema_version, b.data,
                   row_number() OVER w AS place,
                   sum(octet_length(b.id) + octet_length(b.schema_version)
                       + octet_length(b.data) + p_overhead_bytes) OVER w AS bytes,
                   lead(b.revision) OVER w IS NOT NULL AS more
            FROM (
                SELECT r.id, r.revision, r.schema_version, r.data
                FROM data_sync.records r
                WHERE r.user_id = p_user_id AND r.revision > p_since
                ORDER BY r.revision
                LIMIT p_max_records + 1
            ) b
            WINDOW w AS (ORDER BY b.revision ROWS UNBOUNDED PRECEDING)
        ) c
        WHERE c.place = 1 OR (c.place <= p_max_records AND c.bytes <= p_max_bytes)
        ORDER BY c.revision;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    RETURN QUERY SELECT coalesce(user_head, 0), false, NULL::text, NULL::bigint, NULL::text,
                        NULL::bytea;
END
$$;

-- Takes or, where p_ttl_ms is null, releases one lock.
--
-- results: 0 acquired, 1 released, 2 held by another, 3 over the quota.
--
-- For READ COMMITTED: only there does each statement see what was committed while this one
-- waited. The key of the lock is the user, so that the count of a user's locks is exact too.
CREATE FUNCTION data_sync.set_lock_v1(
    p_user_id bytea, p_name text, p_instance uuid, p_exclusive boolean, p_ttl_ms bigint,
    p_max_locks bigint
) RETURNS TABLE (result smallint, token bigint, expires_ms bigint)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    now_at     timestamptz;
    ends_at    timestamptz;
    own_token  bigint;
    own_kind   boolean;
    live_locks bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(encode(p_user_id, 'hex'), 7305));
    -- Read after the wait: a time from before it could find a lock live that has expired.
    now_at := clock_timestamp();
    token := 0;
    expires_ms := 0;

    DELETE FROM data_sync.locks l
    WHERE l.user_id = p_user_id AND l.name = p_name AND l.expires_at <= now_at;

    IF p_ttl_ms IS NULL THEN
        DELETE FROM data_sync.locks l
        WHERE l.user_id = p_user_id AND l.name = p_name AND l.instance = p_instance;
        result := 1;
        RETURN NEXT;
        RETURN;
    END IF;

    PERFORM FROM data_sync.locks l
    WHERE l.user_id = p_user_id AND l.name = p_name AND l.instance <> p_instance
      AND (l.exclusive OR p_exclusive);
    IF FOUND THEN
        result := 2;
        RETURN NEXT;
        RETURN;
    END IF;

    -- Rounded up to the millisecond that the caller is told: never early.
    ends_at := date_trunc('milliseconds', now_at + p_ttl_ms * interval '1 millisecond'
                                          + interval '999 microseconds');
    SELECT l.fencing_token, l.exclusive INTO own_token, own_kind
    FROM data_sync.locks l
    WHERE l.user_id = p_user_id AND l.name = p_name AND l.instance = p_instance;
    IF NOT FOUND THEN
        DELETE FROM data_sync.locks l WHERE l.user_id = p_user_id AND l.expires_at <= now_at;
        SELECT count(*) INTO live_locks FROM data_sync.locks l WHERE l.user_id = p_user_id;
        IF live_locks >= p_max_locks THEN
            result := 3;
            RETURN NEXT;
            RETURN;
        END IF;
        token := nextval('data_sync.fencing_tokens');
        INSERT INTO data_sync.locks
            (user_id, name, instance, exclusive, expires_at, fencing_token)
        VALUES (p_user_id, p_name, p_instance, p_exclusive, ends_at, token);
    ELSE
        token := CASE WHEN p_exclusive AND NOT own_kind
                      THEN nextval('data_sync.fencing_tokens') ELSE own_token END;
        UPDATE data_sync.locks l
        SET exclusive = p_exclusive, expires_at = ends_at, fencing_token = token
        WHERE l.user_id = p_user_id AND l.name = p_name AND l.instance = p_instance;
    END IF;
    result := 0;
    expires_ms := (extract(epoch FROM ends_at) * 1000)::bigint;
    RETURN NEXT;
END
$$;

-- Tells whether anybody holds the lock.
CREATE FUNCTION data_sync.is_locked_v1(p_user_id bytea, p_name text) RETURNS boolean
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM data_sync.locks l
        WHERE l.user_id = p_user_id AND l.name = p_name AND l.expires_at > clock_timestamp()
    );
END
$$;
