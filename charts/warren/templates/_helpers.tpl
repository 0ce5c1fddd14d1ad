{{- define "warren.labels" -}}
app.kubernetes.io/name: warren
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of pods: nothing that changes with the chart, or its upgrade would restart every pod for nothing. */}}
{{- define "warren.podLabels" -}}
app.kubernetes.io/name: warren
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* warren.image (list . "agent") */}}
{{- define "warren.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.image.repository }}/{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}

{{/* `k8sServiceHost` as a JSON list, whether it is one address, several or none. */}}
{{- define "warren.apiHosts" -}}
{{- $hosts := .Values.k8sServiceHost | default list -}}
{{- if kindIs "string" $hosts }}{{ $hosts = list $hosts }}{{ end -}}
{{- toJson $hosts -}}
{{- end -}}

{{/* The API address as in-cluster clients expect it, where it is not the `kubernetes` Service: they know one only. */}}
{{- define "warren.apiEnv" -}}
{{- with first (include "warren.apiHosts" . | fromJsonArray) }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ $.Values.k8sServicePort | quote }}
{{- end }}
{{- end -}}

{{/* Where kubelet, which stands in the host's network as the pod does, finds what listens at this address. */}}
{{- define "warren.probeAddress" -}}
{{- $port := regexFind "[0-9]+$" . -}}
{{- $host := . | trimSuffix (printf ":%s" $port) | trimPrefix "[" | trimSuffix "]" -}}
host: {{ get (dict "0.0.0.0" "127.0.0.1" "::" "::1") $host | default $host | quote }}
port: {{ $port }}
{{- end -}}

{{- define "warren.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What every container without any privilege has in common. */}}
{{- define "warren.unprivileged" -}}
runAsUser: 65532
runAsGroup: 65532
runAsNonRoot: true
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Annotations of an object that exists only while `helm test` runs; the argument is its place in the order. */}}
{{- define "warren.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
{{- /* The last one stays, whatever came of it, so that `helm test --logs` can show the matrix. */}}
helm.sh/hook-delete-policy: before-hook-creation{{ if lt (int .) 0 }},hook-succeeded,hook-failed{{ end }}
{{- end -}}
