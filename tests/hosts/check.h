/* check.h: how a test host says what it found: one line per check, "ok NAME" or "FAIL NAME: why". */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <dirent.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <receivewal.h>

/* The arguments after the condition say what was found instead. */
#define CHECK(name, condition, ...)                                                                                    \
    do                                                                                                                 \
    {                                                                                                                  \
        if (condition)                                                                                                 \
            printf("ok %s\n", name);                                                                                   \
        else                                                                                                           \
        {                                                                                                              \
            printf("FAIL %s: ", name);                                                                                 \
            printf(__VA_ARGS__);                                                                                       \
            printf(" [%s:%d]\n", __FILE__, __LINE__);                                                                  \
        }                                                                                                              \
        fflush(stdout);                                                                                                \
    } while (0)

/* That a call returns the status, and that the text names the thing. */
#define CHECK_ERROR(name, call, expected, rw, part)                                                                    \
    do                                                                                                                 \
    {                                                                                                                  \
        receivewal_status got_ = (call);                                                                               \
        const char *text_ = receivewal_errmsg(rw);                                                                     \
        CHECK(name, got_ == (expected) && strstr(text_, part) != NULL, "status %d (%s), text \"%s\"", (int)got_,       \
              receivewal_strerror(got_), text_);                                                                       \
    } while (0)

#define CHECK_STATUS(name, call, expected)                                                                             \
    do                                                                                                                 \
    {                                                                                                                  \
        receivewal_status got_ = (call);                                                                               \
        CHECK(name, got_ == (expected), "status %d (%s)", (int)got_, receivewal_strerror(got_));                       \
    } while (0)

#define REQUIRE(condition)                                                                                             \
    do                                                                                                                 \
    {                                                                                                                  \
        if (!(condition))                                                                                              \
        {                                                                                                              \
            printf("FAIL setup: %s [%s:%d]\n", #condition, __FILE__, __LINE__);                                        \
            fflush(stdout);                                                                                            \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

static inline int64_t milliseconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static inline void sleep_ms(int ms)
{
    struct timespec t = { ms / 1000, (long)(ms % 1000) * 1000000 };

    nanosleep(&t, NULL);
}

static inline int entries(const char *folder)
{
    DIR *d = opendir(folder);
    int count = -3; /* ".", ".." and opendir's own descriptor, where the folder is /proc/self/fd */

    REQUIRE(d != NULL);
    while (readdir(d) != NULL)
        count++;
    closedir(d);
    return count;
}

static inline int descriptors(void)
{
    return entries("/proc/self/fd");
}

static inline int threads(void)
{
    return entries("/proc/self/task") + 1;
}

/* A connection whose server never says anything. peer gets the other end. */
static inline int silent_connection(int *peer)
{
    int pair[2];

    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    *peer = pair[1];
    return pair[0];
}

static inline receivewal *attach(int fd)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal *rw;

    connection.fd = fd;
    if (receivewal_attach(&connection, &rw) != RECEIVEWAL_OK)
    {
        printf("FAIL attach: %s\n", receivewal_errmsg(NULL));
        exit(1);
    }
    return rw;
}

/* Waits until the handle is idle, or until it is not; at most two minutes. */
static inline receivewal_state wait_for_state(receivewal *rw, bool idle)
{
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

    for (int64_t end = milliseconds() + 120000; milliseconds() < end; sleep_ms(1))
    {
        REQUIRE(receivewal_get_progress(rw, &progress) == RECEIVEWAL_OK);
        if ((progress.state == RECEIVEWAL_STATE_IDLE) == idle)
            break;
    }
    return progress.state;
}

#endif /* CHECK_H */
