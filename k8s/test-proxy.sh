#!/usr/bin/env bash
# Does a service answer the same on both clusters? Sends safe requests only and moves nothing.
set -euo pipefail

namespace=aibang-1111111111-bbdm dry_run='' service='' paths=()
while [ $# -gt 0 ]; do
    case $1 in
    --namespace) namespace=${2:?--namespace needs a value} && shift 2 ;;
    --path) paths+=(--path "${2:?--path needs a value}") && shift 2 ;;
    --dry-run) dry_run='echo' && shift ;;
    --help | -h) echo 'usage: k8s/test-proxy.sh SERVICE [--path P]... [--namespace NAME] [--dry-run]' && exit 0 ;;
    -*) "$0" --help >&2 && exit 2 ;;
    *) service=$1 && shift ;;
    esac
done
[ -n "$service" ] || { "$0" --help >&2 && exit 2; }
proxy() { $dry_run kubectl --namespace "$namespace" exec deployment/migration-proxy -- /migration-proxy "$@"; }

proxy health
proxy status "$service"
proxy verify "$service" "${paths[@]}"
