# Run by scripts/with-systemd, in the namespaces of a systemd that has the units of scripts/systemd.
set -exuo pipefail

until_true() {
    local i
    for ((i = 0; i < 600; i++)); do
        ! "$@" || return 0
        sleep 0.1
    done
    return 1
}
# The shell does not end at a `!` that is wrong.
fails() { if "$@"; then return 1; fi; }
is() { [[ $(systemctl is-active "kmsfs@$1") == "$2" ]]; }
mounted() { findmnt --noheadings --types fuse.kmsfs "/mnt/data/$1"; }
pid() { systemctl show --property MainPID --value "kmsfs@$1"; }

mkdir -p /etc/kmsfs/credentials
for tenant in acme globex; do
    mkdir -p "/mnt/data/$tenant"
    kmsfs key generate --output "/etc/kmsfs/$tenant.key"
    kmsfs init "/srv/$tenant" --kek "file:/etc/kmsfs/$tenant.key"
    printf 'volume = "/srv/%s"\nmountpoint = "/mnt/data/%s"\noptions = ["allow_other", "dev", "suid"]\n' "$tenant" "$tenant" >"/etc/kmsfs/$tenant.toml"
done
install -m 600 /dev/stdin /etc/kmsfs/credentials/acme.env <<<'AWS_PROFILE=of-acme'
printf '[credentials]\nfile = "acme.env"\n' >>/etc/kmsfs/acme.toml
systemctl enable kmsfs@acme kmsfs@globex kmsfs.target
systemctl start kmsfs.target
is acme active
is globex active
mounted acme
mounted globex
[[ $(systemctl show --property StatusText --value kmsfs@acme) == unlocked ]]

# In its sandbox it does what a filesystem has to.
cd /mnt/data/acme
echo content >file
mknod null c 1 3
echo x >null
mkfifo fifo
ln -s target link
setfattr --no-dereference --name trusted.x --value y link
chown 65534:65534 file
chmod 4755 file
truncate --size 1M file
fallocate --length 2M file
sync file
cd /
kmsfs lock /mnt/data/acme
[[ $(systemctl show --property StatusText --value kmsfs@acme) == 'locked (operator)' ]]
kmsfs unlock /mnt/data/acme
kmsfs scrub /mnt/data/acme

# Its credentials are its own, and come from systemd.
tr '\0' '\n' <"/proc/$(pid acme)/environ" | grep -x AWS_PROFILE=of-acme
fails grep --text AWS_PROFILE "/proc/$(pid globex)/environ"
fails grep -r of-acme "/proc/$(pid acme)/cmdline"

# A restart waits for nobody who has something open, and the other tenant notices nothing.
other=$(pid globex)
exec 3</mnt/data/acme/file
kmsfs tenant restart --all 3<&-
fails cat <&3
exec 3<&-
[[ $(head -n 1 /mnt/data/acme/file | tr -d '\0') == content ]]
[[ $(pid globex) != "$other" ]]
kmsfs audit show /srv/acme >/tmp/log
fails grep after_crash=true /tmp/log

# A process that is killed: errors at once, and never the directory below; then everything is back.
kill -KILL "$(pid globex)"
until_true is globex active
until_true mounted globex
until_true touch /mnt/data/globex/again
kmsfs audit show /srv/globex | grep after_crash=true

# One that hangs is noticed by the watchdog: see the test of what it is told. Here it is only on.
[[ $(systemctl show --property WatchdogUSec --value kmsfs@acme) == 1min ]]

# Suspended: not started, which is no failure; resumed: as before.
kmsfs tenant suspend acme --reason 'a test'
systemctl restart kmsfs@acme
is acme inactive
fails mounted acme
fails touch /mnt/data/acme/below
kmsfs tenant resume acme
systemctl start kmsfs@acme
mounted acme

# What does not heal by itself is not tried again and again.
systemctl stop kmsfs@globex
fails mounted globex
echo 'revalidat = "1s"' >>/etc/kmsfs/globex.toml
fails systemctl start kmsfs@globex
[[ $(systemctl show --property ExecMainStatus --value kmsfs@globex) == 17 ]]
is globex failed

systemctl stop kmsfs.target
until_true is acme inactive
fails mounted acme
fails pgrep --exact kmsfs
