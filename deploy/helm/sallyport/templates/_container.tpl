{{- /* What the agent's container and the one that uninstalls have in common. */ -}}
{{- define "sallyport.container" -}}
env:
  - name: SALLYPORT_NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  - name: SALLYPORT_SOURCE
    value: kubernetes
  {{- if not .Values.rbac.gloo }}
  - name: SALLYPORT_GLOO
    value: "off"
  {{- end }}
  - name: SALLYPORT_BPFFS
    value: /host/bpf
  - name: SALLYPORT_CGROUP_ROOT
    value: /host/cgroup
  {{- with .Values.node.kubepods }}
  - name: SALLYPORT_KUBEPODS
    value: {{ . | quote }}
  {{- end }}
  - name: SALLYPORT_RUN_DIR
    value: /run/sallyport
  {{- if .Values.nri.enabled }}
  - name: SALLYPORT_NRI_SOCKET
    value: auto
  - name: SALLYPORT_NRI_TIMEOUT
    value: {{ .Values.nri.timeoutMs | quote }}
  - name: SALLYPORT_NRI_ON_TIMEOUT
    value: {{ .Values.nri.onTimeout | lower }}
  {{- else }}
  - name: SALLYPORT_NRI_SOCKET
    value: "off"
  {{- end }}
  {{- if .Values.startupTaint.enabled }}
  - name: SALLYPORT_STARTUP_TAINT_KEY
    value: {{ .Values.startupTaint.key | quote }}
  {{- end }}
  - name: SALLYPORT_UNKNOWN_PODS
    value: {{ .Values.unknownPods | lower }}
  - name: SALLYPORT_OUTBOUND_POLICY
    value: {{ .Values.outboundPolicy }}
  - name: SALLYPORT_TRUST_DOMAIN
    value: {{ .Values.trustDomain | quote }}
  {{- with .Values.clusterName }}
  - name: SALLYPORT_CLUSTER_NAME
    value: {{ . | quote }}
  {{- end }}
  {{- with .Values.podCIDRs }}
  - name: SALLYPORT_POD_CIDR
    value: {{ join "," . | quote }}
  {{- end }}
  {{- with .Values.nodeLocalDNS }}
  - name: SALLYPORT_NODE_LOCAL_DNS
    value: {{ join "," . | quote }}
  {{- end }}
  - name: SALLYPORT_METRICS_ADDRESS
    value: {{ printf "127.0.0.1:%d" (int .Values.metrics.port) | quote }}
  {{- with .Values.metrics.tls }}
  {{- if .enabled }}
  - name: SALLYPORT_METRICS_TLS_ADDRESS
    value: {{ printf "%s:%d" .bindAddress (int .port) | quote }}
  {{- end }}
  {{- end }}
  - name: SALLYPORT_LOG_FORMAT
    value: {{ .Values.logFormat }}
  - name: RUST_LOG
    value: {{ .Values.logLevel | quote }}
  {{- with .Values.apiServer.host }}
  - name: KUBERNETES_SERVICE_HOST
    value: {{ . | quote }}
  - name: KUBERNETES_SERVICE_PORT
    value: {{ $.Values.apiServer.port | quote }}
  {{- end }}
  {{- if or .Values.policyServer.enabled .Values.metrics.tls.enabled }}
  {{- with .Values.policyServer.spiffe }}
  {{- if .enabled }}
  - name: SPIFFE_ENDPOINT_SOCKET
    value: unix:///run/spiffe/{{ .socketName }}
  {{- else }}
  - name: SALLYPORT_POLICY_CERT_DIR
    value: /etc/sallyport/policy-tls
  {{- end }}
  {{- end }}
  {{- end }}
  {{- if .Values.policyServer.enabled }}
  {{- with .Values.policyServer }}
  - name: SALLYPORT_POLICY_ADDRESS
    value: {{ printf "%s:%d" .bindAddress (int .port) | quote }}
  - name: SALLYPORT_POLICY_TLS_MIN
    value: {{ .tlsMin | quote }}
  - name: SALLYPORT_CLIENT_BINDING
    value: {{ .clientBinding }}
  {{- if .gateways.certDir }}
  - name: SALLYPORT_GATEWAY_CERT_DIR
    value: {{ .gateways.certDir | quote }}
  - name: SALLYPORT_GATEWAY_UPSTREAM_CA
    value: {{ .gateways.upstreamCA | quote }}
  - name: SALLYPORT_GATEWAY_AUTHZ
    value: {{ .gateways.authz }}
  {{- end }}
  {{- end }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  # Root, because capabilities of other users don't outlive the start of the program, and because
  # the BPF file system belongs to root. Of root it can do these three things.
  runAsUser: 0
  runAsGroup: 0
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add:
      {{- include "sallyport.capabilities" . | nindent 6 }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  # Not at /sys/fs/bpf: the AppArmor profile of container runtimes forbids writing there.
  - name: bpffs
    mountPath: /host/bpf
  # Hooks are attached by an open directory; nothing is written.
  - name: cgroup
    mountPath: /host/cgroup
    readOnly: true
  # The lock, the socket of events, the status: written here, read by egressctl on the node.
  - name: run
    mountPath: /run/sallyport
  {{- if .Values.nri.enabled }}
  # The directory, not the socket: a runtime that restarts makes a new one.
  - name: nri
    mountPath: /var/run/nri
    readOnly: true
  {{- if .Values.nri.netnsDir }}
  # Each namespace is a mount, which comes and goes after the agent began.
  - name: netns
    mountPath: {{ .Values.nri.netnsDir | replace "/var/run/" "/run/" }}
    readOnly: true
    mountPropagation: HostToContainer
  {{- end }}
  {{- end }}
  {{- if or .Values.policyServer.enabled .Values.metrics.tls.enabled }}
  {{- if .Values.policyServer.spiffe.enabled }}
  # The directory, as a socket may be made anew.
  - name: spiffe
    mountPath: /run/spiffe
    readOnly: true
  {{- else }}
  # Followed as the Secret changes.
  - name: policy-tls
    mountPath: /etc/sallyport/policy-tls
    readOnly: true
  {{- end }}
  {{- end }}
{{- end }}

{{- define "sallyport.capabilities" -}}
# Loads programs and makes maps.
- BPF
# Attaches to devices and cgroups, asks for pods' devices, reads connection tracking.
- NET_ADMIN
# The verifier follows pointers in the programs only for who has it, and without it programs are
# slowed by mitigations that are for unprivileged ones.
- PERFMON
{{- end }}
