//! The RPCs that this server answers, by name: one table for metrics, traces and logs.
//!
//! Callers choose paths freely; a label or a span name comes from this table only, so that nobody
//! can make up new series.

use tonic::Code;

/// How many messages flow in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One request, one reply.
    Unary,
    /// One request, any number of replies.
    ServerStream,
    /// Any number of either.
    BidiStream,
}

impl Kind {
    /// The value of the label `grpc_type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// One RPC.
#[derive(Debug, PartialEq, Eq)]
pub struct Rpc {
    /// Place in [`RPCS`].
    pub index: usize,
    /// Path of the HTTP request.
    pub path: &'static str,
    /// Full name of the service.
    pub service: &'static str,
    /// Name of the method.
    pub method: &'static str,
    /// How many messages flow.
    pub kind: Kind,
}

impl Rpc {
    /// The table's entry for a request path; [`UNKNOWN`] for a path that is not in it.
    #[must_use]
    pub fn of_path(path: &str) -> &'static Self {
        RPCS.iter().find(|rpc| rpc.path == path).unwrap_or(UNKNOWN)
    }

    /// Service and method as traces spell them, such as `sync.Syncer/SetRecord`.
    #[must_use]
    pub fn full_name(&self) -> &'static str {
        self.path.strip_prefix('/').unwrap_or(self.path)
    }

    /// True if a call has one request and one reply.
    #[must_use]
    pub fn is_unary(&self) -> bool {
        self.kind == Kind::Unary
    }
}

/// Writes the table: `index "service" "method" kind`.
macro_rules! rpcs {
    ($($index:literal $service:literal $method:literal $kind:ident,)*) => {
        &[$(Rpc {
            index: $index,
            path: concat!("/", $service, "/", $method),
            service: $service,
            method: $method,
            kind: Kind::$kind,
        },)*]
    };
}

/// Every RPC, those called most first.
pub const RPCS: &[Rpc] = rpcs! {
    0 "sync.Syncer" "SetRecord" Unary,
    1 "sync.Syncer" "ListChanges" Unary,
    2 "sync.Syncer" "ListenChanges" ServerStream,
    3 "sync.Syncer" "SetLock" Unary,
    4 "sync.Syncer" "GetLock" Unary,
    5 "grpc.health.v1.Health" "Check" Unary,
    6 "grpc.health.v1.Health" "Watch" ServerStream,
    7 "grpc.reflection.v1.ServerReflection" "ServerReflectionInfo" BidiStream,
    8 "grpc.reflection.v1alpha.ServerReflection" "ServerReflectionInfo" BidiStream,
    9 "unknown" "unknown" Unary,
};

/// Stands for every path that names no RPC of this server.
pub const UNKNOWN: &Rpc = &RPCS[RPCS.len() - 1];

/// The names of the status codes in the label `grpc_code`, by number, as the `grpc_server_*`
/// family spells them in every language.
pub const CODE_NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The place of a code in [`CODE_NAMES`].
#[must_use]
pub fn code_index(code: Code) -> usize {
    usize::try_from(i32::from(code)).unwrap_or(Code::Unknown as usize)
}

/// The name of a code in metrics and logs.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    CODE_NAMES[code_index(code)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_of_the_contract_is_in_the_table() {
        let contract = include_str!("../../proto/sync.proto");
        let mut found = 0;
        for line in contract.lines().filter_map(|line| line.trim().strip_prefix("rpc ")) {
            let (method, rest) = line.split_once('(').expect("an rpc has a request");
            let rpc = Rpc::of_path(&format!("/{}/{method}", crate::proto::SERVICE_NAME));
            assert_eq!(rpc.method, method);
            assert_eq!(rpc.is_unary(), !rest.contains("stream "), "{method}");
            found += 1;
        }
        assert_eq!(found, 5);
    }

    #[test]
    fn the_table_knows_its_own_places() {
        for (index, rpc) in RPCS.iter().enumerate() {
            assert_eq!(rpc.index, index);
            assert_eq!(Rpc::of_path(rpc.path), rpc);
        }
    }

    #[test]
    fn a_path_that_callers_make_up_is_unknown() {
        for path in ["/", "", "/sync.Syncer/", "/sync.Syncer/setrecord", "/sync.Syncer/SetRecord/"]
        {
            assert_eq!(Rpc::of_path(path), UNKNOWN, "{path}");
        }
    }

    #[test]
    fn codes_are_named_as_other_servers_name_them() {
        assert_eq!(code_name(Code::Ok), "OK");
        assert_eq!(code_name(Code::Cancelled), "Canceled");
        assert_eq!(code_name(Code::DeadlineExceeded), "DeadlineExceeded");
        assert_eq!(code_name(Code::Unauthenticated), "Unauthenticated");
    }
}
