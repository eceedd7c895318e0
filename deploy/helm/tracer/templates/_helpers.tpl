{{- define "tracer.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tracer.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "tracer.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "tracer.selector" -}}
app.kubernetes.io/name: tracer
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tracer.labels" -}}
{{ include "tracer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "tracer.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "tracer.port" -}}
{{- regexFind "[0-9]+$" .Values.listen -}}
{{- end -}}

{{- /* true, false, or by what the cluster knows. */ -}}
{{- define "tracer.wanted" -}}
{{- $enabled := index . 1 -}}
{{- if or (eq (toString $enabled) "true") (and (eq (toString $enabled) "auto") ((index . 0).Capabilities.APIVersions.Has (index . 2))) -}}
true
{{- end -}}
{{- end -}}

{{- /* The groups of all files with rules. */ -}}
{{- define "tracer.ruleGroups" -}}
{{- range $path, $_ := .Files.Glob "files/rules/*.yaml" }}
{{- with ($.Files.Get $path | fromYaml) }}
{{- with .groups }}
{{ toYaml . | replace "https://tracer.example/docs/runbooks/" $.Values.runbookUrl }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Is the API server asked? */ -}}
{{- define "tracer.watches" -}}
{{- if has .Values.podSource (list "auto" "kubernetes") -}}
true
{{- end -}}
{{- end -}}
