#!/usr/bin/env bash
# Brings migration-proxy up, or up to date, in the namespace of the old service. Nothing moves by it: percentages are those of the
# ConfigMap and of the state. Safe to run twice.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'END'
usage: k8s/deploy.sh [options]
  --trusted-proxies CIDR  addresses of the old Ingress's pods; asked for when it is not given (kubectl get pods -n ingress-nginx -o wide)
  --config FILE           migration.yaml, or a ConfigMap with it; default: the one that the cluster has, else k8s/configmap.yaml
  --namespace NAME        default aibang-1111111111-bbdm
  --image IMAGE           default migration-proxy:0.1.0
  --overlay NAME          one of k8s/overlays; default none
  --new-cidr CIDR         addresses of the new cluster's load balancer, for the NetworkPolicy
  --api-server CIDR       address of the API server, for the NetworkPolicy; default: the endpoints of the Service kubernetes
  --dry-run               show what would be applied and change nothing
END
}

namespace=aibang-1111111111-bbdm image=migration-proxy:0.1.0 trusted='' config='' overlay='' new_cidr='' api_server='' dry_run=''
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry_run=yes && shift && continue ;;
    --help | -h) usage && exit 0 ;;
    --trusted-proxies | --config | --namespace | --image | --overlay | --new-cidr | --api-server) ;;
    *) usage >&2 && exit 2 ;;
    esac
    [ $# -ge 2 ] || { echo "deploy: $1 needs a value" >&2 && exit 2; }
    case $1 in
    --trusted-proxies) trusted=$2 ;;
    --config) config=$2 ;;
    --namespace) namespace=$2 ;;
    --image) image=$2 ;;
    --overlay) overlay=$2 ;;
    --new-cidr) new_cidr=$2 ;;
    --api-server) api_server=$2 ;;
    esac
    shift 2
done

is_cidr() { [[ $1 =~ ^[0-9A-Fa-f.:]+/[0-9]+$ ]]; }
kube() { kubectl --namespace "$namespace" "$@"; }

# The file of the cluster is never overwritten by the shipped example.
has_config=''
if [ -z "$config" ] && [ -z "$overlay" ] && kube get configmap migration-config >/dev/null 2>&1; then
    has_config=yes
fi
if [ -z "$has_config$config" ] && [ -z "$trusted" ]; then
    if [ -t 0 ]; then
        read -rp 'CIDR of the old Ingress pods (listen.trusted_proxies): ' trusted
    fi
    is_cidr "$trusted" || { echo 'deploy: --trusted-proxies CIDR is needed: without it every client looks like the Ingress' >&2 && exit 2; }
fi
for value in "$trusted" "$new_cidr" "$api_server"; do
    [ -z "$value" ] || is_cidr "$value" || { echo "deploy: $value is no CIDR" >&2 && exit 2; }
done
if [ -z "$api_server" ]; then
    address=$(kubectl get endpoints kubernetes --namespace default -o 'jsonpath={.subsets[0].addresses[0].ip}' 2>/dev/null || true)
    [ -z "$address" ] || api_server=$address/32
fi

# The shipped manifests with the values of this cluster in the place of the examples.
manifests() {
    local root=$here
    [ -z "$overlay" ] || root=$here/overlays/$overlay
    kubectl kustomize "$root" |
        sed -e "s|aibang-1111111111-bbdm|$namespace|g" \
            -e "s|image: migration-proxy:0.1.0|image: $image|" \
            -e "s|10\.244\.0\.0/16|${trusted:-10.244.0.0/16}|" \
            -e "s|203\.0\.113\.0/24|${new_cidr:-203.0.113.0/24}|" \
            -e "s|10\.96\.0\.1/32|${api_server:-10.96.0.1/32}|"
}

# Without the ConfigMap of the file when it comes from elsewhere.
chosen() {
    if [ -n "$has_config$config" ]; then
        manifests | awk 'BEGIN { RS = "---\n"; ORS = "---\n" } !/kind: ConfigMap/ || !/name: migration-config/'
    else
        manifests
    fi
}

config_map() {
    if grep -q '^kind: ConfigMap' "$config"; then
        cat "$config"
    else
        kubectl create configmap migration-config --from-file=migration.yaml="$config" --dry-run=client -o yaml
    fi
}

if command -v migration-proxy >/dev/null && [ -n "$config" ]; then
    migration-proxy check "$config" >&2
fi
if [ -n "$dry_run" ]; then
    [ -z "$config" ] || { config_map && echo '---'; }
    chosen
    exit 0
fi
[ -z "$config" ] || config_map | kube apply -f -
chosen | kube apply -f -
kube rollout status deployment/migration-proxy --timeout=180s
echo "deployed; next: k8s/validate.sh --namespace $namespace"
