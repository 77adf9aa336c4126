/* What is not a handle, no longer one, or in use: nothing of it is ever followed. */
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "check.h"

static void every_function_refuses(const char *what, receivewal *rw, receivewal_status expected, const char *part)
{
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal_slot slot = RECEIVEWAL_SLOT_INIT;
    const char *text;

    options.directory = "/tmp";
#define REFUSED(call) CHECK_ERROR(what, call, expected, rw, part)
    REFUSED(receivewal_get_progress(rw, &progress));
    REFUSED(receivewal_receive(rw, &options));
    REFUSED(receivewal_start(rw, &options));
    REFUSED(receivewal_wait(rw, -1));
    REFUSED(receivewal_dispatch(rw));
    REFUSED(receivewal_identify(rw, &system));
    REFUSED(receivewal_create_slot(rw, "s", 0, &slot));
    REFUSED(receivewal_drop_slot(rw, "s", 0));
    REFUSED(receivewal_read_slot(rw, "s", &slot));
    REFUSED(receivewal_detach(rw));
    text = receivewal_errmsg(rw);
    CHECK_STATUS(what, receivewal_stop(rw), expected);
    CHECK(what, receivewal_errmsg(rw) == text, "stop touched the text");
    CHECK(what, strcmp(receivewal_errmsg(NULL), text) == 0, "errmsg(NULL): %s", receivewal_errmsg(NULL));
    CHECK(what, receivewal_event_fd(rw) == -1, "event_fd %d", receivewal_event_fd(rw));
    CHECK(what, receivewal_connection_usable(rw) == 0, "usable");
    CHECK(what, receivewal_sqlstate(rw)[0] == '\0' && receivewal_errdetail(rw)[0] == '\0' && receivewal_errhint(rw)[0] == '\0', "text");
}

static void pointers_of_the_host(void)
{
    static int object[16];
    int local = 0;
    void *memory = malloc(1000);
    void *no_access = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    REQUIRE(memory != NULL && no_access != MAP_FAILED);
    every_function_refuses("a NULL handle", NULL, RECEIVEWAL_ERR_HANDLE, "handle is NULL");
    every_function_refuses("malloc'ed memory as a handle", memory, RECEIVEWAL_ERR_HANDLE, "not a handle");
    every_function_refuses("a static object as a handle", (receivewal *)object, RECEIVEWAL_ERR_HANDLE, "not a handle");
    every_function_refuses("a local object as a handle", (receivewal *)&local, RECEIVEWAL_ERR_HANDLE, "not a handle");
    every_function_refuses("memory without access as a handle", no_access, RECEIVEWAL_ERR_HANDLE, "not a handle");
    every_function_refuses("-1 as a handle", (receivewal *)(intptr_t)-1, RECEIVEWAL_ERR_HANDLE, "not a handle");
    for (uintptr_t i = 0; i < 16; i++)
        if (receivewal_stop((receivewal *)((uintptr_t)object + i)) != RECEIVEWAL_ERR_HANDLE)
            CHECK("any low bits", false, "%d", (int)i);
    free(memory);
}

/* A pointer that is almost a handle: each bit of a real one flipped. */
static void almost_handles(receivewal *rw)
{
    int wrong = 0;

    for (int bit = 0; bit < 64; bit++)
    {
        receivewal *other = (receivewal *)((uintptr_t)rw ^ (uintptr_t)1 << bit);
        receivewal_status status = receivewal_stop(other);

        wrong += status != RECEIVEWAL_ERR_HANDLE && status != RECEIVEWAL_ERR_CLOSED;
    }
    CHECK("a handle with one bit flipped", wrong == 0, "%d were taken", wrong);
}

enum { PLACES = 16384 }; /* in the loader's table of handles, which go round */

/* An attach for which no descriptor is left has taken a place, and given it back. */
static void use_places_up(int fd, int count)
{
    struct rlimit limit, none;
    receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
    receivewal *rw;

    c.fd = fd;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none = limit;
    none.rlim_cur = 0;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
    for (int i = 0; i < count; i++)
        REQUIRE(receivewal_attach(&c, &rw) == RECEIVEWAL_ERR_LIMIT);
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static void detached(int fd)
{
    receivewal *first = attach(fd), *second;

    CHECK_STATUS("detach", receivewal_detach(first), RECEIVEWAL_OK);
    every_function_refuses("a detached handle", first, RECEIVEWAL_ERR_CLOSED, "detached before");
    second = attach(fd);
    CHECK("a new handle is another", second != first, "the same");
    every_function_refuses("a detached handle next to a new one", first, RECEIVEWAL_ERR_CLOSED, "detached before");
    almost_handles(second);
    CHECK("it was not stopped", receivewal_errmsg(second)[0] == '\0', "%s", receivewal_errmsg(second));
    /* Until the place of the first is used again: the handles then differ in their upper half only. */
    REQUIRE(receivewal_detach(second) == RECEIVEWAL_OK);
    use_places_up(fd, PLACES - 2);
    second = attach(fd);
    REQUIRE((((uintptr_t)first ^ (uintptr_t)second) & 0x3ffff) == 0);
    every_function_refuses("a handle whose place is used again", first, RECEIVEWAL_ERR_CLOSED, "detached before");
    CHECK_STATUS("who has it now is untouched", receivewal_detach(second), RECEIVEWAL_OK);
}

static void *identify(void *rw)
{
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;

    return (void *)(intptr_t)receivewal_identify(rw, &system);
}

/* The server of this connection never answers, so the call is in progress until it is stopped. */
static void in_use(void)
{
    int peer, fd = silent_connection(&peer);
    struct pollfd asked = { .fd = peer, .events = POLLIN };
    receivewal *rw = attach(fd);
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal_slot slot = RECEIVEWAL_SLOT_INIT;
    pthread_t thread;
    void *status;
    int64_t began;

    options.directory = "/tmp";
    REQUIRE(pthread_create(&thread, NULL, identify, rw) == 0);
    CHECK("a call in another thread is in progress", wait_for_state(rw, false) == RECEIVEWAL_STATE_STARTING, "it is not");
#define CLASHES(call) CHECK_ERROR("a clash", call, RECEIVEWAL_ERR_BUSY, rw, "in progress")
    CLASHES(receivewal_identify(rw, &system));
    CLASHES(receivewal_receive(rw, &options));
    CLASHES(receivewal_start(rw, &options));
    CLASHES(receivewal_wait(rw, 0));
    CLASHES(receivewal_dispatch(rw));
    CLASHES(receivewal_create_slot(rw, "s", 0, &slot));
    CLASHES(receivewal_drop_slot(rw, "s", 0));
    CLASHES(receivewal_read_slot(rw, "s", &slot));
    CLASHES(receivewal_detach(rw));
    CHECK("not usable in a call", receivewal_connection_usable(rw) == 0, "usable");
    CHECK_STATUS("get_progress at any time", receivewal_get_progress(rw, &progress), RECEIVEWAL_OK);
    CHECK("its state", progress.state == RECEIVEWAL_STATE_STARTING, "%d", (int)progress.state);
    REQUIRE(poll(&asked, 1, 60000) == 1); /* a call that has asked nothing yet would leave the connection as it was */
    began = milliseconds();
    CHECK_STATUS("stop from another thread", receivewal_stop(rw), RECEIVEWAL_OK);
    pthread_join(thread, &status);
    CHECK("the call was stopped", (receivewal_status)(intptr_t)status == RECEIVEWAL_ERR_STOPPED ||
          (receivewal_status)(intptr_t)status == RECEIVEWAL_ERR_CONNECTION, "status %d", (int)(intptr_t)status);
    printf("# stopped after %d ms\n", (int)(milliseconds() - began));
    CHECK("a call without an answer leaves the connection unusable", receivewal_connection_usable(rw) == 0, "usable");
    CHECK_STATUS("detach", receivewal_detach(rw), RECEIVEWAL_OK);
    close(fd);
    close(peer);
}

/* Each handle has its own texts; those without a handle are the thread's. */
static void texts(int fd)
{
    receivewal *one = attach(fd), *two = attach(fd);
    receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
    receivewal *none;
    const char *first;
    char copy[200];

    CHECK("a new handle has no error", receivewal_errmsg(one)[0] == '\0' && receivewal_sqlstate(one)[0] == '\0', "%s", receivewal_errmsg(one));
    receivewal_drop_slot(one, "Bad1", 0);
    receivewal_drop_slot(two, "Bad2", 0);
    first = receivewal_errmsg(one);
    snprintf(copy, sizeof(copy), "%s", first);
    receivewal_attach(&c, &none);
    receivewal_drop_slot(two, "Bad3", 0);
    receivewal_stop(one);
    CHECK("a text stays until the next call on its handle", strcmp(copy, first) == 0 && strstr(first, "Bad1") != NULL, "%s", first);
    CHECK("errmsg gives the same pointer again", receivewal_errmsg(one) == first, "another");
    CHECK("the other's is its own", strstr(receivewal_errmsg(two), "Bad3") != NULL, "%s", receivewal_errmsg(two));
    CHECK("the thread's is its own", strstr(receivewal_errmsg(NULL), "descriptor -1") != NULL, "%s", receivewal_errmsg(NULL));
    receivewal_detach(one);
    receivewal_detach(two);
}

static void too_many(int fd)
{
    enum { MANY = 300 };
    static receivewal *handles[MANY];

    for (int i = 0; i < MANY; i++)
        handles[i] = attach(fd);
    for (int i = 0; i < MANY; i++)
        for (int j = 0; j < i; j++)
            REQUIRE(handles[i] != handles[j]);
    for (int i = 0; i < MANY; i++)
        REQUIRE(receivewal_detach(handles[i]) == RECEIVEWAL_OK);
    CHECK("many handles at once", true, "-");
}

/* With no descriptors left, attach says so, whichever of them it was that could not be had, and leaves none behind. */
static void out_of_descriptors(int fd)
{
    struct rlimit limit, low;
    int before = descriptors(), highest = open("/dev/null", O_RDONLY), limits = 0;
    receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
    receivewal_status status = RECEIVEWAL_ERR_LIMIT;
    receivewal *rw = NULL;

    close(highest);
    c.fd = fd;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    low = limit;
    for (int more = 0; more < 20 && status == RECEIVEWAL_ERR_LIMIT; more++)
    {
        low.rlim_cur = (rlim_t)(highest + more);
        REQUIRE(setrlimit(RLIMIT_NOFILE, &low) == 0);
        status = receivewal_attach(&c, &rw);
        REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        limits += status == RECEIVEWAL_ERR_LIMIT && receivewal_errmsg(NULL)[0] != '\0';
    }
    CHECK("without descriptors: LIMIT, as long as one is missing", status == RECEIVEWAL_OK && limits >= 4, "%d times, then %d: %s", limits,
          (int)status, receivewal_errmsg(NULL));
    receivewal_detach(rw);
    CHECK("nothing is left of the attempts", descriptors() == before, "%d before, %d after", before, descriptors());
}

int main(void)
{
    int peer, fd = silent_connection(&peer);

    pointers_of_the_host();
    CHECK("none of this loaded the core", threads() == 1, "%d threads", threads());
    detached(fd);
    texts(fd);
    too_many(fd);
    out_of_descriptors(fd);
    in_use();
    return 0;
}
