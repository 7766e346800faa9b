{{/* What holds: the user's values over the profile's over the defaults. As JSON. */}}
{{- define "causeway.values" -}}
{{- $defaults := deepCopy .Values._internal_defaults_do_not_set -}}
{{- $user := omit .Values "_internal_defaults_do_not_set" -}}
{{- $name := $user.profile | default $user.platform | default (dig "global" "platform" "" $user) -}}
{{- $profiles := compact (list $user.profile $user.platform (dig "global" "platform" "" $user)) | uniq -}}
{{- if gt (len $profiles) 1 -}}
{{- fail (printf "profile, platform and global.platform differ: %s; give one of them" (join ", " $profiles)) -}}
{{- end -}}
{{- $profile := dict -}}
{{- if $name -}}
{{- $text := .Files.Get (printf "files/profile-%s.yaml" $name) -}}
{{- if not $text -}}
{{- fail (printf "there is no profile %q: kind, minikube, k3s, k3d, microk8s, gke, eks, aks, openshift, namespaces" $name) -}}
{{- end -}}
{{- $profile = fromYaml $text -}}
{{- end -}}
{{- $values := mustMergeOverwrite $defaults $profile (deepCopy $user) -}}
{{- $networks := compact (list $values.network $values.global.network) | uniq -}}
{{- if gt (len $networks) 1 -}}
{{- fail (printf "network is %q and global.network is %q: one cluster is in one network, so give one of them" $values.network $values.global.network) -}}
{{- end -}}
{{- $clusters := compact (list $values.multiCluster.clusterName $values.global.multiCluster.clusterName) | uniq -}}
{{- if gt (len $clusters) 1 -}}
{{- fail (printf "multiCluster.clusterName and global.multiCluster.clusterName differ: %s" (join ", " $clusters)) -}}
{{- end -}}
{{- $space := lookup "v1" "Namespace" "" $values.istioNamespace -}}
{{- $label := dig "metadata" "labels" "topology.istio.io/network" "" ($space | default dict) -}}
{{- if and $label $networks (ne $label (first $networks)) -}}
{{- fail (printf "network is %q, but namespace %s is labelled topology.istio.io/network=%s: istiod would publish pods of this cluster under that name; make both equal" (first $networks) $values.istioNamespace $label) -}}
{{- end -}}
{{- $_ := set $values "network" (first $networks | default $label | default "") -}}
{{- $_ := set $values "clusterName" (first $clusters | default "Kubernetes") -}}
{{- $_ := set $values "name" ($values.resourceName | default .Release.Name) -}}
{{- $suffix := ternary "" (printf "-%s" $values.revision) (or (empty $values.revision) (eq $values.revision "default")) -}}
{{- $istiod := printf "istiod%s.%s.svc:15012" $suffix $values.istioNamespace -}}
{{- $_ := set $values "istiod" $istiod -}}
{{- $image := $values.image -}}
{{- if not (contains "/" $image) -}}
{{- $variant := ternary "" (printf "-%s" $values.variant) (empty $values.variant) -}}
{{- $image = printf "%s/%s:%s%s" $values.hub $values.image (toString $values.tag) $variant -}}
{{- end -}}
{{- $_ := set $values "reference" $image -}}
{{- toJson $values -}}
{{- end -}}

{{- define "causeway.labels" -}}
app.kubernetes.io/name: causeway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}
