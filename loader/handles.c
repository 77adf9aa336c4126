/*
 * handles.c: the table of handles.
 *
 * A receivewal * is a number in disguise: a generation, an index into a static table and a tag, in a range where no user
 * space address lies. A pointer of the host, or a handle detached long ago, is recognised by its bits; nothing is
 * dereferenced but the table, which never goes away.
 *
 *     63         50 49                        18 17         4 3   0
 *     +------------+----------------------------+------------+-----+
 *     |    MARK    |         generation         |   index    | TAG |
 *     +------------+----------------------------+------------+-----+
 *
 * One 64-bit word per slot holds all that decides whether a call may enter, so that each decision is one
 * compare-and-swap, also in a signal handler:
 *
 *     63                       32   31     30   29            0
 *     +---------------------------+------+------+---------------+
 *     |        generation         | open | busy |     users     |
 *     +---------------------------+------+------+---------------+
 *
 * busy is the one call that holds the handle. users are the calls that may come at any time (stop, get_progress): they
 * only read what was set before the slot was opened. A slot is used again only once it is not open, not busy and has no users.
 */
#define _POSIX_C_SOURCE 200809L
#include <sched.h>
#include <time.h>

#include "internal.h"

#define SLOTS 16384 /* 14 bits */
#define TAG UINT64_C(0xd)
#define MARK (UINT64_C(0x2a5d) << 50) /* no canonical user space address on x86-64, aarch64, ppc64le, s390x, riscv64 */
#define MARK_MASK (UINT64_C(0x3fff) << 50)

#define OPEN (UINT64_C(1) << 31)
#define BUSY (UINT64_C(1) << 30)
#define USERS (BUSY - 1)
#define GENERATION(word) ((uint32_t)((word) >> 32))

_Static_assert(sizeof(void *) == 8, "a handle needs 64 bits");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "receivewal_stop must be lock-free");

static rw_slot slots[SLOTS];
static _Atomic uint32_t next_slot; /* where to look first: a slot rests for a while before it is used again */
static _Atomic uint32_t in_use = 64; /* so many slots are gone round; doubled when all are taken. Memory of others is not touched */

static receivewal *encode(const rw_slot *slot, uint32_t generation)
{
    uint64_t index = (uint64_t)(slot - slots);

    return (receivewal *)(uintptr_t)(MARK | (uint64_t)generation << 18 | index << 4 | TAG);
}

static bool decode(receivewal *rw, rw_slot **slot, uint32_t *generation)
{
    uint64_t bits = (uintptr_t)rw;

    if ((bits & MARK_MASK) != MARK || (bits & 0xf) != TAG)
        return false;
    *slot = &slots[bits >> 4 & (SLOTS - 1)];
    *generation = (uint32_t)(bits >> 18);
    return true;
}

/* OK if the word is that of the open handle. A generation that was never given out is no handle of ours. */
static receivewal_status judge(uint64_t word, uint32_t generation)
{
    if (generation == 0 || generation > GENERATION(word))
        return RECEIVEWAL_ERR_HANDLE;
    if (generation < GENERATION(word) || !(word & OPEN))
        return RECEIVEWAL_ERR_CLOSED;
    return RECEIVEWAL_OK;
}

static bool take(rw_slot *slot)
{
    uint64_t word = atomic_load(&slot->word);

    /* The last generation stays closed for ever rather than wrap: a stale handle must never fit again. */
    if ((word & (OPEN | BUSY | USERS)) != 0 || GENERATION(word) == UINT32_MAX ||
        !atomic_compare_exchange_strong(&slot->word, &word, word | BUSY))
        return false;
    slot->pump = (rw_pump){ .event_fd = -1, .poll_fd = -1 };
    slot->stop_fd = -1;
    slot->running = false;
    return true;
}

rw_slot *rw_slot_new(void)
{
    for (;;)
    {
        uint32_t count = atomic_load(&in_use);

        for (uint32_t i = 0; i < count; i++)
        {
            rw_slot *slot = &slots[atomic_fetch_add(&next_slot, 1) % count];

            if (take(slot))
                return slot;
        }
        if (count == SLOTS)
            return NULL;
        atomic_compare_exchange_strong(&in_use, &count, count * 2);
    }
}

receivewal *rw_slot_publish(rw_slot *slot)
{
    uint32_t generation = GENERATION(atomic_load(&slot->word)) + 1;

    atomic_store(&slot->word, (uint64_t)generation << 32 | OPEN);
    return encode(slot, generation);
}

void rw_slot_free(rw_slot *slot)
{
    atomic_fetch_and(&slot->word, ~(BUSY | OPEN));
}

void rw_slot_retire(rw_slot *slot)
{
    /* Users stay for a system call or one call of the core: microseconds, unless their thread is not scheduled. */
    const struct timespec pause = { 0, 100000 };
    uint64_t word = atomic_fetch_and(&slot->word, ~OPEN);

    for (int i = 0; (word & USERS) != 0; i++)
    {
        if (i < 100)
            sched_yield();
        else
            nanosleep(&pause, NULL);
        word = atomic_load(&slot->word);
    }
}

receivewal_status rw_slot_claim(receivewal *rw, rw_slot **slot)
{
    uint32_t generation;
    uint64_t word;
    receivewal_status status;

    if (!decode(rw, slot, &generation))
        return RECEIVEWAL_ERR_HANDLE;
    word = atomic_load(&(*slot)->word);
    do
    {
        status = judge(word, generation);
        if (status != RECEIVEWAL_OK)
            return status;
        if (word & BUSY)
            return RECEIVEWAL_ERR_BUSY;
    } while (!atomic_compare_exchange_weak(&(*slot)->word, &word, word | BUSY));
    return RECEIVEWAL_OK;
}

void rw_slot_release(rw_slot *slot)
{
    atomic_fetch_and(&slot->word, ~BUSY);
}

receivewal_status rw_slot_use(receivewal *rw, rw_slot **slot)
{
    uint32_t generation;
    uint64_t word;
    receivewal_status status;

    if (!decode(rw, slot, &generation))
        return RECEIVEWAL_ERR_HANDLE;
    word = atomic_load(&(*slot)->word);
    do
    {
        status = judge(word, generation);
        if (status != RECEIVEWAL_OK)
            return status;
    } while (!atomic_compare_exchange_weak(&(*slot)->word, &word, word + 1));
    return RECEIVEWAL_OK;
}

void rw_slot_unuse(rw_slot *slot)
{
    atomic_fetch_sub(&slot->word, 1);
}
