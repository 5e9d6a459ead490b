"""Become a command that ends with its parent and has default signal handling: `launch.py PARENT USER GROUP COMMAND…`.

A program, since code between fork and exec can deadlock in a process with threads, such as pytest with torch.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Set the default handling of all signals that are ignored or blocked; on Linux, end when the parent dies."""
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    parent, user, group = map(int, sys.argv[1:4])
    if user != os.getuid():
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    end_with_parent()  # after the change of user, which would undo it
    if os.getppid() != parent:  # it ended before
        sys.exit(1)
    os.execvp(sys.argv[4], sys.argv[4:])
