-- The highest revision that no user begins with. Restores raise it: users who came after the
-- backup are unknown now, but their devices remember revisions. Why: docs/backup.md.
INSERT INTO data_sync_meta (name, value) VALUES ('head_floor', 0);
