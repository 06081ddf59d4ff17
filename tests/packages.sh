# Which Debian packages steamd needs, and how they get onto the machine. Sourced
# by ./quickstart and ./check.
# shellcheck shell=bash

build_packages=(gcc make autoconf automake libtool pkg-config libsystemd-dev libmsgpack-dev
	libjansson-dev libsqlite3-dev libxxhash-dev libinih-dev libedit-dev libmicrohttpd-dev)
test_packages=(libcmocka-dev strace g++ systemd dbus python3-dbusmock python3 procps util-linux man-db groff-base git xz-utils curl wrk
	python3-venv)

# Prints those of the packages named that are not installed.
missing_packages() {
	local p status
	for p in "$@"; do
		status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null) || status=
		case $status in
		ii*) ;;
		*) echo "$p" ;;
		esac
	done
}

# Installs what is missing of the packages named; asks for root for that alone.
install_packages() {
	local missing root=()
	mapfile -t missing < <(missing_packages "$@")
	[ ${#missing[@]} -eq 0 ] && return 0
	if ! command -v apt-get >/dev/null; then
		echo "this machine has no apt-get; please install the likes of: ${missing[*]}" >&2
		return 1
	fi
	if [ "$(id -u)" -ne 0 ]; then
		if ! command -v sudo >/dev/null; then
			echo "please run as root: apt-get install ${missing[*]}" >&2
			return 1
		fi
		root=(sudo)
	fi
	echo "installing packages (needs root): ${missing[*]}"
	"${root[@]}" apt-get update -qq &&
		"${root[@]}" env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
