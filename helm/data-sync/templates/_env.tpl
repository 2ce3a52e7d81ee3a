{{/* Environment of the containers. */}}

{{/* A variable from a Secret. Call with a dict: env, secret, key. */}}
{{- define "data-sync.secretEnv" -}}
- name: {{ .env }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end }}

{{/* A URL from wherever it is given. Call with a dict: root, env, from, key (in our own Secret). */}}
{{- define "data-sync.urlEnv" -}}
{{- if .from.existingSecret.name }}
{{ include "data-sync.secretEnv" (dict "env" .env "secret" .from.existingSecret.name "key" .from.existingSecret.key) }}
{{- else if .from.urlFile }}
- name: {{ .env }}_FILE
  value: {{ .from.urlFile | quote }}
{{- else if .from.url }}
{{ include "data-sync.secretEnv" (dict "env" .env "secret" (include "data-sync.fullname" .root) "key" .key) }}
{{- end }}
{{- end }}

{{/* Variables of the store, for every command that opens it. Call with a dict: root, migrating. */}}
{{- define "data-sync.storeEnv" -}}
{{- $v := .root.Values }}
{{- with $v.store }}
{{- if eq .engine "postgres" }}
{{- if and $.migrating $v.migrations.existingSecret.name }}
{{ include "data-sync.secretEnv" (dict "env" "DATABASE_URL" "secret" $v.migrations.existingSecret.name "key" $v.migrations.existingSecret.key) }}
{{- else }}
{{- include "data-sync.urlEnv" (dict "root" $.root "env" "DATABASE_URL" "from" .postgres "key" "url") }}
{{- include "data-sync.urlEnv" (dict "root" $.root "env" "LISTEN_DATABASE_URL" "from" .postgres.direct "key" "direct-url") }}
{{- end }}
{{- if or .postgres.ca.secretName .postgres.ca.configMapName }}
- name: DATABASE_CA_FILE
  value: /etc/data-sync/database-ca/{{ .postgres.ca.key }}
{{- end }}
- name: DATABASE_POOL_SIZE
  value: {{ .postgres.poolSize | quote }}
- name: DATABASE_WRITERS
  value: {{ .postgres.writers | quote }}
- name: DATABASE_STATEMENT_TIMEOUT
  value: {{ .postgres.statementTimeout | quote }}
- name: DATABASE_CONNECT_TIMEOUT
  value: {{ .postgres.connectTimeout | quote }}
{{- else }}
- name: SQLITE_DIR_PATH
  value: /data
{{- end }}
{{- end }}
- name: LOG_LEVEL
  value: {{ $v.telemetry.logLevel | quote }}
- name: LOG_FORMAT
  value: {{ $v.telemetry.logFormat | quote }}
{{- end }}

{{/* Variables of the service alone. */}}
{{- define "data-sync.serverEnv" -}}
{{- $v := .Values }}
- name: GRPC_LISTEN_ADDRESS
  value: {{ printf "%s:8080" $v.listenHost | quote }}
- name: GRPC_WEB_LISTEN_ADDRESS
  value: {{ printf "%s:8081" $v.listenHost | quote }}
- name: ADMIN_LISTEN_ADDRESS
  value: {{ printf "%s:9090" $v.listenHost | quote }}
- name: CORS_ALLOWED_ORIGINS
  value: {{ join "," $v.web.corsAllowedOrigins | quote }}
- name: GRPC_REFLECTION
  value: {{ $v.grpc.reflection | quote }}
- name: MAX_CONCURRENT_STREAMS
  value: {{ int64 $v.grpc.maxConcurrentStreams | quote }}
- name: MIGRATE
  value: {{ ternary "auto" "wait" (or (eq $v.store.engine "sqlite") (eq $v.migrations.mode "startup")) }}
- name: MAX_USER_RECORDS
  value: {{ int64 $v.store.quotas.records | quote }}
- name: MAX_USER_BYTES
  value: {{ int64 $v.store.quotas.bytes | quote }}
- name: MAX_USER_LOCKS
  value: {{ int64 $v.store.quotas.locks | quote }}
{{- with $v.auth.ca }}
{{- if .existingSecret.name }}
{{ include "data-sync.secretEnv" (dict "env" "CA_CERT" "secret" .existingSecret.name "key" .existingSecret.key) }}
{{- else if .file }}
- name: CA_CERT_FILE
  value: {{ .file | quote }}
{{- else if .certificate }}
{{ include "data-sync.secretEnv" (dict "env" "CA_CERT" "secret" (include "data-sync.fullname" $) "key" "ca-cert") }}
{{- end }}
{{- end }}
{{- with $v.auth.revocation }}
{{- if .url }}
- name: CRL_URL
  value: {{ .url | quote }}
- name: CRL_POLICY
  value: {{ .policy }}
- name: CRL_REFRESH
  value: {{ .refresh | quote }}
{{- end }}
{{- end }}
- name: REQUEST_TIMEOUT
  value: {{ $v.limits.requestTimeout | quote }}
- name: STREAM_MAX_AGE
  value: {{ $v.limits.streamMaxAge | quote }}
- name: CONNECTION_MAX_AGE
  value: {{ $v.limits.connectionMaxAge | quote }}
- name: MAX_CONNECTIONS
  value: {{ int64 $v.limits.maxConnections | quote }}
- name: MAX_CONNECTIONS_PER_ADDRESS
  value: {{ int64 $v.limits.maxConnectionsPerAddress | quote }}
{{- with $v.telemetry.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: TRACE_SAMPLE_RATIO
  value: {{ $v.telemetry.traceSampleRatio | quote }}
{{- end }}
- name: SHUTDOWN_DELAY
  value: {{ printf "%ds" (int $v.shutdown.delaySeconds) }}
- name: SHUTDOWN_SPREAD
  value: {{ printf "%ds" (int $v.shutdown.spreadSeconds) }}
- name: SHUTDOWN_DRAIN
  value: {{ printf "%ds" (int $v.shutdown.drainSeconds) }}
{{- end }}
