{{/* The model store that every pod sees under /models, and what fills it. */}}

{{- define "argosy.modelVolume" -}}
{{- $cache := .Values.models.cache -}}
- name: models
{{- if eq $cache.kind "claim" }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-models" (include "argosy.fullname" .)) $cache.claim.existingClaim }}
{{- else if eq $cache.kind "hostPath" }}
  hostPath:
    path: {{ required "models.cache.hostPath: the directory of each node that keeps models" $cache.hostPath }}
    type: DirectoryOrCreate
{{- else }}
  emptyDir: {{ toJson $cache.emptyDir }}
{{- end }}
{{- end -}}

{{/* Brings every model of the configuration that has no path of its own. What is there already costs nothing; what another
pod is pulling into the same volume is waited for. Other models are the same container: a new list restarts nothing. Call
with (dict "root" $ "image" IMAGE). */}}
{{- define "argosy.pullContainers" -}}
{{- $root := .root -}}
{{- $pull := $root.Values.models.cache.pull -}}
{{- if $pull.enabled -}}
- name: pull
  image: {{ include "argosy.image" (dict "root" $root "image" .image) }}
  imagePullPolicy: {{ .image.pullPolicy }}
  command: [argosy, pull, --file=/etc/argosy/config/argosy.yaml]
  env:
    {{- include "argosy.env" $root | nindent 4 }}
    {{- if $pull.hubToken.existingSecret }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ $pull.hubToken.existingSecret }}
          key: {{ $pull.hubToken.key }}
    {{- end }}
    {{- with $pull.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  securityContext:
    {{- include "argosy.containerSecurity" list | nindent 4 }}
  resources:
    {{- toYaml $pull.resources | nindent 4 }}
  volumeMounts:
    - name: config
      mountPath: /etc/argosy/config
      readOnly: true
    - name: models
      mountPath: /models
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end -}}

{{/* What every container of ours has in its environment: nothing is written outside of /tmp and its volumes. */}}
{{- define "argosy.env" -}}
- name: HOME
  value: /tmp
- name: ARGOSY_STATE
  value: /tmp/state
- name: HF_HOME
  value: /tmp/hub
{{- end -}}
