//! Brings a database to this program's schema: everything that is missing, in one transaction,
//! under a lock that lets any number of processes start at once.

use tokio_postgres::{Client, error::SqlState, types::Type};

use super::{
    adopt,
    connect::Connector,
    error::{is_connection_fault, script_text},
};
use crate::{
    config::PostgresConfig,
    limits::{MAX_ADOPTION_ATTEMPTS, MIGRATION_LOCK_TIMEOUT},
    store::migrate::{AdoptionReport, LegacyState, MigrateError, Migration, SchemaState},
    tasks::Tasks,
};

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "tables",
        sql: include_str!("../../../migrations/postgres/0001_tables.sql"),
    },
    Migration {
        version: 2,
        name: "functions",
        sql: include_str!("../../../migrations/postgres/0002_functions.sql"),
    },
    Migration {
        version: 3,
        name: "nudges",
        sql: include_str!("../../../migrations/postgres/0003_nudges.sql"),
    },
    Migration {
        version: 4,
        name: "after_restore",
        sql: include_str!("../../../migrations/postgres/0004_after_restore.sql"),
    },
];

/// Key of the advisory lock that one migrating process holds; any fixed number serves.
pub(super) const MIGRATION_KEY: i64 = 0x6461_7461_7379_6e63;

/// Where the migrations that ran are kept. The schema is only made where it is missing: a role
/// that may not make schemas can still be given one.
const CREATE_LEDGER: &str = "
    DO $$ BEGIN
        IF to_regnamespace('data_sync') IS NULL THEN
            CREATE SCHEMA data_sync;
        END IF;
    END $$;
    CREATE TABLE IF NOT EXISTS data_sync.migrations (
        version    integer     NOT NULL PRIMARY KEY,
        name       text        NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )";

const HAS_LEDGER: &str = "SELECT to_regclass('data_sync.migrations') IS NOT NULL";

const APPLIED: &str = "SELECT coalesce(max(version), 0) FROM data_sync.migrations";

const RECORD_APPLIED: &str = "INSERT INTO data_sync.migrations (version, name) VALUES ($1, $2)";

/// The Go server's heads are in a table of a name of their own, keyed by text; after adoption it
/// bears another name.
const LEGACY: &str = "SELECT
    EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('user_revisions')
            AND attname = 'user_id' AND atttypid = 'text'::regtype),
    to_regclass('go_user_revisions') IS NOT NULL";

/// Applies what is missing and, where asked to, takes over the Go server's data.
///
/// # Errors
/// [`MigrateError::Unadopted`] where that data is found and `adopt` is false. After any error the
/// database is as it was.
pub async fn migrate(
    config: &PostgresConfig,
    adopt: bool,
) -> Result<(SchemaState, Option<AdoptionReport>), MigrateError> {
    let mut attempt = 1;
    loop {
        let client = connect(config).await?;
        match migrate_once(&client, adopt).await {
            // A writer and the adoption waited for each other, and the adoption gave way.
            Err(Failure::Deadlock) if attempt < MAX_ADOPTION_ATTEMPTS => {
                tracing::info!(attempt, "adoption gave way to a writer and begins anew");
                attempt += 1;
            }
            Err(Failure::Deadlock) => {
                return Err(MigrateError::Adoption(
                    "writers kept getting in the way; stop the Go server first".to_owned(),
                ));
            }
            Err(Failure::Final(error)) => return Err(error),
            Ok(done) => return Ok(done),
        }
    }
}

/// Looks where the database stands, and changes nothing.
///
/// # Errors
/// [`MigrateError::Unavailable`] where it cannot be read.
pub async fn schema_state(config: &PostgresConfig) -> Result<SchemaState, MigrateError> {
    let client = connect(config).await?;
    state(&client).await.map_err(|error| unavailable(&error))
}

/// Why an attempt ended.
pub(super) enum Failure {
    /// Postgres ended a deadlock by ending this transaction.
    Deadlock,
    /// For good.
    Final(MigrateError),
}

async fn connect(config: &PostgresConfig) -> Result<Client, MigrateError> {
    let connector = Connector::new(&config.direct_url, config, &Tasks::new())
        .map_err(|error| MigrateError::Unavailable(error.to_string()))?;
    let client =
        connector.connect().await.map_err(|error| MigrateError::Unavailable(error.to_string()))?;
    if let Some(path) = connector.search_path() {
        let set = "SELECT set_config('search_path', $1, false)";
        client
            .query_typed(set, &[(&path, Type::TEXT)])
            .await
            .map_err(|error| unavailable(&error))?;
    }
    Ok(client)
}

/// One attempt. What it did is undone when the client is dropped before the commit.
async fn migrate_once(
    client: &Client,
    adopt: bool,
) -> Result<(SchemaState, Option<AdoptionReport>), Failure> {
    let fail = |error: &tokio_postgres::Error| Failure::Final(unavailable(error));
    begin(client).await?;
    let before = state(client).await.map_err(|error| fail(&error))?;
    if before.legacy == LegacyState::Unadopted && !adopt {
        return Err(Failure::Final(MigrateError::Unadopted));
    }
    if before.applied < before.latest {
        client.batch_execute(CREATE_LEDGER).await.map_err(|error| fail(&error))?;
    }
    for migration in MIGRATIONS.iter().filter(|m| m.version > before.applied) {
        apply(client, migration).await?;
        tracing::info!(version = migration.version, name = migration.name, "migration applied");
    }
    let report = match before.legacy {
        LegacyState::Unadopted => Some(adopt::adopt(client).await?),
        LegacyState::None | LegacyState::Adopted => None,
    };
    let after = state(client).await.map_err(|error| fail(&error))?;
    client.batch_execute("COMMIT").await.map_err(|error| fail(&error))?;
    Ok((after, report))
}

/// Opens the transaction and waits until no other process migrates.
async fn begin(client: &Client) -> Result<(), Failure> {
    let wait = MIGRATION_LOCK_TIMEOUT.as_secs();
    let open = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; \
         SET LOCAL lock_timeout = '{wait}s'; SET LOCAL client_min_messages = warning; \
         SELECT pg_advisory_xact_lock({MIGRATION_KEY})"
    );
    client.batch_execute(&open).await.map_err(|error| {
        Failure::Final(match error.code() {
            Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => MigrateError::Locked(wait),
            _ => unavailable(&error),
        })
    })
}

async fn apply(client: &Client, migration: &Migration) -> Result<(), Failure> {
    let script = |error: &tokio_postgres::Error| {
        Failure::Final(MigrateError::Script {
            version: migration.version,
            name: migration.name,
            reason: script_text(error),
        })
    };
    client.batch_execute(migration.sql).await.map_err(|error| script(&error))?;
    let version = i32::try_from(migration.version).unwrap_or(i32::MAX);
    let row: [super::transaction::Parameter<'_>; 2] =
        [(&version, Type::INT4), (&migration.name, Type::TEXT)];
    client.execute_typed(RECORD_APPLIED, &row).await.map_err(|error| script(&error))?;
    Ok(())
}

async fn state(client: &Client) -> Result<SchemaState, tokio_postgres::Error> {
    let has_ledger: bool = client.query_typed_one(HAS_LEDGER, &[]).await?.try_get(0)?;
    let applied: i32 =
        if has_ledger { client.query_typed_one(APPLIED, &[]).await?.try_get(0)? } else { 0 };
    let legacy = client.query_typed_one(LEGACY, &[]).await?;
    let legacy = match (legacy.try_get(0)?, legacy.try_get(1)?) {
        (true, _) => LegacyState::Unadopted,
        (false, true) => LegacyState::Adopted,
        (false, false) => LegacyState::None,
    };
    Ok(SchemaState {
        applied: u32::try_from(applied).unwrap_or_default(),
        latest: MIGRATIONS.last().map_or(0, |migration| migration.version),
        legacy,
    })
}

fn unavailable(error: &tokio_postgres::Error) -> MigrateError {
    let text = script_text(error);
    if is_connection_fault(error) {
        MigrateError::Unavailable(format!("the connection was lost: {text}"))
    } else {
        MigrateError::Unavailable(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_ascend_from_one_without_gaps() {
        let versions: Vec<u32> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        let expected: Vec<u32> = (1..=u32::try_from(MIGRATIONS.len()).unwrap_or(0)).collect();
        assert_eq!(versions, expected);
    }
}
