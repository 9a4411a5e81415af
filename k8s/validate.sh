#!/usr/bin/env bash
# Is what runs in the cluster as it should be? The proxy's own examination does most of it. Changes nothing.
set -euo pipefail

namespace=aibang-1111111111-bbdm dry_run=''
while [ $# -gt 0 ]; do
    case $1 in
    --namespace) namespace=${2:?--namespace needs a value} && shift 2 ;;
    --dry-run) dry_run='echo' && shift ;;
    --help | -h) echo 'usage: k8s/validate.sh [--namespace NAME] [--dry-run]' && exit 0 ;;
    *) "$0" --help >&2 && exit 2 ;;
    esac
done
# Called by step.
# shellcheck disable=SC2329
kube() { $dry_run kubectl --namespace "$namespace" "$@"; }

failed=0
step() {
    local what=$1
    shift
    printf '== %s\n' "$what"
    "$@" || { failed=1 && printf 'failed: %s\n' "$what" >&2; }
}

step 'the Deployment is complete' kube rollout status deployment/migration-proxy --timeout=60s
step 'the objects are there' kube get service/migration-proxy service/migration-proxy-headless configmap/migration-config \
    configmap/migration-state poddisruptionbudget/migration-proxy networkpolicy/migration-proxy
step 'the replicas may change the state, and nothing else' kube auth can-i patch configmaps/migration-state \
    --as "system:serviceaccount:$namespace:migration-proxy"
step 'names, connections, certificates, file' kube exec deployment/migration-proxy -- /migration-proxy doctor
step 'the replicas agree' kube exec deployment/migration-proxy -- /migration-proxy status --strict
exit "$failed"
