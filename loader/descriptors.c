/*
 * descriptors.c: which descriptors of this process are the library's, so that a forked child closes its copies of them.
 *
 * A child shares the open files of its parent. One that lives on, to compress a segment say, after the parent was killed would
 * hold the lock on the directory (flock belongs to the open file), the connection, and with that the slot at the server. So
 * pthread_atfork closes in the child, before fork returns there, all that has an entry here.
 *
 * An entry is made after the descriptor was opened, and taken away before it is closed: a number that has one is ours for
 * certain, and never one that the host has got meanwhile. A fork in between leaves a copy of something that holds nothing
 * yet, or no more: a directory is locked after its entry is made, and unlocked before that is taken away.
 *
 * The core makes entries too, directly in the table (capi/descriptors.go).
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <unistd.h>

#include "internal.h"

_Atomic uint64_t rw_descriptors[RW_DESCRIPTOR_WORDS];

static bool in_table(int fd)
{
    return fd >= 0 && fd < RW_DESCRIPTOR_WORDS * 64;
}

int rw_own(int fd)
{
    if (in_table(fd))
        atomic_fetch_or(&rw_descriptors[fd / 64], UINT64_C(1) << fd % 64);
    return fd;
}

void rw_close(int fd)
{
    const uint64_t bit = UINT64_C(1) << (unsigned)fd % 64;
    const int saved = errno;

    if (fd < 0)
        return;
    /* In a forked child it was closed long ago, and may be another's. */
    if (!in_table(fd) ? !rw_forked() : (atomic_fetch_and(&rw_descriptors[fd / 64], ~bit) & bit) != 0)
        close(fd);
    errno = saved;
}

void rw_close_copies(void)
{
    for (int word = 0; word < RW_DESCRIPTOR_WORDS; word++)
    {
        uint64_t bits = atomic_load(&rw_descriptors[word]);

        if (bits == 0)
            continue;
        atomic_store(&rw_descriptors[word], 0);
        for (int bit = 0; bit < 64; bit++)
            if (bits >> bit & 1)
                close(word * 64 + bit);
    }
}
