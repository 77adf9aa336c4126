/*
 * relay.c: between a host that reads and writes its connection itself (receivewal_io) and the core, which knows only sockets.
 *
 *     host's read  ->  in   ->  pair  ->  core
 *     host's write <-  out  <-  pair  <-  core
 *
 * The core has one end of a socket pair for its connection. The host's thread, while it is in rw_pump_run, moves bytes between
 * the other end and the host's functions; nothing else ever calls them. Each direction has one buffer of fixed size, which
 * is filled only when it is empty: so a write that the host has to be asked again for comes with the same buffer and the
 * same length, as OpenSSL demands (SSL_write(3)), and the server is held back as soon as the core is.
 *
 *                    read gives 0                      in is empty
 *     OPEN ------------------------------> CLOSED  -------------------+
 *       |                                                             v
 *       |  a function fails or answers     FAILED  ----------------> the core's end sees the end of the connection
 *       +------------------------------->            in is empty
 *
 * CLOSED still writes; FAILED calls no function any more and swallows what the core writes. In both the core first gets all
 * that was read before.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define BUFFER_SIZE 65536 /* four TLS records */
#define ROUNDS 16         /* of moving bytes, before the caller looks after events again */
#define REASON_MAX 512

typedef enum { OPEN, CLOSED, FAILED } relay_state;

typedef struct buffer
{
    size_t begin, end; /* what is between them has not been passed on yet; equal: empty */
    char bytes[BUFFER_SIZE];
} buffer;

struct rw_relay
{
    receivewal_io io;
    int host_fd;            /* the host's own descriptor: only looked at */
    dev_t device;           /* what it was when it was lent */
    ino_t inode;
    int wait_fd;            /* our duplicate of it: only waited for */
    int pair_fd;            /* our end of the pair */
    uint64_t core_id;
    relay_state state;
    bool told;              /* the core's end has seen the end */
    bool core_gone;         /* the core has closed its end */
    uint32_t read_wait;     /* EPOLLIN or EPOLLOUT: what read waits for; 0: it can be called */
    uint32_t write_wait;    /* the same of write */
    uint32_t wait_watched;  /* what poll_fd is told to watch wait_fd for; 0: not at all */
    uint32_t pair_watched;
    uint64_t passed;        /* bytes read from the host so far */
    buffer in, out;
};

static size_t length(const buffer *b)
{
    return b->end - b->begin;
}

static void drop(buffer *b)
{
    b->begin = b->end = 0;
}

rw_relay *rw_relay_new(const receivewal_connection *connection, int *core_end)
{
    rw_relay *r = calloc(1, sizeof(*r));
    int pair[2] = { -1, -1 };
    struct stat status;

    if (r == NULL)
        return NULL;
    r->io = *connection->io;
    r->host_fd = connection->fd;
    r->wait_fd = rw_own(fcntl(connection->fd, F_DUPFD_CLOEXEC, 3));
    if (r->wait_fd >= 0 && fstat(r->wait_fd, &status) == 0 &&
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0)
    {
        r->pair_fd = rw_own(rw_not_standard(pair[0]));
        *core_end = rw_own(rw_not_standard(pair[1]));
        if (r->pair_fd >= 0 && *core_end >= 0)
        {
            r->device = status.st_dev;
            r->inode = status.st_ino;
            return r;
        }
        pair[0] = r->pair_fd;
        pair[1] = *core_end;
    }
    rw_close(pair[0]);
    rw_close(pair[1]);
    rw_close(r->wait_fd);
    free(r);
    return NULL;
}

void rw_relay_serve(rw_relay *r, uint64_t core_id)
{
    r->core_id = core_id;
}

void rw_relay_free(rw_relay *r, int poll_fd)
{
    if (r == NULL)
        return;
    /* Not left to close: a forked child may have descriptors of the same sockets, and epoll would go on watching them. */
    if (r->wait_watched != 0)
        epoll_ctl(poll_fd, EPOLL_CTL_DEL, r->wait_fd, NULL);
    if (r->pair_watched != 0)
        epoll_ctl(poll_fd, EPOLL_CTL_DEL, r->pair_fd, NULL);
    rw_close(r->wait_fd);
    rw_close(r->pair_fd);
    free(r);
}

/* ------------------------------------------------------------------------------------- how a connection is lost */

static void fail(rw_relay *r, const char *reason)
{
    /* After the end of the connection a failed write is no news. The core has to know why before it sees the end. */
    if (r->state == OPEN)
        rw_core_lost(r->core_id, reason);
    r->state = FAILED;
    drop(&r->out);
}

/* A function has answered neither a number of bytes nor to be called again. */
static void fail_on(rw_relay *r, const char *function, ptrdiff_t answer, size_t asked)
{
    const int error = errno;
    char reason[REASON_MAX] = "";

    if (answer != RECEIVEWAL_IO_ERROR)
        snprintf(reason, sizeof(reason), "receivewal_io.%s answered %td when asked for up to %zu bytes, which makes no sense", function,
                 answer, asked);
    else if (r->io.errmsg != NULL)
    {
        errno = error;
        r->io.errmsg(r->io.ctx, reason, sizeof(reason));
        reason[sizeof(reason) - 1] = '\0';
        /* It goes into a log, too. */
        for (char *p = reason; *p != '\0'; p++)
            if (*p == '\n' || *p == '\r')
                *p = ' ';
    }
    if (reason[0] == '\0')
        snprintf(reason, sizeof(reason), "receivewal_io.%s failed", function);
    fail(r, reason);
}

/* The host's functions read and write its descriptor: before each call, it must still be the one that we wait for. */
static bool still_lent(rw_relay *r)
{
    struct stat status;
    char reason[REASON_MAX];

    if (fstat(r->host_fd, &status) != 0)
        snprintf(reason, sizeof(reason), "descriptor %d was closed while it was lent to libreceivewal", r->host_fd);
    else if (status.st_dev != r->device || status.st_ino != r->inode)
        snprintf(reason, sizeof(reason), "descriptor %d was replaced by another one while it was lent to libreceivewal", r->host_fd);
    else
        return true;
    fail(r, reason);
    return false;
}

/* ---------------------------------------------------------------------------------- the four steps of a byte */

/* Each returns true if it has moved something, or if something has changed that lets another one move. */

static bool from_host(rw_relay *r)
{
    buffer *b = &r->in;

    if (r->state != OPEN || r->read_wait != 0 || length(b) != 0)
        return false;
    drop(b);
    while (b->end < BUFFER_SIZE && still_lent(r))
    {
        const size_t room = BUFFER_SIZE - b->end;
        const ptrdiff_t n = r->io.read(r->io.ctx, b->bytes + b->end, room);

        if (n > 0 && (size_t)n <= room)
        {
            b->end += (size_t)n;
            r->passed += (uint64_t)n;
            continue;
        }
        if (n == RECEIVEWAL_IO_WANT_READ)
            r->read_wait = EPOLLIN;
        else if (n == RECEIVEWAL_IO_WANT_WRITE)
            r->read_wait = EPOLLOUT;
        else if (n == 0)
            r->state = CLOSED;
        else
            fail_on(r, "read", n, room);
        break;
    }
    return length(b) != 0 || r->state != OPEN;
}

static bool to_core(rw_relay *r)
{
    buffer *b = &r->in;
    const bool had = length(b) != 0;

    if (had)
    {
        const ssize_t n = send(r->pair_fd, b->bytes + b->begin, length(b), MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0 && errno != EAGAIN && errno != EINTR)
            drop(b); /* the core doesn't listen any more */
        if (n <= 0)
            return false;
        b->begin += (size_t)n;
    }
    if (length(b) == 0 && r->state != OPEN && !r->told)
    {
        r->told = true;
        shutdown(r->pair_fd, SHUT_WR);
    }
    return had;
}

static bool from_core(rw_relay *r)
{
    buffer *b = &r->out;
    ssize_t n;

    if (r->core_gone || length(b) != 0)
        return false;
    drop(b);
    n = recv(r->pair_fd, b->bytes, BUFFER_SIZE, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        r->core_gone = true;
    if (n > 0 && r->state != FAILED)
        b->end = (size_t)n;
    return n > 0;
}

static bool to_host(rw_relay *r)
{
    buffer *b = &r->out;
    const size_t rest = length(b);
    ptrdiff_t n;

    if (r->state == FAILED || r->write_wait != 0 || rest == 0)
        return false;
    if (!still_lent(r))
        return true;
    n = r->io.write(r->io.ctx, b->bytes + b->begin, rest);
    if (n > 0 && (size_t)n <= rest)
        b->begin += (size_t)n;
    else if (n == RECEIVEWAL_IO_WANT_READ)
        r->write_wait = EPOLLIN;
    else if (n == RECEIVEWAL_IO_WANT_WRITE)
        r->write_wait = EPOLLOUT;
    else
        fail_on(r, "write", n, rest);
    return r->write_wait == 0;
}

bool rw_relay_work(rw_relay *r)
{
    bool moved = true;

    /* Reading comes first: should the write fail, the server's last words have been read. */
    for (int i = 0; moved && i < ROUNDS; i++)
    {
        moved = from_host(r);
        moved = to_core(r) || moved;
        moved = from_core(r) || moved;
        moved = to_host(r) || moved;
    }
    return moved;
}

/* ------------------------------------------------------------------------------------------------ waiting */

static bool watch(int poll_fd, int fd, uint32_t tag, uint32_t wanted, uint32_t *watched)
{
    struct epoll_event event = { .events = wanted, .data.u32 = tag };
    int op = wanted == 0 ? EPOLL_CTL_DEL : *watched == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;

    /* What nothing is wanted of is not watched at all: epoll would tell of its hang-up for ever. */
    if (wanted == *watched)
        return true;
    *watched = wanted;
    return epoll_ctl(poll_fd, op, fd, &event) == 0;
}

bool rw_relay_watch(rw_relay *r, int poll_fd)
{
    uint32_t host = 0, pair = 0;

    if (r->state == OPEN && length(&r->in) == 0)
        host |= r->read_wait;
    if (r->state != FAILED && length(&r->out) != 0)
        host |= r->write_wait;
    if (length(&r->in) != 0)
        pair |= EPOLLOUT;
    if (length(&r->out) == 0 && !r->core_gone)
        pair |= EPOLLIN;
    return watch(poll_fd, r->wait_fd, RW_WATCH_HOST, host, &r->wait_watched) &&
           watch(poll_fd, r->pair_fd, RW_WATCH_PAIR, pair, &r->pair_watched);
}

void rw_relay_ready(rw_relay *r, uint32_t events)
{
    if (events & (EPOLLERR | EPOLLHUP))
        events |= EPOLLIN | EPOLLOUT;
    r->read_wait &= ~events;
    r->write_wait &= ~events;
}

/* --------------------------------------------------------------------------------------------- what is in it */

uint64_t rw_relay_passed(const rw_relay *r)
{
    return r->passed;
}

bool rw_relay_empty(const rw_relay *r)
{
    int unread = 0;

    return length(&r->in) == 0 && length(&r->out) == 0 && ioctl(r->pair_fd, SIOCOUTQ, &unread) == 0 && unread == 0;
}

bool rw_relay_open(const rw_relay *r)
{
    return r->state == OPEN;
}
