"""A seccomp filter: the system calls that model-written code has no use for, and an escape may."""

from __future__ import annotations

import ctypes
import errno
import struct

from rlm.local.confined import kernel

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
ALLOW = 0x7FFF0000
LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
X32 = 0x40000000
AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW flag that clone(2) takes
TIOCSTI, TIOCLINUX = 0x5412, 0x541C

# Numbers on x86_64 and on aarch64; None where there is no such call. From 424 on they are the same.
Numbers = tuple[int | None, int | None]
REFUSED: dict[str, Numbers] = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_tree_attr": (467, 467),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "open_by_handle_at": (304, 265),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "syslog": (103, 116),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # Memory that no process is seen to have.
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
CLONE: Numbers = (56, 220)
CLONE3: Numbers = (435, 435)
IOCTL: Numbers = (16, 29)
PRCTL: Numbers = (157, 167)

# A network namespace does not hold the others: AF_VSOCK reaches what a virtual machine runs on.
SOCKET: Numbers = (41, 198)
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6

# Where no namespace keeps others apart. Landlock knows files, not what belongs to them, nor the limits of others.
REFUSED_WITHOUT_NAMESPACES: dict[str, Numbers] = {
    "socket": SOCKET, "setpriority": (141, 140), "ioprio_set": (251, 30), "mq_unlink": (241, 181),
    "shmat": (30, 196), "shmctl": (31, 195), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "inotify_add_watch": (254, 27), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
}  # fmt: skip
OF_OTHERS: dict[str, Numbers] = {  # allowed with 0, which is the caller
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239),
}  # fmt: skip
WITHOUT_EFFECT: dict[str, Numbers] = {  # they seem to succeed: a copied file need not keep its mode
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setsid": (112, 157), "setpgid": (109, 154),  # so that one signal to the group ends them all
}  # fmt: skip

Instruction = tuple[int, int, int, int]


def can_filter() -> bool:
    """Whether we know the numbers of this machine's system calls."""
    return kernel.MACHINE in AUDIT_ARCHITECTURE


def install(*, namespaces: bool) -> None:
    """Refuse those calls from now on, to all that this process starts. Needs no_new_privs. Raises: OSError."""
    code = program(namespaces=namespaces)
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(buffer)))
    kernel.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header))


def program(*, namespaces: bool) -> list[Instruction]:
    """The filter for this machine, in BPF."""
    machine = list(AUDIT_ARCHITECTURE).index(kernel.MACHINE)
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, AUDIT_ARCHITECTURE[kernel.MACHINE]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
    ]

    def answer(numbers: Numbers, value: int) -> None:
        if (number := numbers[machine]) is not None:
            code.extend([(EQUAL, 0, 1, number), (RETURN, 0, 0, value)])

    def refuse_when(numbers: Numbers, argument: int, *tests: Instruction) -> None:
        """Refuse a call when one of the tests of its argument's lower half is true."""
        number = numbers[machine]
        assert number is not None
        code.append((EQUAL, 0, 2 * len(tests) + 2, number))
        code.append((LOAD, 0, 0, ARGUMENTS + 8 * argument))
        for test in tests:
            code.extend([test, (RETURN, 0, 0, ERRNO | errno.EPERM)])
        code.append((RETURN, 0, 0, ALLOW))

    for numbers in REFUSED.values():
        answer(numbers, ERRNO | errno.EPERM)
    answer(CLONE3, ERRNO | errno.ENOSYS)  # its flags cannot be seen; the C library then uses clone
    refuse_when(CLONE, 0, (ANY_BIT, 0, 1, NEW_NAMESPACES))
    refuse_when(PRCTL, 0, (EQUAL, 0, 1, kernel.PR_SET_DUMPABLE))  # the host would not see what it uses
    refuse_when(IOCTL, 1, (EQUAL, 0, 1, TIOCSTI), (EQUAL, 0, 1, TIOCLINUX))
    if not namespaces:
        for numbers in REFUSED_WITHOUT_NAMESPACES.values():
            answer(numbers, ERRNO | errno.EPERM)
        for numbers in OF_OTHERS.values():
            refuse_when(numbers, 0, (EQUAL, 1, 0, 0))
        for numbers in WITHOUT_EFFECT.values():
            answer(numbers, ERRNO)
    number = SOCKET[machine]
    assert number is not None
    code += [(EQUAL, 0, len(FAMILIES) + 2, number), (LOAD, 0, 0, ARGUMENTS)]
    code += [(EQUAL, len(FAMILIES) - at, 0, family) for at, family in enumerate(FAMILIES)]
    code += [(RETURN, 0, 0, ERRNO | errno.EPERM), (RETURN, 0, 0, ALLOW)]
    return code
