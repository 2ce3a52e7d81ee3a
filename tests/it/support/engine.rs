//! Both stores behind one name, so that every test of the service runs on each.

use tempfile::TempDir;

use super::{
    postgres::{Cluster, Database},
    server::{Server, ServerOptions},
};

/// Which store a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The embedded file.
    Sqlite,
    /// A database of its own on the shared private Postgres.
    Postgres,
}

/// A fresh store and the settings of a server on it.
#[derive(Debug)]
pub(crate) struct Fixture {
    options: ServerOptions,
    _directory: Option<TempDir>,
    _database: Option<Database<'static>>,
}

impl Fixture {
    /// A fresh store.
    pub(crate) async fn new(engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => {
                let directory = tempfile::tempdir().expect("a directory");
                let options = ServerOptions::sqlite(directory.path());
                Self { options, _directory: Some(directory), _database: None }
            }
            Engine::Postgres => {
                let database = Cluster::shared().create_database().await;
                let options = ServerOptions::postgres(&database.url());
                Self { options, _directory: None, _database: Some(database) }
            }
        }
    }

    /// Settings of a server on this store.
    pub(crate) fn options(&self) -> ServerOptions {
        self.options.clone()
    }

    /// A server on this store.
    pub(crate) fn serve(&self) -> Server {
        self.options.start()
    }
}

/// Stamps out one test for each engine from an `async fn(Engine)`.
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name($crate::support::engine::Engine::Sqlite).await;
                }
            )*
        }
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name($crate::support::engine::Engine::Postgres).await;
                }
            )*
        }
    };
}
pub(crate) use on_both_engines;
