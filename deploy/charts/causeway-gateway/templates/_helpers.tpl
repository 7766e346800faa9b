{{/* What holds, checked for contradictions. As JSON. */}}
{{- define "gateway.values" -}}
{{- $values := deepCopy .Values -}}
{{- $networks := compact (list .Values.network .Values.global.network) | uniq -}}
{{- if gt (len $networks) 1 -}}
{{- fail (printf "network is %q and global.network is %q: one cluster is in one network, so give one of them" .Values.network .Values.global.network) -}}
{{- end -}}
{{- $space := lookup "v1" "Namespace" "" .Values.istioNamespace -}}
{{- $label := dig "metadata" "labels" "topology.istio.io/network" "" ($space | default dict) -}}
{{- if and $label $networks (ne $label (first $networks)) -}}
{{- fail (printf "network is %q, but namespace %s is labelled topology.istio.io/network=%s: others would look for the entry point of a network that has none; make both equal" (first $networks) .Values.istioNamespace $label) -}}
{{- end -}}
{{- $network := first $networks | default $label -}}
{{- if not $network -}}
{{- fail (printf "network is not set, and namespace %s has no label topology.istio.io/network: set --set network=NAME" .Values.istioNamespace) -}}
{{- end -}}
{{- $_ := set $values "network" $network -}}
{{- $own := .Values.multiCluster.clusterName -}}
{{- $named := .Values.global.multiCluster.clusterName -}}
{{- if and $named (ne $own "Kubernetes") (ne $own $named) -}}
{{- fail (printf "multiCluster.clusterName is %q and global.multiCluster.clusterName is %q: a cluster has one name, so give one of them" $own $named) -}}
{{- end -}}
{{- $_ := set $values "clusterName" (.Values.global.multiCluster.clusterName | default .Values.multiCluster.clusterName) -}}
{{- $image := .Values.image -}}
{{- if not (contains "/" $image) -}}
{{- $variant := ternary "" (printf "-%s" .Values.variant) (empty .Values.variant) -}}
{{- $image = printf "%s/%s:%s%s" .Values.hub .Values.image (toString .Values.tag) $variant -}}
{{- end -}}
{{- $_ := set $values "reference" $image -}}
{{- toJson $values -}}
{{- end -}}

{{/* Name of everything: peers expect this service account. */}}
{{- define "gateway.name" -}}causeway-gateway{{- end -}}

{{- define "gateway.labels" -}}
{{- $values := include "gateway.values" . | fromJson -}}
app: {{ include "gateway.name" . }}
topology.istio.io/network: {{ $values.network | quote }}
app.kubernetes.io/name: {{ include "gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}
