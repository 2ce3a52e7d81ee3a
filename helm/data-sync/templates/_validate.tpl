{{/* Refuses values that contradict each other; the schema refuses those that are wrong by themselves. */}}
{{- define "data-sync.validate" -}}
{{- $v := .Values }}
{{- $pg := $v.store.postgres }}
{{- if eq $v.store.engine "sqlite" }}
{{-   if $v.autoscaling.enabled }}
{{-     fail "autoscaling.enabled: SQLite bears one replica only; set store.engine=postgres" }}
{{-   end }}
{{-   if gt (int (include "data-sync.replicas" .)) 1 }}
{{-     fail "replicaCount: SQLite bears one replica only; set store.engine=postgres for more" }}
{{-   end }}
{{-   if or $pg.url $pg.existingSecret.name $pg.urlFile }}
{{-     fail "store.postgres: a database is given but store.engine is sqlite; set store.engine=postgres" }}
{{-   end }}
{{-   if $v.migrations.adopt }}
{{-     fail "migrations.adopt: is for Postgres; an SQLite file of the Go server is taken over at the first start" }}
{{-   end }}
{{- else }}
{{-   include "data-sync.oneOf" (dict "what" "store.postgres" "required" true "from" $pg "given" $pg.url) }}
{{-   include "data-sync.oneOf" (dict "what" "store.postgres.direct" "from" $pg.direct "given" $pg.direct.url) }}
{{-   if and $pg.ca.secretName $pg.ca.configMapName }}
{{-     fail "store.postgres.ca: give secretName or configMapName, not both" }}
{{-   end }}
{{-   if and $v.migrations.adopt (ne $v.migrations.mode "job") }}
{{-     fail "migrations.adopt: needs migrations.mode=job" }}
{{-   end }}
{{- end }}
{{- $ca := $v.auth.ca }}
{{- if gt (len (compact (list $ca.certificate $ca.existingSecret.name $ca.file))) 1 }}
{{-   fail "auth.ca: give only one of certificate, existingSecret.name and file" }}
{{- end }}
{{- if and $v.auth.revocation.url (not (or $ca.certificate $ca.existingSecret.name $ca.file)) }}
{{-   fail "auth.revocation.url: there is nothing to revoke without auth.ca" }}
{{- end }}
{{- $monitored := or $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled }}
{{- if and $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled }}
{{-   fail "metrics: serviceMonitor and podMonitor together would scrape every pod twice; enable one" }}
{{- end }}
{{- if $v.autoscaling.enabled }}
{{-   if and $v.autoscaling.targetActiveStreams (not $monitored) (not $v.autoscaling.scrapedElsewhere) }}
{{-     fail "autoscaling.targetActiveStreams: nothing scrapes the pods; enable metrics.serviceMonitor or metrics.podMonitor, or set autoscaling.scrapedElsewhere=true" }}
{{-   end }}
{{-   if not (or $v.autoscaling.targetActiveStreams $v.autoscaling.targetCPUUtilizationPercentage) }}
{{-     fail "autoscaling: give targetCPUUtilizationPercentage or targetActiveStreams" }}
{{-   end }}
{{-   if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) }}
{{-     fail "autoscaling: minReplicas is more than maxReplicas" }}
{{-   end }}
{{-   if and $v.autoscaling.targetCPUUtilizationPercentage (not (dig "requests" "cpu" "" $v.resources)) }}
{{-     fail "autoscaling.targetCPUUtilizationPercentage: is a share of resources.requests.cpu, which is not set" }}
{{-   end }}
{{- end }}
{{- if $v.autoscaling.keda.enabled }}
{{-   if not $v.autoscaling.enabled }}
{{-     fail "autoscaling.keda.enabled: says how, not whether; set autoscaling.enabled=true" }}
{{-   end }}
{{-   if and $v.autoscaling.targetActiveStreams (not $v.autoscaling.keda.prometheusAddress) }}
{{-     fail "autoscaling.keda.prometheusAddress: KEDA asks Prometheus for the streams; where is it?" }}
{{-   end }}
{{- end }}
{{- range $name := list "grpcRoute" "httpRoute" }}
{{-   $route := index $v.gateway $name }}
{{-   if and $route.enabled (not $route.parentRefs) }}
{{-     fail (printf "gateway.%s.parentRefs: names no gateway" $name) }}
{{-   end }}
{{- end }}
{{- range $name := list "grpc" "web" }}
{{-   $ingress := index $v.ingress $name }}
{{-   if and $ingress.enabled (not $ingress.hosts) }}
{{-     fail (printf "ingress.%s.hosts: names no host" $name) }}
{{-   end }}
{{- end }}
{{- end }}

{{/* Fails unless at most one source of a URL is given (exactly one, if required). */}}
{{- define "data-sync.oneOf" -}}
{{- $n := len (compact (list .given .from.existingSecret.name .from.urlFile)) }}
{{- if gt $n 1 }}
{{-   fail (printf "%s: give only one of url, existingSecret.name and urlFile" .what) }}
{{- else if and .required (eq $n 0) }}
{{-   fail (printf "%s: give url, existingSecret.name or urlFile" .what) }}
{{- end }}
{{- end }}
