"""Runs inside a sandbox and tries what a hostile program would; prints ``{name: [worked, detail]}`` as JSON.

Arguments: the path of a canary file of the host, and the mark that it holds.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import socket
import struct
import sys
import threading

CANARY, MARK = sys.argv[1], sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
results = {}


def attempt(name, action, worked=lambda result: True):
    """``worked(result)`` says whether the attack did."""
    try:
        result = action()
        results[name] = [bool(worked(result)), repr(result)[:80]]
    except Exception as error:  # noqa: BLE001 - whatever it was, it did not work
        results[name] = [False, f"{type(error).__name__} {str(error)[:60]}"]


def checked(value):
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return value


def call(number, *arguments):
    return checked(libc.syscall(ctypes.c_long(number), *arguments))


def in_child(action):
    """Exit code 0 of a child: the action returned something true."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if action() else 1)
        except BaseException:  # noqa: BLE001 - a child must not return
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def write(path, data=b"1"):
    with open(path, "wb", 0) as file:
        file.write(data)
    return "written"


def read(path, size=64):
    with open(path, "rb", 0) as file:
        return file.read(size)


def read_text(path):
    return read(path, 4096).decode()


os.makedirs("/tmp/m", exist_ok=True)

# --- the host's files and processes
attempt("canary by path", lambda: read(CANARY))
for number in os.listdir("/proc"):
    if number.isdigit():
        attempt(
            f"canary by root of process {'init' if number == '1' else 'any'}",
            lambda n=number: MARK in read_text(f"/proc/{n}/root{CANARY}"),
        )
attempt("canary by cwd of init", lambda: MARK in read_text(f"/proc/1/cwd/../../../..{CANARY}"))
attempt("oldroot", lambda: os.listdir("/oldroot"))
attempt("processes of the host", lambda: sum(p.isdigit() for p in os.listdir("/proc")), lambda n: n > 6)
attempt("environment of init", lambda: read("/proc/1/environ"), bool)
attempt("descriptors of init", lambda: [os.readlink(f"/proc/1/fd/{fd}") for fd in os.listdir("/proc/1/fd")], bool)
attempt("memory of init", lambda: read("/proc/1/mem"))
attempt("memory map of init", lambda: read("/proc/1/maps"), bool)
attempt(
    "inherited descriptors",
    lambda: [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")
    ],
    bool,
)


def escape_chroot():
    os.makedirs("/tmp/jail", exist_ok=True)
    out = os.open("/", os.O_RDONLY)
    os.chroot("/tmp/jail")
    os.fchdir(out)
    for _ in range(60):
        os.chdir("..")
    os.chroot(".")
    return os.path.exists(CANARY)


attempt("out by chroot", lambda: in_child(escape_chroot), bool)


# --- devices
def device(kind, major, minor):
    path = f"/tmp/dev-{kind}-{major}-{minor}"
    os.mknod(path, kind | 0o600, os.makedev(major, minor))
    return read(path, 16)


for name, kind, major, minor in (
    ("disk", 0o60000, 254, 0),
    ("loop", 0o60000, 7, 0),
    ("mem", 0o20000, 1, 1),
    ("kmsg", 0o20000, 1, 11),
):
    attempt(f"make device {name}", lambda k=kind, a=major, b=minor: device(k, a, b))
for path in (
    "/dev/mem",
    "/dev/vda",
    "/dev/sda",
    "/dev/kmsg",
    "/dev/kvm",
    "/dev/fuse",
    "/dev/net/tun",
    "/dev/loop-control",
):
    attempt(f"open {path}", lambda p=path: os.open(p, os.O_RDWR))
attempt(
    "new file in /dev",
    lambda: write("/dev/x"),
    lambda _: os.statvfs("/dev").f_blocks * os.statvfs("/dev").f_frsize > 1 << 20,
)


# --- mounts and namespaces
def mount(source, target, kind, flags=0):
    return checked(libc.mount(source, target, kind, ctypes.c_ulong(flags), b""))


for kind in ("proc", "sysfs", "tmpfs", "cgroup", "cgroup2", "devtmpfs", "overlay", "devpts", "mqueue"):
    attempt(f"mount {kind}", lambda k=kind: mount(k.encode(), b"/tmp/m", k.encode()))
attempt("remount /proc/sys", lambda: mount(b"none", b"/proc/sys", b"", 32 | 4096))
attempt("bind /", lambda: mount(b"/", b"/tmp/m", b"", 4096))
attempt("unmount /proc/sys", lambda: checked(libc.umount2(b"/proc/sys", 2)))
attempt("unmount /dev", lambda: checked(libc.umount2(b"/dev", 2)))
NAMESPACES = {
    "user": 0x10000000,
    "net": 0x40000000,
    "mount": 0x20000,
    "cgroup": 0x2000000,
    "pid": 0x20000000,
    "ipc": 0x8000000,
    "uts": 0x4000000,
    "time": 0x80,
}
for name, flag in NAMESPACES.items():
    attempt(f"unshare {name}", lambda f=flag: in_child(lambda: libc.unshare(f) == 0), bool)

X86 = platform.machine() == "x86_64"
CLONE = 56 if X86 else 220
for name, flag in NAMESPACES.items():
    if name != "time":
        attempt(
            f"clone {name}", lambda f=flag: in_child(lambda: call(CLONE, ctypes.c_ulong(f | 17), 0, 0, 0, 0) >= 0), bool
        )
        attempt(
            f"clone {name}, high bits set",
            lambda f=flag: in_child(lambda: call(CLONE, ctypes.c_ulong(f | 17 | 1 << 40), 0, 0, 0, 0) >= 0),
            bool,
        )


def clone3():
    arguments = struct.pack("11Q", 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
    return call(435, arguments, len(arguments)) >= 0


attempt("clone3 user", lambda: in_child(clone3), bool)
attempt("setns", lambda: in_child(lambda: libc.setns(os.open("/proc/1/ns/mnt", os.O_RDONLY), 0) == 0), bool)

# --- the kernel's settings
for path in (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/modprobe", "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/ns_last_pid", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/sys/fs/cgroup/memory/release_agent",
    "/sys/fs/cgroup/cgroup.procs", "/proc/1/oom_score_adj", "/proc/1/mem", "/sys/class/block/vda/uevent", "/proc/bus/pci/00/00.0",
    "/proc/irq/default_smp_affinity", "/proc/acpi/wakeup", "/.shem-agent",
):  # fmt: skip
    attempt(
        f"write {path}",
        lambda p=path: write(p),
        lambda _, p=path: not p.startswith("/proc/sysrq") or os.stat(p).st_mode & 0o170000 != 0o020000,
    )
for path in (
    "/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/kallsyms", "/proc/sched_debug",
    "/proc/vmallocinfo", "/sys/firmware/acpi/tables/DSDT", "/sys/kernel/debug/sched", "/proc/scsi/scsi", "/proc/interrupts",
    "/proc/kmsg", "/proc/slabinfo",
):  # fmt: skip
    attempt(f"read {path}", lambda p=path: read(p), bool)
attempt("raise a limit", lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)))
attempt("lower own oom_score_adj", lambda: write("/proc/self/oom_score_adj", b"-999"))

# --- system calls: name, x86_64, arm64, arguments
SYSCALLS = (
    ("io_uring_setup", 425, 425, (8, ctypes.create_string_buffer(120))),
    ("bpf", 321, 280, (0, 0, 0)),
    ("perf_event_open", 298, 241, (0, 0, -1, -1, 0)),
    ("keyctl", 250, 219, (0, -3, 0)),
    ("add_key", 248, 217, (b"user", b"a", b"b", 1, -3)),
    ("request_key", 249, 218, (b"user", b"a", 0, -3)),
    ("userfaultfd", 323, 282, (1,)),
    ("open_by_handle_at", 304, 265, (-100, 0, 0)),
    ("init_module", 175, 105, (0, 0, b"")),
    ("finit_module", 313, 273, (0, b"", 0)),
    ("kexec_load", 246, 104, (0, 0, 0, 0)),
    ("reboot", 169, 142, (0xFEE1DEAD, 672274793, 0, 0)),
    ("ptrace", 101, 117, (0, 0, 0, 0)),
    ("process_vm_readv", 310, 270, (1, 0, 0, 0, 0, 0)),
    ("process_vm_writev", 311, 271, (1, 0, 0, 0, 0, 0)),
    ("setns", 308, 268, (0, 0)),
    ("pivot_root", 155, 41, (b".", b".")),
    ("open_tree", 428, 428, (-100, b"/", 1)),
    ("fsopen", 430, 430, (b"tmpfs", 0)),
    ("mount_setattr", 442, 442, (-100, b"/", 0, 0, 0)),
    ("pidfd_getfd", 438, 438, (0, 0, 0)),
    ("personality", 135, 92, (0x0040000,)),
    ("syslog", 103, 116, (3, ctypes.create_string_buffer(100), 100)),
    ("acct", 163, 89, (b"/tmp/acct",)),
    ("swapon", 167, 224, (b"/tmp/x", 0)),
    ("settimeofday", 164, 170, (0, 0)),
    ("clock_settime", 227, 112, (0, 0)),
    ("sethostname", 170, 161, (b"x", 1)),
    ("fanotify_init", 300, 262, (0, 0)),
    ("quotactl", 179, 60, (0, 0, 0, 0)),
    ("name_to_handle_at", 303, 264, (-100, b"/", 0, 0, 0)),
    ("kcmp", 312, 272, (1, 1, 0, 0, 0)),
    ("memfd_secret", 447, 447, (0,)),
    ("vhangup", 153, 58, ()),
    ("move_pages", 279, 239, (1, 0, 0, 0, 0, 0)),
    ("unknown 999", 999, 999, ()),
)
for name, x86, arm, arguments in SYSCALLS:
    attempt(f"syscall {name}", lambda n=x86 if X86 else arm, a=arguments: call(n, *a))
    detail = results[f"syscall {name}"][1]
    filtered = os.strerror(errno.EPERM)[:20] in detail or os.strerror(errno.ENOSYS)[:20] in detail
    results[f"syscall {name} reaches the kernel"] = [not filtered, detail]
if X86:
    attempt("x32 getpid", lambda: in_child(lambda: call(0x40000000 | 39)), bool)

# --- network
FAMILIES = {
    "packet": 17,
    "alg": 38,
    "vsock": 40,
    "key": 15,
    "bluetooth": 31,
    "xdp": 44,
    "tipc": 30,
    "can": 29,
    "rds": 21,
}
for name, family in FAMILIES.items():
    attempt(
        f"socket {name}",
        lambda f=family: socket.socket(f, socket.SOCK_SEQPACKET if f in (38, 21) else socket.SOCK_RAW, 0),
    )
attempt("socket raw icmp", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("socket netfilter", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
attempt("interfaces", lambda: [name for _, name in socket.if_nameindex()], lambda names: set(names) - {"lo"})


def connect(address):
    with socket.create_connection(address, timeout=1):
        return "connected"


for address in (("127.0.0.1", int(sys.argv[3])), ("192.0.2.2", 22), ("169.254.169.254", 80), ("1.1.1.1", 53)):
    attempt(f"connect {address[0]}", lambda a=address: connect(a))
attempt("abstract sockets of the host", lambda: socket.socket(socket.AF_UNIX).connect("\0" + MARK))
attempt("resolve a name", lambda: socket.getaddrinfo("example.org", 443))

# --- what must work
attempt("works: loopback", lambda: socket.create_server(("127.0.0.1", 0)).getsockname())
attempt("works: localhost", lambda: socket.getaddrinfo("localhost", 80))
attempt("works: threads", lambda: threading.Thread(target=int).start())
attempt("works: unix sockets", socket.socketpair)
attempt("works: netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
attempt("works: pty", os.openpty)
attempt("works: kill init is ignored", lambda: os.kill(1, 9))
attempt("works: fifo", lambda: os.mkfifo("/tmp/fifo"))
attempt("works: chown", lambda: os.chown("/tmp/fifo", 0, 0))
print(json.dumps(results))
