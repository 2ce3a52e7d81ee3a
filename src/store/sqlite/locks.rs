//! Named locks in SQL. Everything runs inside the writer's transaction, hence alone.

use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use crate::{
    limits::SQLITE_LOCK_SWEEP_ROWS,
    store::{LockAction, LockOutcome, LockRequest, Quotas, UserId},
};

/// The caller's own live hold.
struct Own {
    exclusive: bool,
    fencing_token: u64,
}

/// Takes or releases a lock at `now_ms`.
pub(super) fn set_lock(
    connection: &Connection,
    request: &LockRequest,
    quotas: &Quotas,
    now_ms: u64,
) -> rusqlite::Result<LockOutcome> {
    remove_expired(connection, request.user, now_ms)?;
    match request.action {
        LockAction::Acquire { exclusive, ttl_ms } => {
            let expires_at_ms = now_ms.saturating_add(ttl_ms);
            acquire(connection, request, exclusive, expires_at_ms, quotas)
        }
        LockAction::Release => {
            release(connection, request)?;
            Ok(LockOutcome::Released)
        }
    }
}

/// Removes the user's expired locks, so that what follows sees live ones only, and a few of
/// others: the table cannot grow, since a request adds at most one row.
fn remove_expired(connection: &Connection, user: UserId, now_ms: u64) -> rusqlite::Result<()> {
    let mut own = connection.prepare_cached(
        "DELETE FROM data_sync_locks WHERE user_id = :user AND expires_at_ms <= :now",
    )?;
    own.execute(named_params! { ":user": user.as_bytes(), ":now": now_ms })?;
    let mut anybody = connection.prepare_cached(
        "DELETE FROM data_sync_locks WHERE rowid IN
             (SELECT rowid FROM data_sync_locks WHERE expires_at_ms <= :now LIMIT :rows)",
    )?;
    anybody.execute(named_params! { ":now": now_ms, ":rows": SQLITE_LOCK_SWEEP_ROWS })?;
    Ok(())
}

fn acquire(
    connection: &Connection,
    request: &LockRequest,
    exclusive: bool,
    expires_at_ms: u64,
    quotas: &Quotas,
) -> rusqlite::Result<LockOutcome> {
    if is_refused(connection, request, exclusive)? {
        return Ok(LockOutcome::Held);
    }
    let own = own(connection, request)?;
    if own.is_none()
        && let Some(max_locks) = quotas.max_locks
        && live_locks(connection, request.user)? >= max_locks
    {
        return Ok(LockOutcome::OverQuota);
    }
    let fencing_token = match own {
        Some(own) if own.exclusive || !exclusive => own.fencing_token,
        _ => draw_fencing_token(connection)?,
    };
    put(connection, request, exclusive, expires_at_ms, fencing_token)?;
    Ok(LockOutcome::Acquired { fencing_token, expires_at_ms })
}

/// Whether another instance's live lock forbids the caller's.
fn is_refused(
    connection: &Connection,
    request: &LockRequest,
    exclusive: bool,
) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM data_sync_locks
             WHERE user_id = :user AND name = :name AND instance_id <> :instance
                 AND (:exclusive OR exclusive = 1))",
    )?;
    let parameters = named_params! {
        ":user": request.user.as_bytes(),
        ":name": request.name,
        ":instance": request.instance.as_bytes(),
        ":exclusive": exclusive,
    };
    statement.query_row(parameters, |row| row.get(0))
}

fn own(connection: &Connection, request: &LockRequest) -> rusqlite::Result<Option<Own>> {
    let mut statement = connection.prepare_cached(
        "SELECT exclusive, fencing_token FROM data_sync_locks
         WHERE user_id = :user AND name = :name AND instance_id = :instance",
    )?;
    let parameters = named_params! {
        ":user": request.user.as_bytes(),
        ":name": request.name,
        ":instance": request.instance.as_bytes(),
    };
    let read = |row: &Row<'_>| Ok(Own { exclusive: row.get(0)?, fencing_token: row.get(1)? });
    statement.query_row(parameters, read).optional()
}

fn live_locks(connection: &Connection, user: UserId) -> rusqlite::Result<u64> {
    let mut statement =
        connection.prepare_cached("SELECT count(*) FROM data_sync_locks WHERE user_id = ?1")?;
    statement.query_row([user.as_bytes()], |row| row.get(0))
}

fn draw_fencing_token(connection: &Connection) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached(
        "UPDATE data_sync_meta SET value = value + 1 WHERE name = 'fencing_token'
         RETURNING value",
    )?;
    statement.query_row([], |row| row.get(0))
}

fn put(
    connection: &Connection,
    request: &LockRequest,
    exclusive: bool,
    expires_at_ms: u64,
    fencing_token: u64,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO data_sync_locks
             (user_id, name, instance_id, exclusive, expires_at_ms, fencing_token)
         VALUES (:user, :name, :instance, :exclusive, :expires_at_ms, :fencing_token)
         ON CONFLICT (user_id, name, instance_id) DO UPDATE SET
             exclusive = excluded.exclusive, expires_at_ms = excluded.expires_at_ms,
             fencing_token = excluded.fencing_token",
    )?;
    statement.execute(named_params! {
        ":user": request.user.as_bytes(),
        ":name": request.name,
        ":instance": request.instance.as_bytes(),
        ":exclusive": exclusive,
        ":expires_at_ms": expires_at_ms,
        ":fencing_token": fencing_token,
    })?;
    Ok(())
}

fn release(connection: &Connection, request: &LockRequest) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM data_sync_locks
         WHERE user_id = :user AND name = :name AND instance_id = :instance",
    )?;
    statement.execute(named_params! {
        ":user": request.user.as_bytes(),
        ":name": request.name,
        ":instance": request.instance.as_bytes(),
    })?;
    Ok(())
}

/// Whether anybody holds the lock at `now_ms`.
pub(super) fn is_locked(
    connection: &Connection,
    user: UserId,
    name: &str,
    now_ms: u64,
) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM data_sync_locks
             WHERE user_id = :user AND name = :name AND expires_at_ms > :now)",
    )?;
    let parameters = named_params! { ":user": user.as_bytes(), ":name": name, ":now": now_ms };
    statement.query_row(parameters, |row| row.get(0))
}
