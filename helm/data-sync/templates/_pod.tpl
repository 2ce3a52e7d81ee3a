{{/* The pod of the service, the same for both kinds of workload. */}}

{{/* What every pod of the chart shares. Call with a dict: root, account. */}}
{{- define "data-sync.podCommon" -}}
{{- $v := .root.Values }}
serviceAccountName: {{ .account }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $v.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $v.podSecurityContext | nindent 2 }}
{{- with $v.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $v.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $v.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What every container of the chart shares. */}}
{{- define "data-sync.containerCommon" -}}
image: {{ include "data-sync.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Volumes and mounts of commands that open the store. */}}
{{- define "data-sync.storeVolumes" -}}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 16Mi}
{{- with .Values.store.postgres.ca }}
{{- if and (eq $.Values.store.engine "postgres") (or .secretName .configMapName) }}
- name: database-ca
  {{- if .secretName }}
  secret:
    secretName: {{ .secretName }}
  {{- else }}
  configMap:
    name: {{ .configMapName }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "data-sync.storeMounts" -}}
- name: tmp
  mountPath: /tmp
{{- with .Values.store.postgres.ca }}
{{- if and (eq $.Values.store.engine "postgres") (or .secretName .configMapName) }}
- name: database-ca
  mountPath: /etc/data-sync/database-ca
  readOnly: true
{{- end }}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Over nodes, each version by itself. */}}
{{- define "data-sync.spread" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "data-sync.serverLabels" $ | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}

{{/*
Over zones. Not by a second constraint: where nodes have no zone, the scheduler would then
leave the first one out of account too.
*/}}
{{- define "data-sync.zones" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: topology.kubernetes.io/zone
        labelSelector:
          matchLabels:
            {{- include "data-sync.serverLabels" $ | nindent 12 }}
{{- end }}

{{/* A native gRPC probe. Call with a dict: service, settings. */}}
{{- define "data-sync.probe" -}}
grpc:
  port: 8080
  service: {{ .service }}
{{ toYaml .settings }}
{{- end }}

{{/* metadata and spec of the pod */}}
{{- define "data-sync.pod" -}}
{{- $v := .Values }}
{{- $postgres := eq $v.store.engine "postgres" }}
{{- $secret := include "data-sync.makesSecret" . }}
metadata:
  labels:
    {{- include "data-sync.serverLabels" . | nindent 4 }}
    app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
    {{- with merge (dict) $v.podLabels $v.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or $secret $v.podAnnotations $v.commonAnnotations }}
  annotations:
    {{- if $secret }}
    # A changed Secret makes new pods.
    checksum/secret: {{ include (print $.Template.BasePath "/secret.yaml") . | sha256sum }}
    {{- end }}
    {{- with merge (dict) $v.podAnnotations $v.commonAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  {{- include "data-sync.podCommon" (dict "root" . "account" (include "data-sync.serviceAccountName" .)) | trim | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "data-sync.gracePeriod" . }}
  {{- $spread := and $postgres (kindIs "invalid" $v.topologySpreadConstraints) }}
  {{- $ours := and $spread (not $v.affinity.podAntiAffinity) }}
  {{- $zones := ternary (include "data-sync.zones" . | fromYaml) dict $ours }}
  {{- with merge (dict) $v.affinity $zones }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $spread }}
  topologySpreadConstraints:
    {{- include "data-sync.spread" . | trim | nindent 4 }}
  {{- else }}
  {{- with $v.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with $v.extraInitContainers }}
  initContainers:
    {{- tpl (toYaml .) $ | nindent 4 }}
  {{- end }}
  containers:
    - name: data-sync
      {{- include "data-sync.containerCommon" . | nindent 6 }}
      env:
        {{- include "data-sync.serverEnv" . | trim | nindent 8 }}
        {{- include "data-sync.storeEnv" (dict "root" .) | trim | nindent 8 }}
        {{- with $v.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: grpc, containerPort: 8080, protocol: TCP}
        - {name: grpc-web, containerPort: 8081, protocol: TCP}
        - {name: admin, containerPort: 9090, protocol: TCP}
      startupProbe:
        {{- include "data-sync.probe" (dict "service" "liveness" "settings" $v.startupProbe) | nindent 8 }}
      readinessProbe:
        {{- include "data-sync.probe" (dict "service" "readiness" "settings" $v.readinessProbe) | nindent 8 }}
      livenessProbe:
        {{- include "data-sync.probe" (dict "service" "liveness" "settings" $v.livenessProbe) | nindent 8 }}
      {{- with $v.lifecycle }}
      lifecycle:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        {{- toYaml $v.resources | nindent 8 }}
      terminationMessagePolicy: FallbackToLogsOnError
      volumeMounts:
        {{- include "data-sync.storeMounts" . | nindent 8 }}
        {{- if not $postgres }}
        - name: data
          mountPath: /data
        {{- end }}
    {{- with $v.extraContainers }}
    {{- tpl (toYaml .) $ | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "data-sync.storeVolumes" . | nindent 4 }}
    {{- if not $postgres }}
    - name: data
      {{- with $v.store.sqlite.persistence }}
      {{- if .enabled }}
      persistentVolumeClaim:
        claimName: {{ .existingClaim | default (printf "%s-data" (include "data-sync.fullname" $)) }}
      {{- else }}
      emptyDir: {}
      {{- end }}
      {{- end }}
    {{- end }}
{{- end }}

{{/* What the process takes at most from SIGTERM to its end, and 5 seconds. */}}
{{- define "data-sync.gracePeriod" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}
{{- with .Values.shutdown }}
{{- add .delaySeconds .spreadSeconds .drainSeconds 5 }}
{{- end }}
{{- else }}
{{- int .Values.terminationGracePeriodSeconds }}
{{- end }}
{{- end }}
