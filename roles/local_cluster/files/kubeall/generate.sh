#!/bin/sh
# generate.sh vX.Y.Z FOLDER: writes go.mod and go.sum of kubeall for that Kubernetes version into FOLDER.
# Kubernetes's own go.mod points its staging modules at folders of its repository; here each is named by its published version.
set -eu
version=$1 folder=$2
staging=v0.${version#v1.}
source=$(go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
{
  printf '// Kubernetes'\''s own go.mod, its staging modules named by version. Made by generate.sh; do not edit.\n\n'
  sed -n '/^module /,$p' "$source/go.mod" |
    sed -e 's|^module .*|module headrace.dev/kubeall|' -e "s|=> \./staging/src/\(k8s\.io/[a-z0-9-]*\)\$|=> \1 $staging|"
  printf '\nrequire k8s.io/kubernetes %s\n' "$version"
} >"$folder/go.mod"
cp "$source/go.sum" "$folder/go.sum"
chmod u+w "$folder/go.sum"
