{{/* Names, labels, images and the security of every container. Knows no kind of object. */}}

{{- define "argosy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The longest suffix is that of a pod of a pool, so names stay well below 63 characters. */}}
{{- define "argosy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "argosy.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "argosy.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of an object. Call with (dict "root" $ "component" NAME). */}}
{{- define "argosy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{ include "argosy.selector" . }}
{{- end -}}

{{/* What finds the pods of a component; without one, all pods of the release. Never changes in a release's life. */}}
{{- define "argosy.selector" -}}
app.kubernetes.io/name: {{ include "argosy.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* Call with (dict "root" $ "image" .Values.images.router). A digest wins over a tag. */}}
{{- define "argosy.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "argosy.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
# Recursing into a store of terabytes at each start takes long, and would open the ledger's secret to the group.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Call with a list of added capabilities; [] for most. */}}
{{- define "argosy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  {{- with . }}
  add: {{ toJson . }}
  {{- end }}
{{- end -}}

{{- define "argosy.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where pods may go. Call with anything that has nodeSelector, tolerations, affinity, topologySpreadConstraints. */}}
{{- define "argosy.placement" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with index $ $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "argosy.controllerAddress" -}}
{{- printf "%s-controller.%s.svc:50052" (include "argosy.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "argosy.usesKubeRay" -}}
{{- if or (eq .Values.ray.operator "always") (and (eq .Values.ray.operator "auto") (.Capabilities.APIVersions.Has "ray.io/v1")) -}}
true
{{- end -}}
{{- end -}}

{{- define "argosy.tlsSecret" -}}
{{- default (printf "%s-tls" (include "argosy.fullname" .)) .Values.tls.existingSecret -}}
{{- end -}}

{{- define "argosy.rayTokenSecret" -}}
{{- default (printf "%s-ray-token" (include "argosy.fullname" .)) .Values.ray.token.existingSecret -}}
{{- end -}}

{{- define "argosy.keysSecret" -}}
{{- default (printf "%s-keys" (include "argosy.fullname" .)) .Values.ledger.keys.existingSecret -}}
{{- end -}}

{{/* A random value that stays over upgrades: what the cluster has, else a new one. (dict "root" "name" "key") */}}
{{- define "argosy.keptSecret" -}}
{{- $found := lookup "v1" "Secret" .root.Release.Namespace .name -}}
{{- if $found -}}
{{- index $found.data .key -}}
{{- else -}}
{{- randAlphaNum 64 | b64enc -}}
{{- end -}}
{{- end -}}
