-- What a restored database needs before apps meet it: revisions above all that any device has
-- seen. Why: docs/backup.md.

-- The revision of a new user's first write is a default, because that is the one number that a
-- write under SERIALIZABLE can take from the database without reading a row. Restores raise it:
-- users who came after the backup are unknown now, but their devices remember revisions.
ALTER TABLE data_sync.users ALTER COLUMN revision SET DEFAULT 1;

-- The highest revision that no user begins with.
CREATE FUNCTION data_sync.head_floor_v1() RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT substring(pg_get_expr(d.adbin, d.adrelid) FROM '[0-9]+')::bigint - 1
    FROM pg_attrdef d
    JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE d.adrelid = 'data_sync.users'::regclass AND a.attname = 'revision'
$$;

-- Makes new users begin above p_floor, if they do not yet.
CREATE FUNCTION data_sync.raise_head_floor_v1(p_floor bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF p_floor > data_sync.head_floor_v1() THEN
        EXECUTE format('ALTER TABLE data_sync.users ALTER COLUMN revision SET DEFAULT %s',
                       p_floor + 1);
    END IF;
    RETURN data_sync.head_floor_v1();
END
$$;

-- Lifts every user by p_by: all records get new revisions in their old order, the first one
-- p_by + 1 above the user's head. New users and fencing tokens begin higher by as much. No two
-- revisions ever meet, because every new one lies above every old one of the user.
CREATE FUNCTION data_sync.lift_v1(p_by bigint)
RETURNS TABLE (lifted_users bigint, lifted_records bigint, head_floor bigint, last_token bigint)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    -- Writers wait; whoever reads meanwhile sees all of it as it was.
    LOCK TABLE data_sync.users, data_sync.records IN SHARE ROW EXCLUSIVE MODE;
    UPDATE data_sync.records r SET revision = n.revision
    FROM (
        SELECT old.user_id, old.id,
               u.revision + p_by
                   + row_number() OVER (PARTITION BY old.user_id ORDER BY old.revision) AS revision
        FROM data_sync.records old JOIN data_sync.users u ON u.user_id = old.user_id
    ) n
    WHERE r.user_id = n.user_id AND r.id = n.id;
    GET DIAGNOSTICS lifted_records = ROW_COUNT;
    UPDATE data_sync.users u SET revision = u.revision + p_by
        + (SELECT count(*) FROM data_sync.records r WHERE r.user_id = u.user_id);
    GET DIAGNOSTICS lifted_users = ROW_COUNT;
    head_floor := data_sync.raise_head_floor_v1(data_sync.head_floor_v1() + p_by);
    SELECT setval('data_sync.fencing_tokens',
                  CASE WHEN is_called THEN last_value ELSE 0 END + p_by)
    INTO last_token FROM data_sync.fencing_tokens;
    RETURN NEXT;
END
$$;

-- set_records_v1 with the first revision of a new user from the default above; all else is the
-- same, and so are the results.
CREATE FUNCTION data_sync.set_records_v2(
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
            INSERT INTO data_sync.users AS u (user_id)
            VALUES (w.user_id)
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
