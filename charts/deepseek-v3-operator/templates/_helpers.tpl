{{- define "dsv3.selectorLabels" -}}
app.kubernetes.io/name: {{ .Release.Name }}
{{- end }}

{{- define "dsv3.labels" -}}
{{ include "dsv3.selectorLabels" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: deepseek-v3-operator
{{- end }}

{{- define "dsv3.metadataLabels" -}}
{{ include "dsv3.labels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "dsv3.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}
