#!/usr/bin/env bash
# The two commands of the README on a fresh Debian 12: a root of its own with git, python3 and this machine's Rust
# toolchain, nothing else. Needs root; installs debootstrap and, for the machine, qemu.
#
#   scripts/fresh.sh run demo|test       clones this repository into a fresh root and follows the command there
#   scripts/fresh.sh machine COMMAND...  boots what `run` left, with Debian's own kernel, systemd and cgroup v2 under
#                                        qemu, and runs COMMAND in the clone (the main job, if there is none)
#
# FRESH names the folder to work in (default: fresh, in the user's cache). `run` begins with a new root, but for
# `run test` after `run demo`: both commands are for one machine.
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
        mount -t tmpfs tmpfs "$root/tmp"
        mkdir -p "$root/old"
        cd "$root"; pivot_root . old
        umount -l /old
        exec env -i /root/follow "$@"' bash "$root" "$@"
}

run() {
    [ -f "$base" ] || make_base
    if [ "$1" = demo ] || [ ! -d "$root/root/sluice" ]; then
        rm -rf "$root"
        mkdir -p "$root"
        tar -C "$root" -xf "$base"
        settle
        git clone --quiet "$source_tree" "$root/root/sluice"
    fi
    case $1 in
        demo) inside bash -c 'time scripts/demo.sh --stop' ;;
        test) inside bash -c 'time scripts/test.sh' ;;
    esac
}

machine() {
    [ -d "$root/root/sluice" ] || { echo "first: scripts/fresh.sh run demo" >&2; exit 1; }
    need qemu-system-x86_64 qemu-system-x86 mkfs.ext4 e2fsprogs
    local command=${*:-scripts/demo.sh}
    cat >"$root/etc/systemd/system/follow.service" <<END
[Unit]
Description=The command to follow
After=multi-user.target network.target
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/bash -c 'echo "kernel \$(uname -r), control groups: \$(stat -fc %%T /sys/fs/cgroup)"; /root/follow bash -c "\$(cat /root/command)"; echo "the command ended with \$?"'
ExecStopPost=/bin/systemctl poweroff --no-block
END
    printf '%s\n' "$command" >"$root/root/command"
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -sf ../follow.service "$root/etc/systemd/system/multi-user.target.wants/follow.service"
    printf '/dev/vda / ext4 defaults 0 1\n' >"$root/etc/fstab"
    printf '[Match]\nName=en*\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/all.network"
    ln -sf /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/"
    echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
    rm -f "$image"
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

case ${1:-} in
    run) [[ ${2:-} =~ ^(demo|test)$ ]] || { echo "run what? demo or test" >&2; exit 2; }; run "$2" ;;
    machine) shift; machine "$@" ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
