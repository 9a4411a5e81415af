#!/usr/bin/env bash
# Brings migration-proxy up, or up to date, in the namespace of the old service. Nothing moves by it: percentages are those of the
# ConfigMap and of the state. Safe to run twice.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'END'
usage: k8s/deploy.sh [options]
  --trusted-proxies CIDR  addresses of the old Ingress's pods (kubectl get pods -n ingress-nginx -o wide), asked for when it is not
                          given; for the shipped example only: your own file has listen.trusted_proxies
  --config FILE           migration.yaml, or a ConfigMap with it; default: the one that the cluster has, else k8s/configmap.yaml
  --namespace NAME        default aibang-1111111111-bbdm
  --image IMAGE           default migration-proxy:0.1.0
  --overlay NAME          one of k8s/overlays; default none
  --dry-run               show what would be applied and change nothing
  --help                  show this
what the NetworkPolicy lets through:
  --new-cidr CIDR         addresses of the new cluster's load balancer, default the example's 203.0.113.0/24, with a warning
  --api-server CIDR       the API server, may be given several times; default: the endpoints of the Service kubernetes
  --dns-cidr CIDR         the node-local DNS cache, default 169.254.20.10/32
  --ingress-namespace NAME     where the old Ingress controller runs, default ingress-nginx
  --monitoring-namespace NAME  where Prometheus runs, default monitoring
END
}

refuse() { echo "deploy: $1" >&2 && exit 2; }
warn() { echo "deploy: warning: $1" >&2; }

namespace=aibang-1111111111-bbdm image=migration-proxy:0.1.0 trusted='' config='' overlay='' dry_run=''
new_cidr=203.0.113.0/24 has_new_cidr='' api_servers=() dns_cidr=169.254.20.10/32 ingress=ingress-nginx monitoring=monitoring
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry_run=yes && shift && continue ;;
    --help | -h) usage && exit 0 ;;
    --trusted-proxies | --config | --namespace | --image | --overlay) ;;
    --new-cidr | --api-server | --dns-cidr | --ingress-namespace | --monitoring-namespace) ;;
    *) usage >&2 && exit 2 ;;
    esac
    [ $# -ge 2 ] || refuse "$1 needs a value"
    case $1 in
    --trusted-proxies) trusted=$2 ;;
    --config) config=$2 ;;
    --namespace) namespace=$2 ;;
    --image) image=$2 ;;
    --overlay) overlay=$2 ;;
    --new-cidr) new_cidr=$2 has_new_cidr=yes ;;
    --api-server) api_servers+=("$2") ;;
    --dns-cidr) dns_cidr=$2 ;;
    --ingress-namespace) ingress=$2 ;;
    --monitoring-namespace) monitoring=$2 ;;
    esac
    shift 2
done

is_cidr() { [[ $1 =~ ^[0-9A-Fa-f.:]+/[0-9]+$ ]]; }
kube() { kubectl --namespace "$namespace" "$@"; }

for name in "$namespace" "$ingress" "$monitoring"; do
    [[ $name =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || refuse "$name is no namespace"
done
for value in "$new_cidr" "$dns_cidr" ${api_servers[@]+"${api_servers[@]}"} ${trusted:+"$trusted"}; do
    is_cidr "$value" || refuse "$value is no CIDR"
done
[[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._:/@-]*$ ]] || refuse "$image is no image"
[ -z "$config" ] || [ -r "$config" ] || refuse "$config cannot be read"
[ -z "$overlay" ] || [ -f "$here/overlays/$overlay/kustomization.yaml" ] || refuse "there is no overlay $overlay"

# The file of the cluster is never overwritten by the shipped example.
has_config=''
if [ -z "$config" ] && [ -z "$overlay" ] && kube get configmap migration-config >/dev/null 2>&1; then
    has_config=yes
fi
if [ -z "$has_config$config$trusted" ]; then
    [ ! -t 0 ] || read -rp 'CIDR of the old Ingress pods (listen.trusted_proxies): ' trusted
    is_cidr "$trusted" || refuse '--trusted-proxies CIDR is needed: without it every client looks like the Ingress'
fi
if [ ${#api_servers[@]} -eq 0 ]; then
    addresses=$(kubectl get endpoints kubernetes --namespace default \
        -o 'jsonpath={.subsets[*].addresses[*].ip}' 2>/dev/null || true)
    for address in $addresses; do
        case $address in
        *:*) api_servers+=("$address/128") ;;
        *) api_servers+=("$address/32") ;;
        esac
    done
fi
# Each of several is a block of its own, as kustomize writes them.
api_server=10.96.0.1/32
for cidr in ${api_servers[@]+"${api_servers[@]}"}; do
    [ "$cidr" != "${api_servers[0]}" ] || { api_server=$cidr && continue; }
    api_server+=$'\\\n    - ipBlock:\\\n        cidr: '$cidr
done

# What stays as in the example is said: it shows only when the first request gets no connection.
if [ -z "$has_new_cidr" ]; then
    warn "without --new-cidr the NetworkPolicy lets the proxy reach new at the example's $new_cidr only"
fi
if [ -n "$trusted" ] && [ -n "$has_config$config$overlay" ]; then
    warn "--trusted-proxies is not used: listen.trusted_proxies is in ${config:-the configuration that is there}"
fi
if [ -n "$config" ]; then
    elsewhere=''
    while read -r backend; do
        case ${backend%\}} in
        *".$namespace:8078" | *".$namespace.svc:8078" | *".$namespace.svc.cluster.local:8078") ;;
        *) elsewhere+=" ${backend%\}}" ;;
        esac
    done < <(sed -n "s/^[^#]*old_backend:[^A-Za-z0-9\$]*\([^]\"', #]*\).*/\1/p" "$config" | sort -u)
    if [ -n "$elsewhere" ]; then
        warn "the NetworkPolicy lets the proxy reach old at port 8078 of namespace $namespace only, and $config names$elsewhere:"
        echo '  change k8s/networkpolicy.yaml, or take migration-proxy generate k8s' >&2
    fi
fi

# The shipped manifests with the values of this cluster in the place of the examples.
manifests() {
    local root=$here
    [ -z "$overlay" ] || root=$here/overlays/$overlay
    kubectl kustomize "$root" |
        sed -e "s|metadata.name: ingress-nginx$|metadata.name: $ingress|" \
            -e "s|metadata.name: monitoring$|metadata.name: $monitoring|" \
            -e "s|aibang-1111111111-bbdm|$namespace|g" \
            -e "s|image: migration-proxy:0.1.0|image: $image|" \
            -e "s|trusted_proxies: \[\"10\.244\.0\.0/16\"\]|trusted_proxies: [\"${trusted:-10.244.0.0/16}\"]|" \
            -e "s|cidr: 10\.96\.0\.1/32|cidr: $api_server|" \
            -e "s|cidr: 169\.254\.20\.10/32|cidr: $dns_cidr|" \
            -e "s|cidr: 203\.0\.113\.0/24|cidr: $new_cidr|"
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
