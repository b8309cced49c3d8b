{{/* argosy.yaml as the pods read it: `config` of the values, and what only the chart can know. */}}

{{- define "argosy.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "model_store" "/models" -}}
{{- $_ := set $config "ray" (merge (dict "address" (printf "127.0.0.1:%v" .Values.ray.ports.gcs)) (default dict $config.ray)) -}}
{{- $_ := set $config "controller" (merge (dict "listen" "0.0.0.0:50052") (default dict $config.controller)) -}}
{{- $_ := set $config "router" (merge (include "argosy.config.router" . | fromYaml) (default dict $config.router)) -}}
{{- $_ := set $config "ledger" (merge (include "argosy.config.ledger" . | fromYaml) (default dict $config.ledger)) -}}
{{- $_ := set $config "peers" (include "argosy.config.peers" . | fromYaml) -}}
{{- $_ := set $config "metrics" (dict "controller" "0.0.0.0:9464" "router" "0.0.0.0:9465" "engines" "0.0.0.0:9466") -}}
{{- $_ := set $config "log" (merge (default dict $config.log) (dict "format" "json" "files" false)) -}}
{{- if .Values.discovery.enabled -}}
{{- $_ := set $config "discovery" (dict "kubernetes" (include "argosy.config.discovery" . | fromYaml)) -}}
{{- end -}}
{{- with .Values.regions -}}
{{- $_ := set $config "regions" . -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "argosy.config.router" -}}
listen: 0.0.0.0:50051
{{- if .Values.router.http.enabled }}
http_listen: 0.0.0.0:8080
{{- end }}
{{- if .Values.router.quota.enabled }}
quota_listen: 0.0.0.0:50053
{{- end }}
{{- if .Values.tls.enabled }}
tls:
  certificate: /etc/argosy/tls/tls.crt
  key: /etc/argosy/tls/tls.key
  {{- if .Values.tls.clientAuthority.existingSecret }}
  client_authority: /etc/argosy/clients/ca.crt
  {{- end }}
{{- end }}
{{- end -}}

{{- define "argosy.config.ledger" -}}
store: {{ .Values.ledger.store }}
{{- if ne .Values.ledger.store "memory" }}
# A directory below the volume's root: that one belongs to the group, this one to nobody else.
path: /var/lib/argosy/ledger/ledger.db
{{- end }}
{{- if eq .Values.ledger.store "postgres" }}
url: {{ required "ledger.postgres.url: a ledger in PostgreSQL needs postgresql://user@host/database" .Values.ledger.postgres.url }}
{{- end }}
{{- end -}}

{{- define "argosy.config.peers" -}}
{{- if eq .Values.peers.mode "plain" -}}
plain: anywhere
{{- else -}}
certificate: /etc/argosy/peers/{role}/tls.crt
key: /etc/argosy/peers/{role}/tls.key
authority: /etc/argosy/peers/{role}/ca.crt
{{- end -}}
{{- end -}}

{{- define "argosy.config.discovery" -}}
namespaces: {{ .Values.discovery.namespaces | toJson }}
link_domain_label: {{ .Values.discovery.linkDomainLabel }}
rack_label: {{ .Values.discovery.rackLabel }}
drain_seconds: {{ .Values.ray.drainSeconds }}
{{- end -}}

{{/* Roles that the processes of a pod play among our own. */}}
{{- define "argosy.peerRoles" -}}
{{- $roles := dict "router" (list "router") "head" (list "controller" "operator") "worker" (list "engine" "worker") "apply" (list "operator") -}}
{{- index $roles . | toJson -}}
{{- end -}}

{{/* Call with (dict "root" $ "pod" "router"|"head"|"worker"|"apply"). */}}
{{- define "argosy.peerMounts" -}}
{{- if ne .root.Values.peers.mode "plain" }}
{{- range include "argosy.peerRoles" .pod | fromJsonArray }}
- name: peer-{{ . }}
  mountPath: /etc/argosy/peers/{{ . }}
  readOnly: true
{{- end }}
{{- end }}
{{- end -}}

{{- define "argosy.peerVolumes" -}}
{{- if ne .root.Values.peers.mode "plain" }}
{{- range include "argosy.peerRoles" .pod | fromJsonArray }}
- name: peer-{{ . }}
  secret:
    secretName: {{ include "argosy.peerSecret" (dict "root" $.root "role" .) }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end -}}

{{- define "argosy.peerSecret" -}}
{{- if eq .root.Values.peers.mode "secrets" -}}
{{- printf "%s%s" (required "peers.secretPrefix: what the names of your Secrets have before the role" .root.Values.peers.secretPrefix) .role -}}
{{- else -}}
{{- printf "%s-peer-%s" (include "argosy.fullname" .root) .role -}}
{{- end -}}
{{- end -}}
