#!/bin/bash
# steamd under the real systemd: installed, started by socket activation, hung in the middle
# of an answer; then all that is true with any holder of its descriptors (holder.py). Runs in
# namespaces of its own; needs root.
set -u
src=$(readlink -f "${srcdir:-.}")
build=$(readlink -f "${builddir:-.}")
skip_all() {
	echo "skip systemd: $1"
	exit 77
}
[ "$(id -u)" -eq 0 ] || skip_all "needs root to make namespaces"
grep -q '^SANITIZE_CFLAGS = .*fsanitize' "$build/Makefile" &&
	skip_all "the sanitizers' memory maps do not fit the units' sandbox; runs in the optimised build"
[ -x /lib/systemd/systemd ] || skip_all "systemd is not installed"
cgroup=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$cgroup" ] && [ -w "$cgroup" ] || skip_all "no writable cgroup2 mount"
unshare --pid --fork --mount --mount-proc --cgroup --uts --ipc true 2>/dev/null ||
	skip_all "this machine does not allow namespaces"

work=$(mktemp -d /var/tmp/steamd-systemd-XXXXXX)
root=$work/root
pid1=
failed=0
cleanup() {
	[ -n "$pid1" ] && kill -KILL "$pid1" 2>/dev/null
	[ -n "${unshared:-}" ] && wait "$unshared" 2>/dev/null
	rm -rf "$work"
	[ -d "$cgroup/steamd-test-$$" ] && find "$cgroup/steamd-test-$$" -depth -type d -exec rmdir {} + 2>/dev/null
}
trap cleanup EXIT

check() { # NAME COMMAND…
	local name=$1
	shift
	if "$@" >"$work/out" 2>&1; then
		echo "ok $name"
	else
		sed 's/^/    /' "$work/out"
		echo "not ok $name"
		failed=1
	fi
}

# --- install, and lay out what the namespace will see
install=$root/install
mkdir -p "$install" "$root/models"
make -C "$build" install DESTDIR="$install" bindir=/usr/local/bin >"$work/install.log" 2>&1 || {
	tail -n 20 "$work/install.log"
	echo "not ok make install"
	exit 1
}
units=$(find "$install" -path '*/systemd/system/steamd.service' -printf '%h' -quit)
user_units=$(find "$install" -path '*/systemd/user/steamd.service' -printf '%h' -quit)
mkdir -p "$install/units" "$install/user-units"
cp -a "$units/." "$install/units/"
cp -a "$user_units/." "$install/user-units/"
# what the units refer to and every systemd has
for unit in sysinit.target basic.target shutdown.target sockets.target multi-user.target \
	system.slice -.slice default.target local-fs.target umount.target paths.target timers.target slices.target; do
	[ -e "/lib/systemd/system/$unit" ] && cp -aL "/lib/systemd/system/$unit" "$install/units/" 2>/dev/null
done
printf '[Unit]\nDescription=test\nRequires=steamd.socket steamd-exec-cpu.socket\nDefaultDependencies=no\n' \
	>"$install/units/test.target"
for unit in sysinit basic multi-user; do
	printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' $unit >"$install/units/$unit.target"
done
mkdir -p "$install/units/steamd.service.d"
printf '[Service]\nWatchdogSec=3\nStandardError=append:/run/steamd-test/console\n' \
	>"$install/units/steamd.service.d/test.conf"
mkdir -p "$install/units/steamd-exec-cpu@.service.d"
printf '[Service]\nStandardError=append:/run/steamd-test/console\n' >"$install/units/steamd-exec-cpu@.service.d/test.conf"
# what logind would start as user@.service
cat >"$install/units/tester.service" <<-'EOF'
	[Unit]
	DefaultDependencies=no
	[Service]
	Type=notify
	User=tester
	Delegate=yes
	KillMode=mixed
	Environment=HOME=/run/tester XDG_RUNTIME_DIR=/run/tester SYSTEMD_UNIT_PATH=/run/steamd-test/install/user-units
	ExecStart=/lib/systemd/systemd --user --unit=tester.target --log-target=console
	StandardError=append:/run/steamd-test/console
EOF
printf '[Unit]\nDefaultDependencies=no\n' >"$install/user-units/tester.target"
for unit in basic shutdown sockets; do
	printf '[Unit]\nDefaultDependencies=no\n' >"$install/user-units/$unit.target"
done
# the gateway's sockets, on ports that are nobody else's; it leaves soon
port=$((20000 + $$ % 10000))
for at in units/:/run/steamd-http.sock:$port user-units/:/run/tester/steamd-http.sock:$((port + 1)); do
	IFS=: read -r dir socket number <<<"$at"
	mkdir -p "$install/${dir}steamd-gateway.socket.d"
	printf '[Socket]\nListenStream=\nListenStream=127.0.0.1:%s\nListenStream=%s\n' "$number" "$socket" \
		>"$install/${dir}steamd-gateway.socket.d/test.conf"
done
mkdir -p "$install/units/steamd-gateway.service.d"
printf '[Service]\nStandardError=append:/run/steamd-test/console\n' \
	>"$install/units/steamd-gateway.service.d/test.conf"
cp -a "$src/tests/golden/air" "$root/models/air"
chmod -R a+rX "$root" "$work"
mkdir -p "$root/checks"
cp "$src"/tests/e2e/{steamd_e2e,holderchecks}.py "$src/tests/systemd/holder.py" "$root/checks/"
settings=$(cd "$root/checks" && python3 -Bc 'import holderchecks; print(*holderchecks.SETS, sep="\n")')
# where a build with the default prefix reads its settings, and one for a distribution
for etc in "$root/etc" "$install/usr/local/etc"; do
	mkdir -p "$etc/steamd"
	printf '[steamd]\nModel=/run/steamd-test/models/air\n%s\n' "$settings" >"$etc/steamd/steamd.conf"
	printf 'IdleExit=1\nMaxConnectionsPerPeer=2\n' >"$etc/steamd/gateway.conf"
	printf 'alice alice-key-0123456789\n' >"$etc/steamd/gateway-keys"
done

# --- sandboxing score and form of the units, as installed
for unit in steamd.service steamd-exec-cpu@.service steamd-gateway.service; do
	check "exposure of $unit is at most 1.0" \
		systemd-analyze security --offline=yes --threshold=10 --no-pager "$install/units/$unit"
done

# --- boot
mkdir -p "$cgroup/steamd-test-$$"
(
	echo "$BASHPID" >"$cgroup/steamd-test-$$/cgroup.procs"
	export STEAMD_TEST_ROOT=$root
	exec setsid unshare --pid --fork --mount --mount-proc --cgroup --uts --ipc --kill-child \
		bash "$src/tests/systemd/boot.sh"
) >"$work/boot.log" 2>&1 </dev/null &
unshared=$!
for _ in $(seq 200); do
	pid1=$(pgrep -P $unshared 2>/dev/null | head -n 1)
	[ -n "$pid1" ] && [ "$(cat "/proc/$pid1/comm" 2>/dev/null)" = systemd ] && break
	sleep 0.05
done
inside() { nsenter -t "$pid1" -m -u -i -p -C -- env LD_LIBRARY_PATH=/usr/local/lib "$@"; }
wait_for() { # SECONDS COMMAND…
	local n=$(($1 * 20))
	shift
	while [ $n -gt 0 ]; do
		"$@" >/dev/null 2>&1 && return 0
		sleep 0.05
		n=$((n - 1))
	done
	return 1
}
console() { tail -n 40 "$work/boot.log" "$root/console" | sed 's/^/    console: /'; }
wait_for 10 inside systemctl is-active --quiet steamd.socket steamd-exec-cpu.socket || console

check "the installed units verify" inside sh -c \
	'out=$(systemd-analyze verify --man=no /run/units/steamd.socket /run/units/steamd.service \
		/run/units/steamd-exec-cpu.socket /run/units/steamd-exec-cpu@x.service \
		/run/units/steamd-gateway.socket /run/units/steamd-gateway.service 2>&1);
	 echo "$out"; ! echo "$out" | grep -q steamd'
check "the installed user units verify" inside sh -c \
	'out=$(SYSTEMD_UNIT_PATH=/run/steamd-test/install/user-units: systemd-analyze --user verify --man=no \
		/run/steamd-test/install/user-units/steamd.socket /run/steamd-test/install/user-units/steamd.service \
		/run/steamd-test/install/user-units/steamd-gateway.socket \
		/run/steamd-test/install/user-units/steamd-gateway.service 2>&1);
	 echo "$out"; ! echo "$out" | grep -q steamd'

ctl() { inside steamctl --socket /run/steamd.sock "$@"; }
prop() { inside systemctl show -p "$2" --value "$1"; }
executor_pid() { inside systemctl show -p MainPID --value 'steamd-exec-cpu@*.service' | grep -v '^0$' | head -n 1; }
ids='[4675,342,486,302,899,342,1336,2289]'
answer() { echo "$ids" | ctl complete --ids --json --temperature 0 --max-tokens "$1" --ignore-eos | tail -n 1 |
		sed 's/,"usage".*//'; } # ids, text and finish: the times differ
running() { ctl ps --json | grep -q '"state": *"running"'; }

check "socket activation starts the broker and an ask is answered" ctl ask --max-tokens 8 hello
check "the service is active after READY=1" [ "$(prop steamd.service ActiveState)" = active ]
check "the status text says what it does" [ "$(prop steamd.service StatusText)" = "Serving air" ]
check "the executor is a unit of its own" sh -c "[ -n '$(executor_pid)' ]"
check "broker and executor run as users of their own" [ \
	"$(inside ps -eo user:16=,comm= | grep steamd | tr -s ' ' | sort | tr '\n' ,)" = "steamd steamd,steamd-exec steamd-exec-cpu," ]
[ $failed -eq 0 ] || console

# --- the gateway: who has a key is served, it leaves when idle and comes again
gets() { # STATUS of a chat; what curl is told, WHERE
	local wanted=$1 got
	shift
	got=$(${as:-inside} curl --silent --show-error --max-time 30 --write-out '\n%{http_code}' "$@" \
		-H 'Content-Type: application/json' -d '{"messages":[{"role":"user","content":"Hi"}],"max_tokens":2}')
	echo "$got"
	[ "$(tail -n 1 <<<"$got")" = "$wanted" ]
}
chats=/v1/chat/completions
alice='Authorization: Bearer alice-key-0123456789'
check "the gateway's sockets start" inside systemctl start steamd-gateway.socket
check "a key is served over TCP" gets 200 -H "$alice" "127.0.0.1:$port$chats"
check "a key is served over the Unix socket" \
	gets 200 -H "$alice" --unix-socket /run/steamd-http.sock "localhost$chats"
check "no key is not" gets 401 "127.0.0.1:$port$chats"
check "and a wrong one neither" gets 401 -H 'Authorization: Bearer x' "127.0.0.1:$port$chats"
check "the gateway runs as a user of its own" [ "$(inside ps -o user:16= -C steamd-gateway)" = steamd-gateway ]
check "it leaves when idle" wait_for 20 sh -c "[ '$(prop steamd-gateway.service Result)' = success ] &&
	! nsenter -t $pid1 -m -p systemctl is-active --quiet steamd-gateway.service"
check "and comes again" gets 200 -H "$alice" "127.0.0.1:$port$chats"
exec {one}<>"/dev/tcp/127.0.0.1/$port" {two}<>"/dev/tcp/127.0.0.1/$port"
check "a user has so many connections and no more" gets 429 -H "$alice" "127.0.0.1:$port$chats"
as='inside setpriv --reuid tester --regid tester --clear-groups' \
	check "and takes none of another's" gets 200 -H "$alice" "127.0.0.1:$port$chats"
exec {one}>&- {two}>&-
[ $failed -eq 0 ] || console
inside systemctl stop steamd-gateway.socket steamd-gateway.service

n=${STEAMD_TEST_TOKENS:-1500}
want=$(answer "$n")
[ -n "$want" ] || { echo "not ok an undisturbed answer"; console; exit 1; }

disturbed() { # NAME COMMAND…: runs it in the middle of an answer, which must not change
	local name=$1 got
	shift
	answer "$n" >"$work/answer" 2>"$work/answer.err" &
	local asking=$!
	wait_for 10 running || { echo "not ok $name: no answer was running"; failed=1; return; }
	"$@" >"$work/out" 2>&1 || sed 's/^/    /' "$work/out"
	if wait $asking && got=$(cat "$work/answer") && [ "$got" = "$want" ]; then
		echo "ok $name"
	else
		sed 's/^/    /' "$work/answer.err"
		printf '    wanted: %.200s … %s\n    found:  %.200s … %s\n' "$want" "${want: -200}" "${got:-}" "${got: -200}"
		console
		echo "not ok $name"
		failed=1
	fi
}

before=$(executor_pid)
disturbed "a hung broker is killed by the watchdog: the answer goes on" \
	sh -c "kill -STOP $(pgrep -x steamd --ns "$pid1" --nslist pid | head -n 1)"
check "the watchdog did it" sh -c "grep -q 'Watchdog timeout' '$root/console'"
check "the executor lived through it" [ "$(executor_pid)" = "$before" ]
check "systemd restarted the broker for it" [ "$(prop steamd.service NRestarts)" = 1 ]
check "the service is up after all this" [ "$(prop steamd.service ActiveState)" = active ]
quiet=$(prop steamd.service MainPID)
sleep 7
check "a quiet service outlives its watchdog time" [ "$(prop steamd.service MainPID)" = "$quiet" ]
check "systemctl reload works" inside systemctl reload steamd.service


# --- what is particular to it asleep
check "it sleeps, and says so" ctl sleep parked
check "the status text tells of it" sh -c "echo '$(prop steamd.service StatusText)' | grep -q '^Asleep (parked): '"
check "it leaves" ctl sleep gone
executors() { inside systemctl list-units --plain --no-legend 'steamd-exec-cpu@*' | grep -v inactive; }
none() { ! executors; }
check "the executor's unit is gone without a failure" wait_for 10 none
check "and the next answer is the one of before" [ "$(answer "$n")" = "$want" ]
check "the sandbox lets it watch memory pressure" sh -c "$(declare -f inside ctl); pid1=$pid1
	[ ! -e /proc/pressure/memory ] || ctl status | grep -Eq '^  memory_pressure +/'"

# --- as with every holder of its descriptors
inside env -u srcdir -u builddir python3 -B /run/steamd-test/checks/holder.py || { failed=1; console; }
inside systemctl stop steamd.service
check "no executor is left" wait_for 10 none
check "nothing crashed" sh -c "! grep -E 'status=11|SEGV|assert' '$root/console'"

# --- the same for one user, with a service manager of his own
inside sh -c 'systemctl stop steamd.socket steamd-exec-cpu.socket; rm -f /run/steamd.sock /run/steamd-exec-cpu.sock'
user() { inside setpriv --reuid tester --regid tester --clear-groups env XDG_RUNTIME_DIR=/run/tester "$@"; }
if inside systemctl start tester.service; then
	check "a user's sockets start" user systemctl --user start steamd.socket
	check "a user's service is started by his socket and answers" \
		user steamctl --socket /run/tester/steamd.sock ask --max-tokens 8 hello
	check "it is active and serves" [ "$(user systemctl --user is-active steamd.service)
$(user systemctl --user show -p StatusText --value steamd.service)" = "active
Serving air" ]
	check "a user's executor is a unit of its own" sh -c \
		"[ '$(user systemctl --user show -p MainPID --value 'steamd-exec-cpu@*.service' | grep -vc '^0*$')' = 1 ]"
	check "a user's gateway starts" user systemctl --user start steamd-gateway.socket
	as=user check "it serves him, over TCP too" gets 200 "127.0.0.1:$((port + 1))$chats"
	check "and nobody else" gets 403 "127.0.0.1:$((port + 1))$chats"
	[ $failed -eq 0 ] || console
else
	echo "skip user units: systemd --user does not start in this namespace"
	console
fi
exit $failed
