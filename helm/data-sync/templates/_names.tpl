{{/* Names and labels. */}}

{{- define "data-sync.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters, so that every suffix of ours fits into 63. */}}
{{- define "data-sync.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "data-sync.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "data-sync.selectorLabels" -}}
app.kubernetes.io/name: {{ include "data-sync.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* What selects the pods of the service, and not those of jobs and tests. */}}
{{- define "data-sync.serverLabels" -}}
{{ include "data-sync.selectorLabels" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "data-sync.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "data-sync.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
The metadata of an object. Call with a dict: root, and optionally suffix, name,
namespace, component, labels, annotations.
*/}}
{{- define "data-sync.metadata" -}}
name: {{ .name | default (printf "%s%s" (include "data-sync.fullname" .root) (.suffix | default "")) }}
namespace: {{ .namespace | default .root.Release.Namespace }}
labels:
  {{- include "data-sync.labels" .root | nindent 2 }}
  {{- with .component }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "data-sync.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "data-sync.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "data-sync.migrateServiceAccountName" -}}
{{- if .Values.migrations.serviceAccount.create }}
{{- default (printf "%s-migrate" (include "data-sync.fullname" .)) .Values.migrations.serviceAccount.name }}
{{- else }}
{{- default (include "data-sync.serviceAccountName" .) .Values.migrations.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "data-sync.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "data-sync.replicas" -}}
{{- if kindIs "invalid" .Values.replicaCount }}
{{- ternary 2 1 (eq .Values.store.engine "postgres") }}
{{- else }}
{{- int .Values.replicaCount }}
{{- end }}
{{- end }}

{{/* Whether a Secret of this release holds something. */}}
{{- define "data-sync.makesSecret" -}}
{{- $postgres := eq .Values.store.engine "postgres" }}
{{- if or .Values.auth.ca.certificate (and $postgres (or .Values.store.postgres.url .Values.store.postgres.direct.url)) -}}
true
{{- end }}
{{- end }}

{{- define "data-sync.migrationJob" -}}
{{- if and (eq .Values.store.engine "postgres") (eq .Values.migrations.mode "job") -}}
true
{{- end }}
{{- end }}
