{{/* Parts of the router's pod. Knows the values; the Deployment puts them together. */}}

{{/* Probes by gRPC. The kubelet speaks no TLS there: then an open port has to do. */}}
{{- define "argosy.router.probes" -}}
{{- if .Values.tls.enabled -}}
startupProbe:
  tcpSocket: {port: grpc}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  tcpSocket: {port: grpc}
  periodSeconds: 10
readinessProbe:
  tcpSocket: {port: grpc}
  periodSeconds: 5
{{- else -}}
startupProbe:
  grpc: {port: 50051}
  periodSeconds: 2
  failureThreshold: 60
# Alive whatever the replicas do: a new router brings no replica back.
livenessProbe:
  grpc: {port: 50051}
  periodSeconds: 10
  timeoutSeconds: 5
# Ready while some model can be asked.
readinessProbe:
  grpc:
    port: 50051
    service: argosy.v1.InferenceService
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
{{- end -}}

{{/* A ledger in SQLite is a file that only one machine can share, so its routers keep together. */}}
{{- define "argosy.router.placement" -}}
{{- $placement := pick .Values.router "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" -}}
{{- $selector := dict "matchLabels" (include "argosy.selector" (dict "root" . "component" "router") | fromYaml) -}}
{{- if eq .Values.ledger.store "sqlite" -}}
{{- $together := list (dict "labelSelector" $selector "topologyKey" "kubernetes.io/hostname") -}}
{{- $affinity := dict "podAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" $together) -}}
{{- $_ := set $placement "affinity" (merge $affinity (default dict .Values.router.affinity)) -}}
{{- else if not .Values.router.topologySpreadConstraints -}}
{{- $spread := list -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" -}}
{{- $spread = append $spread (dict "maxSkew" 1 "topologyKey" . "whenUnsatisfiable" "ScheduleAnyway" "labelSelector" $selector) -}}
{{- end -}}
{{- $_ := set $placement "topologySpreadConstraints" $spread -}}
{{- end -}}
{{- include "argosy.placement" $placement -}}
{{- end -}}

{{- define "argosy.router.ledgerVolumes" -}}
- name: ledger
{{- if eq .Values.ledger.store "sqlite" }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-ledger" (include "argosy.fullname" .)) .Values.ledger.sqlite.existingClaim }}
{{- else }}
  emptyDir: {}
{{- end }}
{{- if eq .Values.ledger.store "postgres" }}
- name: keys
  secret:
    secretName: {{ include "argosy.keysSecret" . }}
    items:
      - key: keys.secret
        path: keys.secret
{{- end }}
{{- end -}}

{{- define "argosy.router.tlsMounts" -}}
{{- if .Values.tls.enabled }}
- name: tls
  mountPath: /etc/argosy/tls
  readOnly: true
{{- if .Values.tls.clientAuthority.existingSecret }}
- name: clients
  mountPath: /etc/argosy/clients
  readOnly: true
{{- end }}
{{- end }}
{{- end -}}

{{- define "argosy.router.tlsVolumes" -}}
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "argosy.tlsSecret" . }}
    defaultMode: 0440
{{- with .Values.tls.clientAuthority.existingSecret }}
- name: clients
  secret:
    secretName: {{ . }}
    items:
      - key: {{ $.Values.tls.clientAuthority.key }}
        path: ca.crt
{{- end }}
{{- end }}
{{- end -}}
