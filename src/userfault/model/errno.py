"""Error numbers (include/uapi/asm-generic/errno-base.h): facts of the ABI."""

EHWPOISON = 133
EINTR, ENOENT, ESRCH, EAGAIN, ENOMEM, EFAULT, EBUSY, EEXIST, EINVAL = 4, 2, 3, 11, 12, 14, 16, 17, 22
ENXIO, EBADF = 6, 9
SIGBUS, SIGSEGV = 7, 11
"""What a user access returns, negative, when the signal would kill it."""
