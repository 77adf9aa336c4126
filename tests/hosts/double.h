/*
 * double.h: a receivewal_io like a TLS session's, without TLS, over a plain socket. It reads from the socket in records and gives out
 * pieces of them, so that bytes are pending that the descriptor doesn't show; it wants to read in order to write and to write
 * in order to read; it breaks in every way that a test asks for. And it checks how it is called.
 */
#ifndef DOUBLE_H
#define DOUBLE_H

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>

#include "check.h"

typedef struct io_double
{
    int fd;
    unsigned seed;
    int wants;      /* percent of calls that want to be called again for no reason */
    size_t piece;   /* the most that a call moves; 0: no limit */

    /* What happens after so many bytes; -1: nothing. */
    long long read_breaks, write_breaks;
    ptrdiff_t answer; /* what the call then answers; DOUBLE_TOO_LONG: one byte more than asked for */
    int error;        /* errno of a RECEIVEWAL_IO_ERROR */

    const unsigned char *after_ready; /* bytes that come behind a ReadyForQuery, as if the server had sent them */
    size_t after_ready_length;
    size_t after_ready_late; /* how many of them come only when the caller has waited */
    bool after_ready_once;

    void (*inside)(struct io_double *d); /* called at the beginning of each call */
    void (*behind)(struct io_double *d); /* called at the end of each read */

    /* What it has seen. */
    pthread_t caller;
    bool misused;
    const char *how;
    long long read, written;   /* bytes */
    long long calls;
    int broken;                /* times it has answered a break */
    int calls_after;           /* calls after that; after an end only those that read */

    const void *retry;         /* what a write must come back with */
    size_t retry_length;
    bool in_call;
    size_t begin, end, late;
    unsigned char record[16384 + 256];
} io_double;

#define DOUBLE_TOO_LONG PTRDIFF_MAX

static inline int double_chance(io_double *d, int percent)
{
    d->seed = d->seed * 1103515245u + 12345u;
    return (int)(d->seed >> 16) % 100 < percent;
}

static inline void double_misused(io_double *d, const char *how)
{
    d->misused = true;
    d->how = how;
}

static inline bool double_ready(const io_double *d, short events)
{
    struct pollfd p = { .fd = d->fd, .events = events };

    return poll(&p, 1, 0) == 1;
}

static inline void double_enter(io_double *d, const void *buffer, size_t length, bool reads)
{
    d->calls++;
    if (d->broken > 0 && (reads || d->answer != 0))
        d->calls_after++;
    if (d->in_call)
        double_misused(d, "called while in a call");
    if (buffer == NULL || length == 0)
        double_misused(d, "called with nothing to do");
    if (!pthread_equal(pthread_self(), d->caller))
        double_misused(d, "called on another thread");
    d->in_call = true;
    if (d->inside != NULL)
        d->inside(d);
}

static inline ptrdiff_t double_break(io_double *d, size_t length)
{
    d->broken++;
    d->in_call = false;
    errno = d->error;
    return d->answer == DOUBLE_TOO_LONG ? (ptrdiff_t)length + 1 : d->answer;
}

/* Gets the next record; false if there is none now, *result is then what to answer. */
static inline bool double_record(io_double *d, ptrdiff_t *result)
{
    ssize_t n;

    if (d->late > 0)
    {
        memmove(d->record, d->record + d->end, d->late);
        d->begin = 0;
        d->end = d->late;
        d->late = 0;
        return true;
    }
    /* A ReadyForQuery that bytes are to follow must not be cut. */
    n = recv(d->fd, d->record, d->after_ready != NULL ? 16384 : 1 + (d->seed >> 8) % 16384, MSG_DONTWAIT);
    if (n <= 0)
    {
        *result = n == 0 ? 0 : errno == EAGAIN ? RECEIVEWAL_IO_WANT_READ : RECEIVEWAL_IO_ERROR;
        return false;
    }
    d->begin = 0;
    d->end = (size_t)n;
    if (d->after_ready != NULL && n >= 6 && memcmp(d->record + n - 6, "Z\0\0\0\5I", 6) == 0)
    {
        memcpy(d->record + n, d->after_ready, d->after_ready_length);
        d->end += d->after_ready_length - d->after_ready_late;
        d->late = d->after_ready_late;
        if (d->after_ready_once)
            d->after_ready = NULL;
    }
    return true;
}

static inline ptrdiff_t double_read(void *ctx, void *buffer, size_t length)
{
    io_double *d = ctx;
    size_t give = length;
    ptrdiff_t result = 0;

    double_enter(d, buffer, length, true);
    if (d->read_breaks >= 0 && d->read >= d->read_breaks)
        return double_break(d, length);
    d->in_call = false;
    /* To write in order to read: the socket is writable, so the call comes back. */
    if (double_chance(d, d->wants))
        return RECEIVEWAL_IO_WANT_WRITE;
    if (d->late > 0 && d->begin == d->end && double_chance(d, 80))
        return RECEIVEWAL_IO_WANT_WRITE;
    if (d->begin == d->end && !double_record(d, &result))
        return result;
    if (give > d->end - d->begin)
        give = d->end - d->begin;
    if (d->piece > 0 && give > d->piece)
        give = 1 + (size_t)d->seed % d->piece;
    if (d->read_breaks >= 0 && (long long)give > d->read_breaks - d->read)
        give = (size_t)(d->read_breaks - d->read);
    memcpy(buffer, d->record + d->begin, give);
    d->begin += give;
    d->read += (long long)give;
    if (d->behind != NULL)
        d->behind(d);
    return (ptrdiff_t)give;
}

static inline ptrdiff_t double_write(void *ctx, const void *buffer, size_t length)
{
    io_double *d = ctx;
    size_t give = length;
    ssize_t n;

    double_enter(d, buffer, length, false);
    if (d->retry != NULL && (buffer != d->retry || length != d->retry_length))
        double_misused(d, "a write came back with another buffer or length");
    if (d->write_breaks >= 0 && d->written >= d->write_breaks)
        return double_break(d, length);
    d->in_call = false;
    d->retry = buffer;
    d->retry_length = length;
    if (double_chance(d, d->wants))
    {
        /* To read in order to write, where the socket is readable, so the call comes back. */
        return double_ready(d, POLLIN) ? RECEIVEWAL_IO_WANT_READ : RECEIVEWAL_IO_WANT_WRITE;
    }
    if (d->piece > 0 && give > d->piece)
        give = 1 + (size_t)d->seed % d->piece;
    if (d->write_breaks >= 0 && (long long)give > d->write_breaks - d->written)
        give = (size_t)(d->write_breaks - d->written);
    n = send(d->fd, buffer, give, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN ? RECEIVEWAL_IO_WANT_WRITE : RECEIVEWAL_IO_ERROR;
    d->retry = NULL;
    d->written += n;
    return n;
}

static inline void double_errmsg(void *ctx, char *buffer, size_t length)
{
    io_double *d = ctx;
    char text[200];

    snprintf(text, sizeof(text), "the double\nbroke: \xff%s", strerror(errno));
    if (d->broken == 0)
        double_misused(d, "errmsg without an error");
    /* Without the NUL that it should have. */
    memset(buffer, '.', length);
    memcpy(buffer, text, strlen(text) < length ? strlen(text) : length);
}

static inline void double_init(io_double *d, int fd, unsigned seed)
{
    memset(d, 0, sizeof(*d));
    d->fd = fd;
    d->seed = seed;
    d->caller = pthread_self();
    d->read_breaks = d->write_breaks = -1;
    d->answer = RECEIVEWAL_IO_ERROR;
    d->error = EPROTO;
}

static inline receivewal_io double_io(io_double *d)
{
    receivewal_io io = RECEIVEWAL_IO_INIT;

    io.ctx = d;
    io.read = double_read;
    io.write = double_write;
    io.errmsg = double_errmsg;
    return io;
}

static inline receivewal *attach_io(io_double *d)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal_io io = double_io(d);
    receivewal *rw;

    connection.fd = d->fd;
    connection.io = &io;
    REQUIRE(receivewal_attach(&connection, &rw) == RECEIVEWAL_OK);
    memset(&io, 0xff, sizeof(io)); /* the library has its own */
    return rw;
}

#endif /* DOUBLE_H */
