# The service as an image: one binary, no shell, user 65532.
#
#   docker build -t data-sync .
#
# Base images by argument, for other registries, for digests, or to build where only
# local ones exist. BUILD_IMAGE needs Rust (rust-toolchain.toml tells the version) and a
# C compiler; BASE_IMAGE needs the same or a newer glibc, and root certificates.
# The build is native: for several architectures, build on each (see .github/workflows).
ARG BUILD_IMAGE=docker.io/library/rust:1.95-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# `release`, or `dev` for a quick image.
ARG PROFILE=release
# Dependencies first: they are built again only when they change.
COPY Cargo.toml Cargo.lock rust-toolchain.toml build.rs ./
COPY .cargo .cargo
COPY proto proto
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' >src/main.rs \
 && cargo build --locked --profile "$PROFILE" --bin data-sync \
 && rm -r src
COPY migrations migrations
COPY src src
# What `data-sync --version` says; the build context holds no git.
ARG REVISION=unknown
ENV DATA_SYNC_REVISION=${REVISION}
RUN touch src/lib.rs src/main.rs build.rs \
 && cargo build --locked --profile "$PROFILE" --bin data-sync \
 && mkdir -p /out/data \
 && cp "target/$(echo "$PROFILE" | sed s/^dev$/debug/)/data-sync" /out/data-sync \
 && strip --strip-debug /out/data-sync

FROM ${BASE_IMAGE}
ARG REVISION=unknown
ARG VERSION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="data-sync" \
      org.opencontainers.image.description="Keeps small encrypted records of one person in step across devices" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
COPY LICENSE* /usr/share/doc/data-sync/
COPY --from=build /out/data-sync /usr/local/bin/data-sync
# Where SQLite's file lives unless a database is given; mount a volume here to keep it.
COPY --from=build --chown=65532:65532 /out/data /data
ENV SQLITE_DIR_PATH=/data
# Somebody who may do nothing else; see examples/fly for a place that wants another.
ARG RUN_AS=65532:65532
USER ${RUN_AS}
WORKDIR /data
# gRPC, gRPC-Web, admin
EXPOSE 8080 8081 9090
STOPSIGNAL SIGTERM
# Without arguments it serves.
ENTRYPOINT ["/usr/local/bin/data-sync"]
