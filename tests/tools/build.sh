#!/usr/bin/env bash
# build.sh FOLDER [full]: what tests need of other projects, from their Go modules, into FOLDER; a second run changes nothing.
#   promtool       checks and tests the alert rules
#   crds/          CRDs of the Prometheus operator and KEDA, which the API server checks the roles' objects against
#   prometheus     what gates of a replacement can measure with: with `full`, for it takes minutes
set -euo pipefail
prometheus=v0.316.0 operator=v0.85.0 keda=v2.21.0
folder=$1
key="$prometheus $operator $keda"
is() { [ "$(cat "$folder/$1" 2>/dev/null || true)" = "$2" ]; }
full=${2:-}
is versions "$key" && { [ "$full" != full ] || is prometheus-version "$prometheus"; } && exit 0
command -v go >/dev/null || { echo "The tests' tools are made with Go, which is not in the PATH: https://go.dev/dl" >&2; exit 1; }
mkdir -p "$folder/crds"
export GOFLAGS=-mod=mod CGO_ENABLED=0
# The service discoveries are most of its code, and neither rules nor targets with fixed addresses need them.
prometheus() { GOBIN=$folder nice -n 10 go install -tags remove_all_sd,netgo -ldflags '-s -w' "github.com/prometheus/prometheus/cmd/$1@$prometheus"; }

if [ "$full" = full ] && ! is prometheus-version "$prometheus"; then
  echo "==> Prometheus $prometheus (some minutes the first time)"
  prometheus prometheus
  echo "$prometheus" >"$folder/prometheus-version"
fi
is versions "$key" && exit 0

echo "==> CRDs of the Prometheus operator $operator and KEDA $keda"
crd() { # MODULE@VERSION PATH
  directory=$(go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  install -m 0644 "$directory/$2" "$folder/crds/"
}
for kind in podmonitors servicemonitors prometheusrules; do
  crd "github.com/prometheus-operator/prometheus-operator@$operator" "example/prometheus-operator-crd/monitoring.coreos.com_$kind.yaml"
done
crd "github.com/kedacore/keda/v2@$keda" config/crd/bases/keda.sh_scaledobjects.yaml

echo "==> promtool $prometheus"
prometheus promtool
echo "$key" >"$folder/versions"
