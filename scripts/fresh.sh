#!/usr/bin/env bash
# The commands of the README on a fresh Debian 12: a root of its own with git, python3 and this machine's Rust toolchain,
# nothing else. Needs root; installs debootstrap and, for the machine, qemu.
#
#   scripts/fresh.sh new                  makes a new root with a clone of this repository
#   scripts/fresh.sh run COMMAND...       follows COMMAND in the clone, as `scripts/demo.sh --stop`; makes a missing root
#   scripts/fresh.sh machine COMMAND...   boots a copy of the root with Debian's own kernel, systemd and cgroup v2 under
#                                         qemu, and follows COMMAND there; exits with its status
#
# FRESH names the folder to work in (default: fresh, in the user's cache); 10 GB, 25 GB with the tests. FRESH_KVM=yes
# where the processor can be lent; without it qemu computes some fifty times slower, and the main job needs there
#   scripts/demo.sh --stop --steps 600 --patience 3600 -- --d-model 16 --layers 1 --heads 2 --context 16 --batch 2
set -euo pipefail
cd "$(dirname "$0")/.."
source_tree=$PWD
work=${FRESH:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice/fresh}
base=$work/base.tar root=$work/root image=$work/image.raw
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
[ "$(id -u)" = 0 ] || { echo "needs root, to make and mount the fresh root" >&2; exit 1; }

# Installs, on this machine, the package of each program that is missing: need PROGRAM PACKAGE ...
need() {
    local packages=()
    while [ $# -gt 0 ]; do
        command -v "$1" >/dev/null || packages+=("$2")
        shift 2
    done
    [ ${#packages[@]} = 0 ] && return
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"
}

# The system, as its installer leaves it: with a kernel and systemd, so that it also boots.
make_base() {
    need debootstrap debootstrap
    rm -rf "$root" "$base"
    mkdir -p "$work"
    debootstrap --include=systemd-sysv,dbus,udev,linux-image-amd64,ca-certificates,git,python3,sudo,ssh \
        bookworm "$root" "$mirror"
    tar -C "$root" -cf "$base.part" .
    mv "$base.part" "$base"
}

# What this machine trusts and resolves: a mirror or proxy it stands behind is as much there as here.
settle() {
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
        cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
        chroot "$root" update-ca-certificates >/dev/null
    fi
    printf 'deb %s bookworm main\n' "$mirror" >"$root/etc/apt/sources.list"
    # The toolchain: what `rustup` would install.
    mkdir -p "$root/opt/rust"
    cp -a "$(rustc --print sysroot)/." "$root/opt/rust/"
    rm -rf "$root/opt/rust/share/doc"
    local crates=${CARGO_HOME:-$HOME/.cargo}/config.toml
    [ ! -f "$crates" ] || install -D "$crates" "$root/root/.cargo/config.toml"
    cat >"$root/root/follow" <<'END'
#!/bin/bash
# Runs a command in the clone as a user would.
export HOME=/root PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PIP_CERT=/etc/ssl/certs/ca-certificates.crt
cd /root/sluice && exec "$@"
END
    chmod +x "$root/root/follow"
}

# Runs a command with the fresh root as its own, in namespaces that end with it.
inside() {
    unshare --mount --pid --fork --kill-child bash -euc '
        root=$1; shift
        mount --make-rprivate /
        mount --bind "$root" "$root"
        for each in dev sys; do mount --rbind "/$each" "$root/$each"; done
        mount -t proc proc "$root/proc"
        mkdir -p "$root/old"
        cd "$root"; pivot_root . old
        umount -l /old
        exec env -i TERM=dumb /root/follow "$@"' bash "$root" "$@"
}

# A new root with a clone of what is committed here.
new() {
    [ -f "$base" ] || make_base
    rm -rf "$root"
    mkdir -p "$root"
    tar -C "$root" -xf "$base"
    settle
    git clone --quiet "$source_tree" "$root/root/sluice"
}

run() {
    [ -d "$root/root/sluice" ] || new
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    local begin=$SECONDS status=0
    inside "$@" || status=$?
    echo "followed in $((SECONDS - begin)) s, with status $status: $*"
    return "$status"
}

machine() {
    [ -d "$root/root/sluice" ] || { echo "first: scripts/fresh.sh run scripts/demo.sh --stop" >&2; exit 1; }
    need qemu-system-x86_64 qemu-system-x86 mkfs.ext4 e2fsprogs
    cat >"$root/etc/systemd/system/follow.service" <<END
[Unit]
Description=The command to follow
After=multi-user.target network.target
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/bash -c 'echo "kernel \$(uname -r), control groups: \$(stat -fc %%T /sys/fs/cgroup)"; /root/follow bash /root/command; echo "the command ended with \$?"'
ExecStopPost=/bin/systemctl poweroff --no-block
END
    printf '%q ' "$@" >"$root/root/command"
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -sf ../follow.service "$root/etc/systemd/system/multi-user.target.wants/follow.service"
    # Nobody logs in at the console that the command prints to.
    ln -sf /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
    printf '/dev/vda / ext4 defaults 0 1\n' >"$root/etc/fstab"
    printf '[Match]\nName=en*\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/all.network"
    ln -sf /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/"
    echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
    rm -f "$image"
    # What only speeds up the next build need not fit in there.
    find "$root" -xdev -type d -path '*/debug/incremental' -prune -exec rm -rf {} +
    truncate -s 40G "$image"
    mkfs.ext4 -q -d "$root" "$image"
    local accelerator=tcg,thread=multi
    [ "${FRESH_KVM:-no}" = yes ] && accelerator=kvm
    qemu-system-x86_64 -accel "$accelerator" -cpu max -smp "$(nproc)" -m "${FRESH_MEMORY:-8G}" -nographic -no-reboot \
        -kernel "$(ls "$root"/boot/vmlinuz-* | tail -n 1)" -initrd "$(ls "$root"/boot/initrd.img-* | tail -n 1)" \
        -append "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=no panic=-1" \
        -drive "file=$image,format=raw,if=virtio,cache=unsafe,discard=unmap" \
        -nic user,model=virtio-net-pci | tee "$work/machine.log"
    rm -f "$image"
    grep -q 'the command ended with 0' "$work/machine.log"
}

verb=${1:-}
[ $# = 0 ] || shift
case $verb in
    new) new ;;
    run | machine) [ $# -gt 0 ] || { echo "$verb what?" >&2; exit 2; }; "$verb" "$@" ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
