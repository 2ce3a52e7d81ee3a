//! placeholder
#[derive(Debug)]
pub(crate) struct Database;
impl Database {
    pub(crate) fn url(&self) -> &str {
        ""
    }
}
pub(crate) async fn fresh_database() -> Database {
    Database
}
