{{/* Rules that several policies share. */}}

{{/* All of the cluster's own pods: the head and every pool. */}}
{{- define "argosy.network.ray" -}}
podSelector:
  matchLabels:
    {{- include "argosy.selector" (dict "root" .) | nindent 4 }}
  matchExpressions:
    - key: app.kubernetes.io/component
      operator: In
      values:
        - head
        {{- range .Values.pools }}
        - pool-{{ .name }}
        {{- end }}
{{- end -}}

{{- define "argosy.network.dns" -}}
- to:
    - namespaceSelector: {}
      podSelector:
        matchLabels:
          {{- toYaml .Values.networkPolicy.dnsPodLabels | nindent 10 }}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end -}}

{{/* Where models are pulled from: anywhere by HTTPS, but not into private networks. */}}
{{- define "argosy.network.web" -}}
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except: {{ toJson .Values.networkPolicy.privateRanges }}
  ports:
    - {port: 443, protocol: TCP}
{{- end -}}

{{- define "argosy.network.api" -}}
{{- if .Values.discovery.enabled }}
- to:
    {{- range .Values.networkPolicy.apiServerRanges }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  ports:
    - {port: 443, protocol: TCP}
    - {port: 6443, protocol: TCP}
{{- end }}
{{- end -}}

{{/* Routers of other regions call our controller and engines, and ours call theirs. */}}
{{- define "argosy.network.regions" -}}
{{- range .Values.networkPolicy.regionRanges }}
- ipBlock:
    cidr: {{ . }}
{{- end }}
{{- end -}}

{{- define "argosy.network.monitoring" -}}
- from:
    - namespaceSelector:
        matchLabels:
          {{- toYaml .Values.networkPolicy.monitoringNamespaceLabels | nindent 10 }}
{{- end -}}
