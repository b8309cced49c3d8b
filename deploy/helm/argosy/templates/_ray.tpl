{{/* The pods of the Ray cluster, the same under KubeRay and in StatefulSets. Knows commands, ports and devices.

The head's first container is Ray's; the second starts the controller there and watches over it. Both share /tmp, where
Ray keeps its sockets, and see each other's processes. */}}

{{/* Ray without a token is a shell for whoever reaches it, so the token is not an option. */}}
{{- define "argosy.ray.env" -}}
{{- include "argosy.env" . }}
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "argosy.rayTokenSecret" . }}
      key: {{ .Values.ray.token.key }}
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
- name: RAY_worker_niceness
  value: "0"
- name: RAY_ENABLE_UV_RUN_RUNTIME_ENV
  value: "0"
- name: NUMBA_CACHE_DIR
  value: /tmp/kernels
{{- end -}}

{{/* GCS and raylet answer grpc.health.v1 without a token. Call with the port. */}}
{{- define "argosy.ray.probes" -}}
startupProbe:
  grpc: {port: {{ . }}}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  grpc: {port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  grpc: {port: {{ . }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}

{{- define "argosy.ray.mounts" -}}
- name: config
  mountPath: /etc/argosy/config
  readOnly: true
- name: models
  mountPath: /models
  readOnly: true
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- end -}}

{{/* Call with (dict "root" $ "shm" SIZE). */}}
{{- define "argosy.ray.volumes" -}}
- name: config
  configMap:
    name: {{ include "argosy.fullname" .root }}
- name: tmp
  emptyDir: {}
# NCCL, ranks of one host, and Ray's object store meet here; a container's own 64 MiB are too few.
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .shm }}
{{ include "argosy.modelVolume" .root }}
{{- end -}}

{{/* Changes that only a new process sees. The models are not among them: the controller is told of those. */}}
{{- define "argosy.ray.checksum" -}}
{{- pick .Values "ray" "peers" "images" | toJson | sha256sum -}}
{{- end -}}

{{- define "argosy.head.template" -}}
{{- $image := .Values.images.engine -}}
metadata:
  labels:
    {{- include "argosy.selector" (dict "root" . "component" "head") | nindent 4 }}
  annotations:
    checksum/ray: {{ include "argosy.ray.checksum" . }}
spec:
  {{- include "argosy.pullSecrets" . | nindent 2 }}
  serviceAccountName: {{ include "argosy.fullname" . }}-ray
  automountServiceAccountToken: {{ .Values.discovery.enabled }}
  shareProcessNamespace: true
  terminationGracePeriodSeconds: {{ .Values.ray.terminationGracePeriodSeconds }}
  securityContext:
    {{- include "argosy.podSecurity" . | nindent 4 }}
  {{- include "argosy.placement" .Values.ray.head | nindent 2 }}
  initContainers:
    {{- include "argosy.pullContainers" (dict "root" . "image" $image) | nindent 4 }}
  containers:
    - name: ray
      image: {{ include "argosy.image" (dict "root" . "image" $image) }}
      imagePullPolicy: {{ $image.pullPolicy }}
      # No device and no CPU of the head is for ranks.
      command:
        - ray
        - start
        - --head
        - --block
        - --disable-usage-stats
        - --node-ip-address=$(POD_IP)
        - --port={{ .Values.ray.ports.gcs }}
        - --node-manager-port={{ .Values.ray.ports.raylet }}
        - --num-cpus=0
        - --num-gpus=0
        - --object-store-memory={{ int64 .Values.ray.objectStoreBytes }}
        - --include-dashboard={{ .Values.ray.dashboard.enabled }}
        {{- if .Values.ray.dashboard.enabled }}
        - --dashboard-host=0.0.0.0
        - --dashboard-port={{ .Values.ray.ports.dashboard }}
        {{- end }}
      env:
        {{- include "argosy.ray.env" . | nindent 8 }}
        {{- with .Values.ray.head.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: gcs
          containerPort: {{ .Values.ray.ports.gcs }}
        - name: controller
          containerPort: 50052
        - name: metrics
          containerPort: 9464
        {{- if .Values.ray.dashboard.enabled }}
        - name: dashboard
          containerPort: {{ .Values.ray.ports.dashboard }}
        {{- end }}
      {{- include "argosy.ray.probes" .Values.ray.ports.gcs | nindent 6 }}
      securityContext:
        {{- include "argosy.containerSecurity" list | nindent 8 }}
      resources:
        {{- toYaml .Values.ray.head.resources | nindent 8 }}
      volumeMounts:
        {{- include "argosy.ray.mounts" . | nindent 8 }}
        {{- include "argosy.peerMounts" (dict "root" . "pod" "head") | nindent 8 }}
    - name: region
      image: {{ include "argosy.image" (dict "root" . "image" $image) }}
      imagePullPolicy: {{ $image.pullPolicy }}
      command: [argosy, up, --file=/etc/argosy/config/argosy.yaml, --without-router, --keep]
      env:
        {{- include "argosy.ray.env" . | nindent 8 }}
      # The controller runs in a process of Ray's, and is this container's to restart.
      readinessProbe:
        tcpSocket: {port: 50052}
        periodSeconds: 5
      securityContext:
        {{- include "argosy.containerSecurity" list | nindent 8 }}
      resources:
        {{- toYaml .Values.ray.head.regionResources | nindent 8 }}
      volumeMounts:
        {{- include "argosy.ray.mounts" . | nindent 8 }}
        {{- include "argosy.peerMounts" (dict "root" . "pod" "head") | nindent 8 }}
  volumes:
    {{- include "argosy.ray.volumes" (dict "root" . "shm" "1Gi") | nindent 4 }}
    {{- include "argosy.peerVolumes" (dict "root" . "pod" "head") | nindent 4 }}
{{- end -}}

{{/* A pool's own values over `poolDefaults`. Call with (dict "root" $ "pool" POOL). */}}
{{- define "argosy.pool" -}}
{{- merge (deepCopy .pool) (deepCopy .root.Values.poolDefaults) | toJson -}}
{{- end -}}

{{/* Devices and memory of one pod of a pool. A device is requested by its limit. */}}
{{- define "argosy.pool.resources" -}}
{{- $devices := deepCopy .extraResources -}}
{{- if .gpus -}}
{{- $_ := set $devices .gpuResource .gpus -}}
{{- end -}}
{{- if .rdma.count -}}
{{- $_ := set $devices (required "pools: rdma.resource: what the device plugin calls its adapters, such as rdma/ib" .rdma.resource) .rdma.count -}}
{{- end -}}
{{- $cpu := dict "cpu" .cpus "memory" .memory -}}
{{- toYaml (dict "requests" (merge $devices $cpu) "limits" (merge (dict "memory" .memory) $devices)) -}}
{{- end -}}

{{/* Where the pods of a pool go together: all inside one link domain, such as an NVLink switch over several nodes, and as
many as possible in one rack. Both are node labels whose values must be equal. */}}
{{- define "argosy.pool.affinity" -}}
{{- $affinity := default dict .pool.affinity -}}
{{- $selector := dict "matchLabels" (include "argosy.selector" (dict "root" .root "component" (printf "pool-%s" .pool.name)) | fromYaml) -}}
{{- $together := dict -}}
{{- with .pool.linkDomain.nodeLabel -}}
{{- $_ := set $together "requiredDuringSchedulingIgnoredDuringExecution" (list (dict "labelSelector" $selector "topologyKey" .)) -}}
{{- end -}}
{{- with .pool.rack.nodeLabel -}}
{{- $near := dict "weight" 100 "podAffinityTerm" (dict "labelSelector" $selector "topologyKey" .) -}}
{{- $_ := set $together "preferredDuringSchedulingIgnoredDuringExecution" (list $near) -}}
{{- end -}}
{{- if $together -}}
{{- $affinity = merge (dict "podAffinity" $together) $affinity -}}
{{- end -}}
{{- toJson $affinity -}}
{{- end -}}

{{/* The pod of one pool. Call with (dict "root" $ "pool" POOL-WITH-DEFAULTS). */}}
{{- define "argosy.worker.template" -}}
{{- $root := .root -}}
{{- $pool := .pool -}}
{{- $image := merge (deepCopy (default dict $pool.image)) $root.Values.images.engine -}}
metadata:
  labels:
    {{- include "argosy.selector" (dict "root" $root "component" (printf "pool-%s" $pool.name)) | nindent 4 }}
  annotations:
    checksum/ray: {{ include "argosy.ray.checksum" $root }}
    {{- with $pool.networks }}
    k8s.v1.cni.cncf.io/networks: {{ join "," . | quote }}
    {{- end }}
    {{- with $pool.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "argosy.pullSecrets" $root | nindent 2 }}
  serviceAccountName: {{ include "argosy.fullname" $root }}-ray
  automountServiceAccountToken: false
  {{- if $pool.hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  {{- with $pool.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $pool.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  # On SIGTERM Ray drains its node for up to 30 seconds.
  terminationGracePeriodSeconds: {{ add (int $root.Values.ray.terminationGracePeriodSeconds) (ternary (add (int $root.Values.ray.drainSeconds) 15) 0 $root.Values.discovery.enabled) }}
  securityContext:
    {{- include "argosy.podSecurity" $root | nindent 4 }}
    {{- with $pool.supplementalGroups }}
    supplementalGroups: {{ toJson . }}
    {{- end }}
  {{- $affinity := include "argosy.pool.affinity" . | fromJson }}
  {{- include "argosy.placement" (merge (dict "affinity" $affinity) (pick $pool "nodeSelector" "tolerations" "topologySpreadConstraints")) | nindent 2 }}
  initContainers:
    {{- include "argosy.pullContainers" (dict "root" $root "image" $image) | nindent 4 }}
  containers:
    - name: ray
      image: {{ include "argosy.image" (dict "root" $root "image" $image) }}
      imagePullPolicy: {{ $image.pullPolicy }}
      command:
        - ray
        - start
        - --block
        - --disable-usage-stats
        - --address={{ include "argosy.fullname" $root }}-head.{{ $root.Release.Namespace }}.svc:{{ $root.Values.ray.ports.gcs }}
        - --node-ip-address=$(POD_IP)
        - --node-manager-port={{ $root.Values.ray.ports.raylet }}
        - --num-cpus={{ default (ceil $pool.cpus) $pool.slots }}
        - --num-gpus={{ $pool.gpus }}
        - --object-store-memory={{ int64 $root.Values.ray.objectStoreBytes }}
        - --labels={{ include "argosy.pool.labels" $pool }}
      env:
        {{- include "argosy.ray.env" $root | nindent 8 }}
        {{- range $name, $value := $pool.nccl }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
        {{- with $pool.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: raylet
          containerPort: {{ $root.Values.ray.ports.raylet }}
      {{- include "argosy.ray.probes" $root.Values.ray.ports.raylet | nindent 6 }}
      {{- if $root.Values.discovery.enabled }}
      # The controller sees that the pod is to go, and moves what it serves before Ray is told to end.
      lifecycle:
        preStop:
          sleep:
            seconds: {{ add (int $root.Values.ray.drainSeconds) 15 }}
      {{- end }}
      securityContext:
        {{- include "argosy.containerSecurity" (ternary (list "IPC_LOCK") list (gt (int $pool.rdma.count) 0)) | nindent 8 }}
      resources:
        {{- include "argosy.pool.resources" $pool | nindent 8 }}
      volumeMounts:
        {{- include "argosy.ray.mounts" $root | nindent 8 }}
        {{- include "argosy.peerMounts" (dict "root" $root "pod" "worker") | nindent 8 }}
        {{- with $pool.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "argosy.ray.volumes" (dict "root" $root "shm" $pool.sharedMemory) | nindent 4 }}
    {{- include "argosy.peerVolumes" (dict "root" $root "pod" "worker") | nindent 4 }}
    {{- with $pool.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* What placement reads of the node: key=value,key=value as `ray start --labels` takes them. */}}
{{- define "argosy.pool.labels" -}}
{{- $labels := list (printf "argosy.io/pool=%s" .name) -}}
{{- if .linkDomain.nodeLabel -}}
{{- $labels = append $labels (printf "argosy.io/link-domain=%s" .name) -}}
{{- end -}}
{{- range $key, $value := .labels -}}
{{- $labels = append $labels (printf "%s=%s" $key $value) -}}
{{- end -}}
{{- join "," $labels -}}
{{- end -}}
