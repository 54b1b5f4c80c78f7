#!/bin/sh
# container.sh FOLDER COMMAND...: COMMAND in a root of its own, made of bind mounts on a tmpfs at FOLDER: the system,
# what IMAGE names, and what SLUICE_FOLDERS asks for. Nothing else is there, and the environment is clean. Needs root
# and a mount namespace of its own (unshare --mount).
set -eu
root=$1
shift
mount -t tmpfs none "$root"
IFS=:
for folder in /usr /bin /lib /lib64 /etc /dev /proc /sys ${IMAGE} ${SLUICE_FOLDERS-}; do
  if [ -d "$folder" ]; then
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
  fi
done
exec env -i "PATH=$PATH" HOME=/ chroot "$root" "$@"
