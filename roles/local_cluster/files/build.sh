#!/bin/sh
# build.sh COMPONENT VERSION FOLDER: builds one component of the local cluster from its Go module (the pause program from C).
# The result appears in FOLDER at once and whole, or not at all.
set -eu
component=$1 version=$2 folder=$3
sources=$(cd "$(dirname "$0")" && pwd)
new=$folder.new.$$
trap 'rm -rf "$new"' EXIT
mkdir -p "$new/work"

export CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false"
strip="-s -w"

# Kubernetes's programs say their version by variables that are set when they are linked. The date is fixed: the same sources, the same bytes.
kubernetes_version() {
  minor=${version#v1.}
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf ' -X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s' "$package" "$version" "$package" "$package" "${minor%%.*}"
    printf ' -X %s.gitCommit= -X %s.gitTreeState=archive -X %s.buildDate=1970-01-01T00:00:00Z' "$package" "$package" "$package"
  done
}

# The committed go.mod is for one version; for another it is made anew.
kubeall() {
  cp -r "$sources/kubeall/." "$new/work"
  cd "$new/work"
  if ! grep -q "^require k8s.io/kubernetes $version\$" go.mod; then
    ./generate.sh "$version" .
    GOFLAGS="-mod=mod -buildvcs=false"
  fi
}

module_folder() {
  go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}

case $component in
kubernetes)
  kubeall
  go build -trimpath -ldflags "$strip$(kubernetes_version)" -o "$new/kubeall" ./cmd/kubeall
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
    ln -s kubeall "$new/$name"
  done
  ;;
load-balancer)
  kubeall
  go build -trimpath -ldflags "$strip" -o "$new/local-load-balancer" ./cmd/local-load-balancer
  ;;
coredns)
  cp -r "$sources/coredns/." "$new/work"
  cd "$new/work"
  if ! grep -q "^require github.com/coredns/coredns $version\$" go.mod; then
    GOFLAGS="-mod=mod -buildvcs=false"
    go get "github.com/coredns/coredns@$version"
  fi
  go build -trimpath -ldflags "$strip" -o "$new/coredns" .
  ;;
helm)
  cd "$new/work"
  GOFLAGS= GOBIN=$new go install -trimpath -ldflags "$strip -X helm.sh/helm/v3/internal/version.version=$version" "helm.sh/helm/v3/cmd/helm@$version"
  ;;
envoy-gateway)
  cd "$new/work"
  package=github.com/envoyproxy/gateway/internal/cmd/version
  GOFLAGS= GOBIN=$new go install -trimpath -ldflags "$strip -X $package.envoyGatewayVersion=$version" "github.com/envoyproxy/gateway/cmd/envoy-gateway@$version"
  # The module holds the chart as its makers keep it: version and image are put in at release.
  charts=$(module_folder "github.com/envoyproxy/gateway@$version")/charts/gateway-helm
  mkdir -p "$new/charts" "$new/crds"
  cp -r "$charts" "$new/charts/gateway-helm"
  chmod -R u+w "$new/charts"
  cd "$new/charts/gateway-helm"
  # shellcheck disable=SC2016  # the variables are the template's
  sed -e "s|\${GatewayImage}|docker.io/envoyproxy/gateway:$version|" -e 's|${GatewayImagePullPolicy}|IfNotPresent|' values.tmpl.yaml >values.yaml
  rm values.tmpl.yaml
  sed -i -e "s|^version: .*|version: ${version#v}|" -e "s|^appVersion: .*|appVersion: $version|" Chart.yaml
  cp -r charts/crds/crds/generated "$new/crds/envoy-gateway"
  mkdir "$new/crds/gateway-api"
  cp charts/crds/crds/gatewayapi-crds.yaml "$new/crds/gateway-api/"
  ;;
pause)
  gcc -Os -static -s -o "$new/pause" "$sources/pause.c"
  ;;
*)
  echo "build.sh: no such component: $component" >&2
  exit 2
  ;;
esac

rm -rf "$new/work"
# Another run may have been faster; then its result stays.
mv -T "$new" "$folder" 2>/dev/null || [ -d "$folder" ]
