"""The limits hold for all the processes and files of a REPL together."""

import os

import pytest

from rlm.errors import ReplDiedError

FORKS = """
    import os, time
    for _ in range(5):
        if os.fork() == 0:
            held = bytearray(100 << 20)
            for at in range(0, len(held), 4096): held[at] = 1
            time.sleep(15); os._exit(0)
    time.sleep(15)
"""


def test_forks_that_hold_too_much_memory_together_end_the_repl(start, launcher):
    repl = start("kept", launcher=launcher, memory_mib=300)
    with pytest.raises(ReplDiedError, match=r"ended: it used more than 300 MiB of memory in all its processes and was"):
        repl.run(FORKS)
    assert repl.run("context").value == "'kept'"


def test_memory_that_forks_share_counts_once(start, launcher):
    repl = start(launcher=launcher, memory_mib=600)
    result = repl.run("""
        import os, time
        held = bytearray(os.urandom(1 << 20)) * 200
        children = [os.fork() for _ in range(5)]
        if 0 in children: time.sleep(60)
        time.sleep(1.5)  # the watch looks several times
        for child in children: os.kill(child, 9)
        "alive"
    """)
    assert result.value == "'alive'"


def test_memory_without_a_process_counts(tool, start, launcher):
    if tool == "landlock":
        pytest.skip("there files are on disk")
    repl = start(launcher=launcher, memory_mib=300, disk_mib=250, file_mib=200)
    with pytest.raises(ReplDiedError, match="300 MiB of memory in all its processes"):
        repl.run("""
            import time
            for place in ("/tmp/a", "/dev/shm/a"):
                with open(place, "wb") as file:
                    for _ in range(190): file.write(bytes(1 << 20))
            time.sleep(15)
        """)


def test_what_sockets_hold_counts(tool, start, launcher):
    if tool == "landlock":
        pytest.skip("there it has no network namespace of its own")
    repl = start(launcher=launcher, memory_mib=256)
    with pytest.raises(ReplDiedError, match="256 MiB of memory in all its processes"):
        repl.run("""
            import socket, time
            pairs = [socket.socketpair() for _ in range(400)]
            time.sleep(15)
        """)


def test_files_without_content_count(tool, start, launcher):
    if tool == "landlock":
        pytest.skip("there files are on disk")
    repl = start(launcher=launcher, memory_mib=256)
    with pytest.raises(ReplDiedError, match="256 MiB of memory in all its processes"):
        repl.run("import subprocess, time; subprocess.run('seq 400000 | xargs touch', shell=True); time.sleep(15)")


def test_files_that_take_too_much_together_are_refused_or_end_the_repl(tool, start, launcher):
    repl = start(launcher=launcher, disk_mib=64, file_mib=32)
    code = """
        import time
        for number in range(4):
            with open(f"f{number}", "wb") as file: file.write(bytes(30 << 20))
        time.sleep(15)
    """
    if tool == "landlock":
        with pytest.raises(ReplDiedError, match="it used more than 64 MiB of disk in all its files and was killed"):
            repl.run(code)
    else:
        assert "No space left on device" in repl.run(code).error
        shared = repl.run("[open(f'/dev/shm/{n}', 'wb').write(bytes(30 << 20)) for n in range(3)]")
        assert "No space left on device" in shared.error
        assert repl.run("import shutil, os; [os.unlink(f'f{n}') for n in range(3)]; open('f', 'w').write('x')").value


def assert_full(tool, repl, code):
    """A cell that wants more than 64 MiB of disk is refused it, or, where the host watches, ends its REPL."""
    if tool == "landlock":
        with pytest.raises(ReplDiedError, match="64 MiB of disk"):
            repl.run(code)
    else:
        assert "No space left on device" in repl.run(code).error


def test_deleted_files_that_are_open_count(tool, start, launcher):
    repl = start(launcher=launcher, disk_mib=64, file_mib=32)
    code = """
        import os, time
        held = []
        for number in range(4):
            held.append(open("f", "wb"))
            os.unlink("f")
            held[-1].write(bytes(30 << 20)); held[-1].flush()
        time.sleep(15)
    """
    assert_full(tool, repl, code)


def test_files_deeper_than_a_path_can_say_count(tool, start, launcher):
    repl = start(launcher=launcher, disk_mib=64, file_mib=32)
    code = """
        import os, time
        for _ in range(60):
            os.mkdir("d" * 200); os.chdir("d" * 200)
        for number in range(4):
            with open(f"f{number}", "wb") as file: file.write(bytes(30 << 20))
        time.sleep(15)
    """
    assert_full(tool, repl, code)


def test_a_fork_bomb_ends_in_an_error_or_with_the_repl(tool, start, launcher):
    repl = start("kept", launcher=launcher, processes=64, cell_timeout_s=10)
    bomb = "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(30); os._exit(0)"
    if os.geteuid() == 0 or tool == "landlock":  # the kernel does not count root's, nor this REPL's by themselves
        with pytest.raises(ReplDiedError, match="it ran more than 64 processes and threads and was killed"):
            repl.run(bomb)
    else:
        assert "Resource temporarily unavailable" in repl.run(bomb).error
    assert repl.run("context").value == "'kept'"


def test_a_repl_within_its_limits_is_left_alone(start, launcher):
    repl = start(launcher=launcher, memory_mib=512, disk_mib=64)
    result = repl.run("""
        import subprocess, time
        held = bytearray(100 << 20)
        with open("f", "wb") as file: file.write(bytes(30 << 20))
        running = [subprocess.Popen(["sleep", "1.2"]) for _ in range(8)]
        [one.wait() for one in running]
    """)
    assert result.error is None
    assert repl.run("len(held)").value == str(100 << 20)


def test_a_program_that_may_not_be_read_is_counted_all_the_same(tool, start, launcher):
    """Nobody may look into the memory of a process that runs one."""
    if tool == "landlock":
        pytest.skip("there no mode can be changed")
    repl = start(launcher=launcher, memory_mib=300)
    with pytest.raises(ReplDiedError, match="300 MiB of memory in all its processes"):
        repl.run("""
            import os, shutil, subprocess, sys, time
            code = "x = bytearray(b'x' * (120 << 20)); import time; time.sleep(15)"
            shutil.copy(os.path.realpath(sys.executable), "python")
            os.chmod("python", 0o111)
            env = os.environ | {"PYTHONHOME": sys.base_prefix}
            running = [subprocess.Popen(["./python", "-c", code], env=env) for _ in range(4)]
            time.sleep(15)
        """)
