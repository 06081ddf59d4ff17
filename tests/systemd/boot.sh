#!/bin/bash
# Becomes the real systemd as PID 1 of a namespace of its own: private /tmp, /run,
# /var and /etc, the installed tree in $STEAMD_TEST_ROOT laid over this machine's,
# and only the units in /run/units. Called by test-systemd.sh under unshare(1).
set -eu
root=$STEAMD_TEST_ROOT
mount --make-rprivate /
mkdir -p "$root/etc" "$root/upper" "$root/mnt"
# keep what is needed of the host before its directories are covered
cp -a /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/nsswitch.conf /etc/ld.so.cache /etc/ld.so.conf \
	/etc/ld.so.conf.d /etc/alternatives /etc/systemd /etc/localtime "$root/etc/" 2>/dev/null || true
: >"$root/etc/fstab"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
mkdir -p /mnt
mount --bind "$root" /mnt
for d in /tmp /var/tmp /run /var/log /var/lib; do
	mkdir -p "$d"
	mount -t tmpfs -o mode=0755 tmpfs "$d"
done
chmod 1777 /tmp /var/tmp
mkdir -p /run/steamd-test /var/lib/systemd /run/units
mount --bind /mnt /run/steamd-test
mount --bind /run/steamd-test/etc /etc
[ -d /run/steamd-test/install/usr/local ] && mount --bind /run/steamd-test/install/usr/local /usr/local
cp -a /run/steamd-test/install/units/. /run/units/ 2>/dev/null || true
ldconfig
# the sockets name the users
systemd-sysusers "$(find /run/steamd-test/install -path '*/sysusers.d/steamd.conf' -print -quit)"
# one who has a service manager of his own
printf 'u tester - "a user" /run/tester\n' | systemd-sysusers -
install -d -o tester -g tester -m 0700 /run/tester
install -D -o tester -g tester /etc/steamd/steamd.conf /run/tester/.config/steamd/steamd.conf
chown -R tester: /run/tester
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/systemd
# PID 1 writes to /dev/console: a terminal of this namespace's own, kept in a file
script -qafc 'tty >/run/console-tty; exec sleep infinity' /run/steamd-test/console >/dev/null 2>&1 </dev/null &
for _ in $(seq 100); do
	[ -s /run/console-tty ] && break
	sleep 0.02
done
mount --bind "$(cat /run/console-tty)" /dev/console
# as systemd finds it where it is not in a container: credentials are mounted in a child's namespace
mount --make-rshared /
export container=steamd-test SYSTEMD_UNIT_PATH=/run/units
exec /lib/systemd/systemd --system --unit=test.target --log-target=console --log-level=info --show-status=no
