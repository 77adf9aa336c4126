/*
 * receivewal_openssl.h: a receivewal_io from an SSL *, for connections that OpenSSL encrypts.
 *
 *     receivewal_io io = receivewal_openssl_io(PQsslStruct(conn, "OpenSSL"));
 *     connection.io = &io;
 *
 * All of it is in this header; the library itself does not need OpenSSL. The host compiles it, from C or C++, and links
 * -lssl -lcrypto as it does already. OpenSSL 1.1.0 or newer, or a library with its interface. With -std=c11 define
 * _POSIX_C_SOURCE as 200809L.
 *
 * The SSL * must live until receivewal_detach, and nobody else may use it until then. It is used only by the thread that
 * calls the library, inside those calls. Its modes (SSL_set_mode) stay as they are; any will do. Its socket should be non-blocking, as
 * libpq's is. On a blocking one nothing is read before the descriptor is readable, but the rest of a TLS record may then be waited for.
 *
 * BSD-3-Clause. See LICENSE.
 */
#ifndef RECEIVEWAL_OPENSSL_H
#define RECEIVEWAL_OPENSSL_H

#include <receivewal.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#ifndef SIG_BLOCK
#error "receivewal_openssl.h needs POSIX: define _POSIX_C_SOURCE as 200809L"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/*
 * OpenSSL writes to a socket with write(2), which raises SIGPIPE where the peer has gone, also while reading. As libpq
 * does: the signal is blocked for this thread, and one that came meanwhile is taken away, unless one was waiting before.
 */
typedef struct receivewal_openssl_guard
{
    sigset_t mask;
    int blocked; /* SIGPIPE is blocked by us */
} receivewal_openssl_guard;

static inline void receivewal_openssl_block(receivewal_openssl_guard *guard)
{
    sigset_t pipe_only, pending;

    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    guard->blocked = pthread_sigmask(SIG_BLOCK, &pipe_only, &guard->mask) == 0;
    if (guard->blocked && sigismember(&guard->mask, SIGPIPE) == 1 && sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1)
        guard->blocked = 0; /* the host's own is waiting already: another one changes nothing */
}

static inline void receivewal_openssl_unblock(const receivewal_openssl_guard *guard, int broken)
{
    const int error = errno;

    if (guard->blocked)
    {
        if (broken)
        {
            const struct timespec at_once = { 0, 0 };
            sigset_t pipe_only;

            sigemptyset(&pipe_only);
            sigaddset(&pipe_only, SIGPIPE);
            while (sigtimedwait(&pipe_only, NULL, &at_once) < 0 && errno == EINTR)
                ;
        }
        pthread_sigmask(SIG_SETMASK, &guard->mask, NULL);
    }
    errno = error;
}

/* What a call of OpenSSL that returned result <= 0 means. Leaves the reason of an error in OpenSSL's queue or in errno. */
static inline ptrdiff_t receivewal_openssl_result(const SSL *ssl, int result)
{
    const int error = errno;
    const int kind = SSL_get_error(ssl, result);

    switch (kind)
    {
        case SSL_ERROR_WANT_READ:
            return RECEIVEWAL_IO_WANT_READ;
        case SSL_ERROR_WANT_WRITE:
            return RECEIVEWAL_IO_WANT_WRITE;
        case SSL_ERROR_ZERO_RETURN:
            return 0;
        case SSL_ERROR_SYSCALL:
            /* A peer that closes without saying so in TLS, before OpenSSL 3. */
            if (ERR_peek_last_error() == 0 && error == 0)
                return 0;
            break;
        case SSL_ERROR_SSL:
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING
            /* The same since OpenSSL 3. The protocol inside tells whether anything is missing. */
            if (ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING)
                return 0;
#endif
            break;
        default:
            break;
    }
    errno = error;
    return RECEIVEWAL_IO_ERROR;
}

/* Whether the descriptor is in blocking mode. */
static inline int receivewal_openssl_blocks(const SSL *ssl)
{
    const int fd = SSL_get_fd(ssl);
    const int flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);

    return flags >= 0 && (flags & O_NONBLOCK) == 0;
}

/* Reads from a blocking descriptor: only where there is something, and one record at a time, since behind one that is not data, a
 * session ticket for example, OpenSSL would wait for the next. */
static inline int receivewal_openssl_read_some(SSL *ssl, void *buffer, int length)
{
    const long retries = SSL_get_mode(ssl) & SSL_MODE_AUTO_RETRY;
    int n;

    SSL_clear_mode(ssl, SSL_MODE_AUTO_RETRY);
    n = SSL_read(ssl, buffer, length);
    SSL_set_mode(ssl, retries);
    return n;
}

static inline int receivewal_openssl_readable(const SSL *ssl)
{
    struct pollfd p;

    p.fd = SSL_get_fd(ssl);
    p.events = POLLIN;
    p.revents = 0;
    return SSL_pending(ssl) > 0 || poll(&p, 1, 0) != 0;
}

static inline ptrdiff_t receivewal_openssl_read(void *ctx, void *buffer, size_t length)
{
    SSL *ssl = (SSL *) ctx;
    const int blocks = receivewal_openssl_blocks(ssl), size = length > INT_MAX ? INT_MAX : (int) length;
    receivewal_openssl_guard guard;
    ptrdiff_t result;
    int n;

    if (blocks && !receivewal_openssl_readable(ssl))
        return RECEIVEWAL_IO_WANT_READ;
    ERR_clear_error(); /* SSL_get_error looks at the whole queue */
    receivewal_openssl_block(&guard);
    errno = 0;
    n = blocks ? receivewal_openssl_read_some(ssl, buffer, size) : SSL_read(ssl, buffer, size);
    result = n > 0 ? n : receivewal_openssl_result(ssl, n);
    receivewal_openssl_unblock(&guard, errno == EPIPE);
    return result;
}

static inline ptrdiff_t receivewal_openssl_write(void *ctx, const void *buffer, size_t length)
{
    SSL *ssl = (SSL *) ctx;
    receivewal_openssl_guard guard;
    ptrdiff_t result;
    int n;

    ERR_clear_error();
    receivewal_openssl_block(&guard);
    errno = 0;
    n = SSL_write(ssl, buffer, length > INT_MAX ? INT_MAX : (int) length);
    result = n > 0 ? n : receivewal_openssl_result(ssl, n);
    receivewal_openssl_unblock(&guard, errno == EPIPE);
    if (result == 0)
    {
        errno = EPIPE; /* the peer has closed: for a write that is an error */
        return RECEIVEWAL_IO_ERROR;
    }
    return result;
}

static inline void receivewal_openssl_errmsg(void *ctx, char *buffer, size_t length)
{
    const unsigned long code = ERR_peek_last_error();
    const int error = errno;
    const char *reason = NULL;

    (void) ctx;
    if (length == 0)
        return;
    if (code != 0)
        reason = ERR_reason_error_string(code);
    if (reason == NULL && code == 0 && error != 0)
        reason = strerror(error);
    buffer[0] = '\0';
    if (reason != NULL)
    {
        strncat(buffer, code != 0 ? "SSL error: " : "SSL SYSCALL error: ", length - 1);
        strncat(buffer, reason, length - 1 - strlen(buffer));
    }
    else
        ERR_error_string_n(code, buffer, length);
    ERR_clear_error();
}

/* Reads and writes through ssl, whose handshake is done. */
static inline receivewal_io receivewal_openssl_io(SSL *ssl)
{
    receivewal_io io = RECEIVEWAL_IO_INIT;

    io.ctx = ssl;
    io.read = receivewal_openssl_read;
    io.write = receivewal_openssl_write;
    io.errmsg = receivewal_openssl_errmsg;
    return io;
}

#ifdef __cplusplus
}
#endif

#endif /* RECEIVEWAL_OPENSSL_H */
